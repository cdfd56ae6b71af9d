"""Modelled decode by lookup beside T-MAN's published figures."""

from __future__ import annotations

import json

import pytest

from npu.hvx import model
from npu.soc.socs import SOCS


def test_bitnet_is_near_what_t_man_measured() -> None:
    """Neither row is calibrated on; of QNN, the power is off, too."""
    made = [row for row in model.rows(SOCS["SM8650"]) if row.published is not None]
    assert [row.weights for row in made] == ["ternary", "QNN, 4 bits a channel"]
    for row in made:
        for number, published in row.figures():
            assert published is not None
            assert abs(number / published - 1) < (0.07 if row.weights == "ternary" else 0.13)


def test_memory_decides_at_clocks_that_sources_name() -> None:
    clocks = [row.clock_mhz for row in model.rows(SOCS["SM8650"]) if row.clock_mhz is not None]
    assert len(clocks) == 5
    assert max(clocks) < 1000


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main([]) == 0
    assert capsys.readouterr().out.count("| Llama-3.1-8B |") == 3
    assert model.main(["--soc", "SM8750", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "BitNet-2B"
    assert model.main(["--soc", "SM1"]) != 0
