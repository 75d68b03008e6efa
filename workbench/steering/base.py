"""Base: the model as it is, so that a table of methods can hold it. **Rule.** e <- e."""

from dataclasses import dataclass

from .intervention import Intervention


@dataclass(frozen=True, eq=False, repr=False)
class Base(Intervention):
    """No intervention: no hook is registered."""
