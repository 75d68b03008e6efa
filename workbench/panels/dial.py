"""Schwartz's circle as a dial: handles to be dragged, the model's own places, a prompt's profile.

A view without a state of its own: who uses it hands over what is shown, and is told where a hand is.
"""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets as t

from ..figures import COLOURS
from ..values import VALUES, angles


class Dial(anywidget.AnyWidget):
    """The circle of ten values.

    handles: of each its angle (radians), radius (0 to 1), colour, letter, label and text (what screen readers say);
    active: the one that comes where the circle is touched. rings: radius and label of each. positions: x, y of the
    model's own value vectors, radius 1 the ideal circle. before, after: ten radii of a profile, in circular order;
    empty for none. told: a line below.

    hand: where a hand is: index, angle, radius, held (False when it lets go), at (differs each time). It is further on
    than `handles`, which its reader sets; positions between two readings are not kept.

    Keyboard, on a handle: left and right turn it (with Shift by a value), Page up and down go to the next value, up
    and down change the radius, Home is off, End full.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    circle = t.Dict().tag(sync=True)
    handles = t.List(t.Dict()).tag(sync=True)
    active = t.Int(0).tag(sync=True)
    rings = t.List().tag(sync=True)
    positions = t.List().tag(sync=True)
    before = t.List(t.Float()).tag(sync=True)
    after = t.List(t.Float()).tag(sync=True)
    told = t.Unicode("").tag(sync=True)
    hand = t.Dict().tag(sync=True)

    def __init__(self, positions: Sequence[tuple[float, float]] = ()):
        circle = {"names": list(VALUES), "angles": angles().tolist(), "colours": [COLOURS[value] for value in VALUES]}
        super().__init__(circle=circle, positions=[list(place) for place in positions])
