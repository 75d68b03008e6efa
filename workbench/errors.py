"""The one exception class of the workbench."""


class WorkbenchError(ValueError):
    """A request that cannot be met, told in up to four parts.

    asked: what the caller wanted; found: what is there instead; allowed: what would be accepted;
    do: the next step. Parts that are None are left out of the message.
    """

    def __init__(self, asked: str, found: str | None = None, allowed: str | None = None, do: str | None = None):
        self.asked, self.found, self.allowed, self.do = asked, found, allowed, do
        parts = [("", asked), ("Found: ", found), ("Allowed: ", allowed), ("What to do: ", do)]
        super().__init__("\n".join(label + text for label, text in parts if text is not None))
