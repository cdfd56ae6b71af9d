"""Computes the calibrated values of SM8650 from the published figures, one figure for each.

The line of the matmul table gives dispatch and weight rate; one prefill time of 25 gives the rate
of activations; the share of bubbles in order gives the CPU's rate; three of T-MAN's powers give
idle, NPU and CPU watts; one of T-MAC's rates gives the rate of decoding. All else is held out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge.jobs import CPU, NPU
from edge.schedule import IN_ORDER, simulate
from npu.soc.model import prefill_jobs
from npu.soc.predict import mean_prefill_s, plan_prefill
from npu.soc.published import (
    BITNET,
    BITNET_CPP,
    BUBBLES_IN_ORDER,
    ENERGY_TOKENS,
    LLAMA,
    LLM_NPU_ROW,
    MATMULS,
    PREFILL_CALIBRATED,
    QNN,
    QWEN,
    T_MAC_DECODE,
)
from npu.soc.socs import Soc
from npu.soc.work import ModelWork

_ROUNDS = 3


def calibrate(soc: Soc) -> dict[str, float]:
    """The calibrated values by name, starting from those of `soc`, which need not be near."""
    for _ in range(_ROUNDS):  # each value moves the others a little
        soc = soc.with_amounts(fit_matmuls(soc))
        soc = soc.with_amounts({"npu_activation_bytes_s": fit_activations(soc)})
        soc = soc.with_amounts({"cpu_float_ops_s": fit_cpu(soc)})
    _, bits, tok_s = T_MAC_DECODE[0]
    decode = decode_bytes(LLAMA, bits, 128) * tok_s
    soc = soc.with_amounts({"cpu_decode_bytes_s": decode} | fit_powers(soc))
    return {n: v.amount for n, v in soc.values.items() if v.origin == "calibrated"}


def fit_matmuls(soc: Soc) -> dict[str, float]:
    """Dispatch and weight rate: least squares of the relative errors of the six matmul times."""
    times = np.array([m.npu_ms / 1e3 for m in MATMULS])
    values = np.array([m.rows * (m.matrix.width + m.matrix.out) for m in MATMULS])
    weights = np.array([m.matrix.weights for m in MATMULS])
    columns = np.stack([1 / times, weights / times], axis=1)
    rest = 1 - values / soc.npu_activation_bytes_s / times
    (dispatch, slope), *_ = np.linalg.lstsq(columns, rest, rcond=None)
    return {"npu_dispatch_s": float(dispatch), "npu_weight_bytes_s": float(1 / slope)}


def fit_activations(soc: Soc) -> float:
    """The rate that meets one prefill time, of LLaMA-2-7B on 2wiki."""
    row = PREFILL_CALIBRATED

    def excess(rate: float) -> float:
        changed = soc.with_amounts({"npu_activation_bytes_s": rate})
        return mean_prefill_s(changed, row.model, row.lengths) - row.seconds

    return _root(excess, 1e9, 10e9)


def fit_cpu(soc: Soc) -> float:
    """The rate of float operations that leaves the NPU waiting as published, in order."""

    def excess(rate: float) -> float:
        jobs = prefill_jobs(soc.with_amounts({"cpu_float_ops_s": rate}), QWEN, 1024)
        return simulate(jobs, IN_ORDER).bubble_share() - BUBBLES_IN_ORDER

    return _root(excess, 50e9, 2000e9)


def fit_powers(soc: Soc) -> dict[str, float]:
    """Idle, NPU and CPU watts from three means: NPU alone, CPU alone, and both in llm.npu."""
    timeline = plan_prefill(soc, BITNET, ENERGY_TOKENS).out_of_order
    npu, cpu = (timeline.busy_s(name) / timeline.makespan_s for name in (NPU, CPU))
    equations = np.array([[1, 1, 0], [1, 0, 1], [1, npu, cpu]], float)
    watts = [QNN.prefill_w, BITNET_CPP.decode_w, LLM_NPU_ROW.prefill_w]
    idle, npu_w, cpu_w = np.linalg.solve(equations, watts)
    return {"idle_w": float(idle), "npu_w": float(npu_w), "cpu_w": float(cpu_w)}


def decode_bytes(work: ModelWork, bits: int, group: int | None = None) -> float:
    """Bytes that one token reads: weights with a 16-bit scale a group, and a 16-bit head."""
    scale_bits = 16 / group if group is not None else 0
    return work.weights * (bits + scale_bits) / 8 + 2 * work.head.weights


def _root(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is 0, to one part in 10^4."""
    while high / low > 1 + 1e-4:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low * high) ** 0.5
