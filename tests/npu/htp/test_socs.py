"""SoCs by name, and which one this machine is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import UnknownTarget
from npu.htp.device import this_soc
from npu.htp.socs import SOCS, find_soc

ASKED = ("SM8550", "SM8650", "SM8750", "SM8850", "SC8380XP", "QCS6490", "QCS8550")


@pytest.mark.parametrize("name", ASKED)
def test_names_are_found(name: str) -> None:
    assert find_soc(name).name == name
    assert find_soc(name.lower()).target.unit == "npu:htp"


def test_a_version_has_a_soc() -> None:
    for version in {soc.version for soc in SOCS.values()}:
        assert find_soc(f"npu:htp-v{version}").version == version


@pytest.mark.parametrize("name", ["SM9999", "", "npu:htp-v70", "75"])
def test_others_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownTarget, match=name or "SoC ''"):
        find_soc(name)


def test_numbers_are_unique() -> None:
    assert len({soc.number for soc in SOCS.values()}) == len(SOCS)


def test_the_machine_file_names_the_soc(tmp_path: Path) -> None:
    path = tmp_path / "machine"
    assert this_soc(path) is None
    path.write_text("SM8650\n")
    assert this_soc(path) == "SM8650"
    path.write_text("Toaster\n")
    assert this_soc(path) is None
