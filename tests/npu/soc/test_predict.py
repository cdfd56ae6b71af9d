"""What the model says, and how far it is from what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.jobs import CPU, NPU
from npu.soc import calibrate, validate
from npu.soc.predict import Decode, mean_prefill_s, plan_prefill, power_w
from npu.soc.published import BUBBLES_IN_ORDER, LATENCY_SAVED, PREFILL_CALIBRATED, QWEN
from npu.soc.socs import SOCS

SOC = SOCS["SM8650"]


def test_out_of_order_on_the_published_model() -> None:
    """Qwen1.5-1.8B: 37 % bubbles in order, under 1 % out of order, 18 to 44 % less latency."""
    prefill = plan_prefill(SOC, QWEN, 1024)
    assert prefill.in_order.bubble_share() == pytest.approx(BUBBLES_IN_ORDER, abs=0.005)
    assert prefill.out_of_order.bubble_share() < 0.01
    saved = 1 - prefill.out_of_order.makespan_s / prefill.in_order.makespan_s
    assert LATENCY_SAVED[0] < saved < LATENCY_SAVED[1]
    assert prefill.lower_bound_s <= prefill.out_of_order.makespan_s < 1.05 * prefill.lower_bound_s


def test_calibrated_values_are_what_the_published_figures_give() -> None:
    fitted = calibrate.fit_matmuls(SOC) | calibrate.fit_powers(SOC)
    fitted["cpu_float_ops_s"] = calibrate.fit_cpu(SOC)
    for name, amount in fitted.items():
        assert SOC.values[name].amount == pytest.approx(amount, rel=0.01), name
    row = PREFILL_CALIBRATED
    assert mean_prefill_s(SOC, row.model, row.lengths) == pytest.approx(row.seconds, rel=0.01)


@pytest.fixture(scope="module")
def rows() -> list[validate.Row]:
    return validate.validate()


def test_long_prefills_of_all_models_are_near_the_table(rows: list[validate.Row]) -> None:
    long = [row for row in rows if "2wiki" in row.what or "TriviaQA" in row.what]
    assert [row.calibrated for row in long].count(True) == 1
    assert max(abs(row.error) for row in long) < 0.17
    assert validate.median_error(long) < 0.1


def test_all_tables_and_what_is_held_out(rows: list[validate.Row]) -> None:
    assert len(rows) == validate.ROW_COUNT
    assert validate.median_error(rows) < 0.15
    assert sum(not row.calibrated for row in rows) > 3 * sum(row.calibrated for row in rows)
    tables = {row.table for row in rows} - {validate.PREFILL_TABLE}
    for table in tables:
        assert validate.median_error(row for row in rows if row.table == table) < 0.15, table
    unexplained = [row for row in rows if abs(row.error) > 0.2 and not row.note]
    assert unexplained == []


def test_the_page_has_what_the_command_prints(rows: list[validate.Row]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "soc.md").read_text(encoding="utf-8")
    assert "\n".join(validate.report(rows)) in page


def test_energy_is_power_times_time() -> None:
    assert power_w(SOC, 0, 0) == SOC.idle_w
    step = Decode(SOC, CPU, SOC.cpu_decode_bytes_s / 10)
    assert step.seconds == pytest.approx(0.1)
    assert step.joules == pytest.approx(0.1 * (SOC.idle_w + SOC.cpu_w))
    assert Decode(SOC, NPU, 1e9).seconds == pytest.approx(1e9 / SOC.npu_dma_bytes_s)
    prefill = plan_prefill(SOC, QWEN, 256)
    assert SOC.idle_w < prefill.watts < SOC.idle_w + SOC.npu_w + SOC.cpu_w
    assert prefill.joules == pytest.approx(prefill.watts * prefill.out_of_order.makespan_s)
