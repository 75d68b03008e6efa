"""A judge of words, for sweeps whose answers are made up."""


class WordJudge:
    """Counts a value as affirmed where its name stands, and an answer as fluent unless it holds a star."""

    name = "words"

    def control(self, answer, value):
        return float(value in answer)

    def fluent(self, answer):
        return "*" not in answer
