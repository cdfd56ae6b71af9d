"""What the model says, and how far it is from what was published."""

from __future__ import annotations

from itertools import islice

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


def test_long_prefills_of_all_models_are_near_the_table() -> None:
    rows = list(islice(validate.prefill_rows(SOC), 10))  # 2wiki and TriviaQA
    assert [row.calibrated for row in rows].count(True) == 1
    assert max(abs(row.error) for row in rows) < 0.17
    assert validate.median_error(rows) < 0.1


def test_the_other_tables() -> None:
    matmuls = list(validate.matmul_rows(SOC))
    assert validate.median_error(matmuls) < 0.1
    energy = list(validate.energy_rows(SOC))
    assert len(energy) == 16
    assert validate.median_error(row for row in energy if not row.calibrated) < 0.1
    assert all(row.note for row in energy if abs(row.error) > 0.15)
    decode = list(validate.decode_rows(SOC))
    assert abs(decode[1].error) < 0.15


def test_the_report_has_every_row_and_every_note() -> None:
    rows = [*validate.matmul_rows(SOC), *validate.decode_rows(SOC)]
    text = "\n".join(validate.report(rows))
    assert all(f"| {row.what} |" in text for row in rows)
    assert "All tables: median error" in text
    for number, note in enumerate(validate.NOTES, 1):
        assert note.startswith(f"{number}. ")
        assert note in text


def test_energy_is_power_times_time() -> None:
    assert power_w(SOC, 0, 0) == SOC.idle_w
    step = Decode(SOC, CPU, SOC.cpu_decode_bytes_s / 10)
    assert step.seconds == pytest.approx(0.1)
    assert step.joules == pytest.approx(0.1 * (SOC.idle_w + SOC.cpu_w))
    assert Decode(SOC, NPU, 1e9).seconds == pytest.approx(1e9 / SOC.npu_dma_bytes_s)
    prefill = plan_prefill(SOC, QWEN, 256)
    assert SOC.idle_w < prefill.watts < SOC.idle_w + SOC.npu_w + SOC.cpu_w
    assert prefill.joules == pytest.approx(prefill.watts * prefill.out_of_order.makespan_s)
