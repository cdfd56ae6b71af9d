from __future__ import annotations

import pytest

from edge.errors import UnknownFormat
from edge.formats import Format

NAMES = [
    *("f16", "f32", "w8gc", "w8g32", "w8g64a", "w4g32", "w4g64", "w4g128", "w4gc", "w4g64a"),
    *(
        "w1g32",
        "w1g64a",
        "w1g128",
        "w1gc",
        "w3g32",
        "w3g128a",
        "w2g64",
        "w2gca",
        "ternary",
        "ternaryg64",
        "ternarygc",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_text_form_round_trips(name: str) -> None:
    assert str(Format.parse(name)) == name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("w5g64", "5 bits"),
        ("w4g48", "group of 48"),
        ("w4", "w<bits>g<group>"),
        ("q4_0", "q4_0"),
        ("W4G64", "W4G64"),
        ("ternarya", "ternarya"),
        ("w4g64 ", "w4g64 "),
        ("", "''"),
        ("f8", "f8"),
    ],
)
def test_unknown_formats_are_refused_with_what_was_found(text: str, named: str) -> None:
    with pytest.raises(UnknownFormat, match=named) as error:
        Format.parse(text)
    assert "w4g64" in error.value.cure


def test_groups_of_a_width_that_the_group_does_not_divide() -> None:
    assert Format.parse("w4g64").group_count(172) == 3
    assert Format.parse("w4gc").group_count(172) == 1
    assert Format.parse("w4gc").group_size(172) == 172


def test_the_symmetric_zero_is_the_middle_code() -> None:
    zeros = {
        name: Format.parse(name).zero
        for name in ("w1g64", "w2g64", "w3g64", "w4g64", "w8gc", "ternary")
    }
    assert zeros == {"w1g64": 0.5, "w2g64": 2, "w3g64": 4, "w4g64": 8, "w8gc": 128, "ternary": 1}
