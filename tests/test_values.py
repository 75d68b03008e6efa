"""Schwartz's theory as data: what the theory says, and that nothing unknown passes."""

import doctest

import numpy as np
import pandas as pd
import pytest

from workbench import values
from workbench.errors import WorkbenchError
from workbench.values import (
    AXES,
    DEFINITIONS,
    GROUPS,
    LAYOUTS,
    ORDERS,
    REFINED,
    VALUES,
    VALUES19,
    angles,
    check_value,
    circular_order,
    circular_step,
    circular_steps,
    groups_of,
    neighbours,
    opposite,
    ten_from_nineteen,
)

SCRAMBLED = [0, 4, 8, 1, 3, 2, 9, 7, 6, 5]


def test_examples_in_docstrings():
    assert doctest.testmod(values).failed == 0


def test_the_ten_values_in_circular_order():
    assert " ".join(VALUES) == (
        "self-direction stimulation hedonism achievement power "
        "security conformity tradition benevolence universalism"
    )
    assert tuple(DEFINITIONS) == VALUES
    assert DEFINITIONS["hedonism"] == "pleasure and sensuous gratification for oneself"
    assert DEFINITIONS["universalism"].endswith("all people and of nature")


def test_hedonism_alone_belongs_to_two_groups():
    assert [value for value in VALUES if len(groups_of(value)) != 1] == ["hedonism"]
    assert groups_of("hedonism") == ("openness to change", "self-enhancement")
    assert {group for axis in AXES for group in axis} == set(GROUPS)


def test_groups_are_arcs_of_the_circle_and_the_axes_oppose_them():
    place = dict(zip(VALUES, np.exp(1j * angles()), strict=True))
    middle = {group: sum(place[value] for value in held) for group, held in GROUPS.items()}
    for group, held in GROUPS.items():
        assert sum(circular_step(a, b) for a, b in zip(held, held[1:], strict=False)) == len(held) - 1, group
    for one, other in AXES:
        assert np.cos(np.angle(middle[one]) - np.angle(middle[other])) < -0.8


def test_ten_equal_steps():
    assert np.degrees(angles()) == pytest.approx(np.arange(0, 360, 36))
    assert circular_step("power", "universalism") == circular_step("universalism", "power") == 5
    assert circular_step("power", "power") == 0
    assert np.bincount(circular_steps()[np.triu_indices(10, 1)]).tolist() == [0, 10, 10, 10, 10, 5]
    assert neighbours("self-direction") == ("universalism", "stimulation")
    assert neighbours("universalism") == ("benevolence", "self-direction")
    assert [opposite(value) for value in VALUES] == [*VALUES[5:], *VALUES[:5]]


def test_nine_wedges_hold_conformity_and_tradition_together():
    at = dict(zip(VALUES, np.degrees(angles("wedges")), strict=True))
    assert at["conformity"] == at["tradition"] == pytest.approx(240)
    assert sorted(set(np.round(list(at.values()), 6))) == pytest.approx(np.arange(0, 360, 40))
    assert circular_step("conformity", "tradition", "wedges") == 0
    assert np.bincount(circular_steps("wedges")[np.triu_indices(10, 1)]).tolist() == [1, 11, 11, 11, 11]


def test_the_other_order_exchanges_benevolence_and_universalism():
    usual, swapped = angles(), angles(order="swapped")
    assert swapped[[8, 9]] == pytest.approx(usual[[9, 8]]) and swapped[:8] == pytest.approx(usual[:8])
    assert opposite("achievement", "swapped") == "universalism"
    assert neighbours("self-direction", "swapped")[0] == "benevolence"


def test_a_planted_order_by_index_or_by_name():
    names = [VALUES[i] for i in SCRAMBLED]
    assert circular_order(SCRAMBLED) == circular_order(names) == tuple(names)
    assert np.argsort(angles(order=SCRAMBLED)).tolist() == SCRAMBLED
    assert circular_step("self-direction", "power", order=SCRAMBLED) == 1
    assert circular_order() == circular_order("schwartz") == ORDERS["schwartz"] == VALUES


@pytest.mark.parametrize("order", [[0, 1], [0] * 10, [*range(1, 11)], [*VALUES[:9], "power"], 7])
def test_no_order_that_is_not_a_permutation(order):
    with pytest.raises(WorkbenchError, match="not a permutation of the ten values"):
        circular_order(order)


def test_unknown_order_and_layout_are_named():
    with pytest.raises(WorkbenchError, match="'mirror'.*\nAllowed: schwartz, swapped"):
        circular_order("mirror")
    with pytest.raises(WorkbenchError, match="'ten'.*\nAllowed: equal, wedges"):
        angles("ten")
    assert set(LAYOUTS) == {"equal", "wedges"}


@pytest.mark.parametrize("wrong, meant", [("Self Direction", "self-direction"), ("HEDONISM", "hedonism"),
                                          ("univeralism", "universalism"), ("self_direct", "self-direction")])
def test_a_close_match_is_offered(wrong, meant):
    with pytest.raises(WorkbenchError, match=f"'{wrong}'") as error:
        check_value(wrong)
    assert f"Did you mean '{meant}'?" in str(error.value) and "Allowed: self-direction, " in str(error.value)


def test_no_match_is_offered_where_none_is_close():
    with pytest.raises(WorkbenchError) as error:
        check_value("xyz")
    assert "mean" not in str(error.value)
    for wrong in (None, 3, ["power"]):
        with pytest.raises(WorkbenchError, match="no value of that name"):
            check_value(wrong)
    assert check_value("power") == "power" and check_value("face", VALUES19) == "face"


def test_every_function_refuses_an_unknown_value():
    for ask in (groups_of, neighbours, opposite, lambda v: circular_step("power", v)):
        with pytest.raises(WorkbenchError, match="'powr'"):
            ask("powr")


def test_ten_from_nineteen():
    parts = [part for held in REFINED.values() for part in held]
    assert len(VALUES19) == len(set(VALUES19)) == 19
    assert sorted([*parts, "face"]) == sorted(VALUES19) and tuple(REFINED) == VALUES
    scores = dict.fromkeys(VALUES19, 1.0)
    scores |= {"power-dominance": 2.0, "power-resources": 5.0, "humility": 4.0, "face": 99.0}
    ten = ten_from_nineteen(scores)
    assert ten == dict.fromkeys(VALUES, 1.0) | {"power": 3.5, "tradition": 2.5}
    people = pd.DataFrame([scores, scores])
    assert list(pd.DataFrame(ten_from_nineteen(people)).columns) == list(VALUES)
    assert ten_from_nineteen(people)["power"].tolist() == [3.5, 3.5]
    del scores["humility"]
    with pytest.raises(WorkbenchError, match="no score for humility"):
        ten_from_nineteen(scores)
