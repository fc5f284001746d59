"""Dataclasses as JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from torchcbl.lab.codec import as_json, from_json


@dataclass(frozen=True)
class Inner:
    at: tuple[float, ...]
    name: str = "none"


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    pair: tuple[int, str]
    options: Mapping[str, object]
    flags: tuple[bool, ...]
    maybe: int | None = None

    def __post_init__(self) -> None:
        if self.pair[0] < 0:
            raise ValueError(f"pair must not be negative, got {self.pair[0]}")


VALUE = Outer(
    (Inner((1.0, 2.5)), Inner((), "x [ 1 ] {y}")), (3, 'a "b"  c'), {"eps": [1.0, 2.0], "n": 7}, (True, False)
)


def test_there_and_back() -> None:
    assert from_json(Outer, as_json(VALUE)) == VALUE


def test_innermost_lists_stand_on_one_line() -> None:
    text = as_json(VALUE)
    assert '"at": [1.0, 2.5]' in text
    assert text.endswith("}\n")


def test_numbers_keep_as_many_digits_as_asked_for_and_nan_is_null() -> None:
    back = from_json(Inner, as_json(Inner((1 / 3, math.nan, math.inf, 12345678.9)), digits=7))
    assert back.at[0] == pytest.approx(1 / 3, rel=1e-6)
    assert math.isnan(back.at[1])
    assert math.isnan(back.at[2])
    assert back.at[3] == 12345680.0
    assert from_json(Inner, as_json(Inner((1 / 3,)))) == Inner((1 / 3,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"pair": [3, "a', '"pair": [3.5, "a'), "pair should be of type int, got 3.5"),
        (('"pair": [3, "a', '"pair": [true, "a'), "pair should be of type int, got True"),
        (('"pair": [3, "a', '"pair": [3, 4, "a'), "pair should hold 2 values, got 3"),
        (('"flags": [true, false]', '"flags": true'), "flags should be of type list"),
        (('"flags": [true, false],', ""), "the file lacks \\['flags'\\]"),
        (('"flags"', '"flogs"'), "the file lacks \\['flags'\\]"),
        (('"pair": [3,', '"pair": [-3,'), "pair must not be negative, got -3"),
        (("{\n", "{{\n"), "Expecting property name"),
    ],
)
def test_what_does_not_fit_is_named(change: tuple[str, str], message: str) -> None:
    text = as_json(VALUE)
    assert change[0] in text
    with pytest.raises(ValueError, match=message):
        from_json(Outer, text.replace(*change, 1))


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="the file holds unknown \\['b'\\]"):
        from_json(Inner, '{"at": [], "b": 1}')


def test_null_where_none_is_allowed() -> None:
    text = as_json(VALUE)
    assert '"maybe": null' in text
    assert from_json(Outer, text.replace('"maybe": null', '"maybe": 4')).maybe == 4
