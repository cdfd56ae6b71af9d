from __future__ import annotations

import pytest

from edge.errors import UsageError
from edge.target import Target
from npu.soc.socs import SOCS, find_soc, value_rows


@pytest.mark.parametrize("name", SOCS)
def test_every_value_is_positive_and_has_a_source(name: str) -> None:
    soc = SOCS[name]
    amounts = {k: v for k, v in vars(soc).items() if isinstance(v, float)}
    assert amounts == {key: value.amount for key, value in soc.values.items()}
    for key, value in soc.values.items():
        assert value.amount > 0, key
        assert len(value.source) > 10, key
        assert value.origin in ("stated", "derived", "calibrated")
    assert Target.parse(soc.target).unit == "npu:htp"
    assert len(list(value_rows(soc))) == len(amounts) + 1


def test_only_the_best_measured_soc_is_calibrated() -> None:
    calibrated = {
        name for name, soc in SOCS.items() for v in soc.values.values() if v.origin == "calibrated"
    }
    assert calibrated == {"SM8650"}


def test_socs_are_found_by_number() -> None:
    assert find_soc("sm8750").product == "Snapdragon 8 Elite"
    with pytest.raises(UsageError, match=r"SoC 'SM1'.*SM8550, SM8650, SM8750, SC8380XP"):
        find_soc("SM1")
