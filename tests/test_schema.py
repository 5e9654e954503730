from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from capfilt.errors import ConfigError
from capfilt.schema import build, check, differences, keys, parse_overrides, to_dict


@dataclass(frozen=True)
class Wheel:
    size: float = 1.0

    def __post_init__(self) -> None:
        check(self.size > 0, f"size must be above 0, is {self.size}")


@dataclass(frozen=True)
class Car:
    name: str
    wheels: tuple[Wheel, ...] = ()
    beta: tuple[float, float] = (0.9, 0.999)
    spare: Wheel = field(default_factory=Wheel)


def test_build_list_of_sections_and_back() -> None:
    tree = {"name": "a", "wheels": [{"size": 2}, {}], "beta": [0.8, 1], "spare": {"size": 1.0}}
    car = build(Car, tree)
    assert car == Car("a", (Wheel(2.0), Wheel()), (0.8, 1.0))
    assert build(Car, to_dict(car)) == car
    assert keys(Car) == ["name", "wheels", "wheels[].size", "beta", "spare", "spare.size"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "name: is not set"),
        ({"name": "a", "wheels": {"size": 1}}, "wheels: must be a list, is {'size': 1}"),
        ({"name": "a", "wheels": [{"sise": 1}]}, "'wheels[0].sise'; did you mean 'wheels[].size'"),
        ({"name": "a", "wheels": [{}, {"size": -1}]}, "wheels[1].size must be above 0, is -1"),
        ({"name": {"FILL_IN": "of the car"}}, "name: is to be filled in: of the car"),
        ({"name": "a", "wheels": [{"size": {"FILL_IN": "cm"}}]}, "wheels[0].size: is to be filled"),
        ({"name": "a", "beta": [1]}, "beta: must be a list of 2, is [1]"),
        ({"name": "a", "beta": [1, "b"]}, "beta[1]: must be of type float, is 'b'"),
    ],
)
def test_build_bad_tree_names_the_key(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Car, tree)
    assert message in str(caught.value)


def test_build_reads_an_exponent_without_a_point_as_a_number() -> None:
    tree = parse_overrides(["spare.size=3e-4"], example="a=b")
    assert build(Car, {"name": "a", **tree}).spare.size == 3e-4


def test_differences_names_keys_in_both_directions() -> None:
    old, new = {"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 1, "d": 3}, "e": 4}
    assert differences(old, new) == ["a: 1 -> None", "b.d: 2 -> 3", "e: None -> 4"]
