"""What is known of four SoCs, each value with where it comes from.

`stated` values are printed in the source; `derived` ones are computed from stated ones as the note
says; `calibrated` ones are what makes the model meet a published figure (`npu/soc/calibrate.py`
computes them again). Figures of the other SoCs are scaled from SM8650's, by far the best measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edge.errors import UsageError

Origin = Literal["stated", "derived", "calibrated"]

LLM_NPU = "llm.npu, arXiv 2407.05858"
T_MAN = "T-MAN, arXiv 2511.11248"
T_MAC = "T-MAC, arXiv 2407.00088"
HETERO = "HeteroInfer, arXiv 2501.14794"
SCALING = "arXiv 2509.23324"
EXECUTORCH = "ExecuTorch, backends/qualcomm/serialization/qc_schema.py"


@dataclass(frozen=True)
class Value:
    """A number with where it comes from."""

    amount: float
    origin: Origin
    source: str


@dataclass(frozen=True)
class Soc:
    """A SoC. Rates are per second, sizes in bytes, power in watts; powers add up.

    `npu_weight_bytes_s` and `npu_activation_bytes_s` are what 8-bit graphs through QNN reach, where
    weights and values are counted in bytes; `npu_dma_bytes_s` what a hand-written kernel reaches.
    `hand_over_s` is one synchronisation of CPU and NPU. `values` has every number's origin.
    """

    name: str
    product: str
    target: str
    values: Mapping[str, Value]
    dram_bytes_s: float
    npu_dispatch_s: float
    npu_weight_bytes_s: float
    npu_activation_bytes_s: float
    npu_int8_macs_s: float
    npu_fp16_macs_s: float
    npu_dma_bytes_s: float
    npu_address_bytes: float
    cpu_float_ops_s: float
    cpu_memory_bytes_s: float
    cpu_decode_bytes_s: float
    hand_over_s: float
    idle_w: float
    npu_w: float
    cpu_w: float

    def with_amounts(self, amounts: Mapping[str, float]) -> Soc:
        """The same SoC with other numbers, by name."""
        changed = {n: Value(a, "calibrated", "being calibrated") for n, a in amounts.items()}
        return _soc(self.name, self.product, self.target, {**self.values, **changed})


def _soc(name: str, product: str, target: str, values: Mapping[str, Value]) -> Soc:
    return Soc(name, product, target, values, **{n: v.amount for n, v in values.items()})


def _stated(amount: float, source: str) -> Value:
    return Value(amount, "stated", source)


def _derived(amount: float, source: str) -> Value:
    return Value(amount, "derived", source)


def _calibrated(amount: float, source: str) -> Value:
    return Value(amount, "calibrated", source)


_SM8650 = _soc(
    "SM8650",
    "Snapdragon 8 Gen 3",
    "npu:htp-v75",
    {
        "dram_bytes_s": _derived(76.8e9, "LPDDR5X-4800 (droidholic.com), 64 bit"),
        "npu_dispatch_s": _calibrated(0.444e-3, f"{LLM_NPU}, table 3: intercept of the line"),
        "npu_weight_bytes_s": _calibrated(16.17e9, f"{LLM_NPU}, table 3: slope of the line"),
        "npu_activation_bytes_s": _calibrated(
            2.126e9, f"{LLM_NPU}, table 5: LLaMA-2-7B on 2wiki, 4.62 s"
        ),
        "npu_int8_macs_s": _stated(
            17e12, f"34 TOPS, {HETERO}; {LLM_NPU} says 73, {T_MAC} 15: never the limit at 256 rows"
        ),
        "npu_fp16_macs_s": _stated(6.0e12, f"12.03 TFLOPS measured, {SCALING}"),
        "npu_dma_bytes_s": _stated(59e9, f"{T_MAN}, table 2 (60 GB/s in {SCALING})"),
        "npu_address_bytes": _stated(4e9, f"{LLM_NPU}, section 2.2"),
        "cpu_float_ops_s": _calibrated(
            272.5e9, f"{LLM_NPU}, section 4.4: bubbles of 37 % in order, Qwen1.5-1.8B"
        ),
        "cpu_memory_bytes_s": _stated(42.5e9, f"40 to 45 GB/s for one processor, {HETERO}"),
        "cpu_decode_bytes_s": _calibrated(
            36.7e9, f"{T_MAC}, table 6: Llama-2-7B at 4 bits on OnePlus 12, 10.19 tok/s"
        ),
        "hand_over_s": _stated(90e-6, f"80 to 100 us for a sleep, {HETERO}"),
        "idle_w": _calibrated(1.523, f"{T_MAN}, table 3: llm.npu's prefill at 8.89 W"),
        "npu_w": _calibrated(3.437, f"{T_MAN}, table 3: QNN's prefill at 4.96 W"),
        "cpu_w": _calibrated(6.697, f"{T_MAN}, table 3: bitnet.cpp's decode at 8.22 W"),
    },
)

# What scales a number of SM8650 to another SoC: its name there and the text of the reason.
_NPU_RATES = ("npu_activation_bytes_s", "npu_int8_macs_s", "npu_fp16_macs_s")
_MEMORY_RATES = (
    "npu_weight_bytes_s",
    "npu_dma_bytes_s",
    "cpu_memory_bytes_s",
    "cpu_decode_bytes_s",
)
_SAME = ("npu_dispatch_s", "hand_over_s", "idle_w")


@dataclass(frozen=True)
class _Scale:
    """A factor with its reason."""

    factor: float
    reason: str


def _scaled(
    name: str,
    product: str,
    target: str,
    *,
    dram: Value,
    address: Value,
    npu: _Scale,
    npu_power: _Scale,
    cpu: _Scale,
    cpu_power: _Scale,
) -> Soc:
    """A SoC whose rates are SM8650's times published ratios."""
    memory = _Scale(dram.amount / _SM8650.dram_bytes_s, "memory's rate")
    scales = {
        **dict.fromkeys(_NPU_RATES, npu),
        **dict.fromkeys(_MEMORY_RATES, memory),
        **dict.fromkeys(_SAME, _Scale(1.0, "taken as the same")),
        "cpu_float_ops_s": cpu,
        "npu_w": npu_power,
        "cpu_w": cpu_power,
    }
    values = {
        key: _derived(
            scale.factor * _SM8650.values[key].amount,
            f"SM8650 x {scale.factor:.2f}: {scale.reason}",
        )
        for key, scale in scales.items()
    }
    return _soc(
        name, product, target, {"dram_bytes_s": dram, "npu_address_bytes": address, **values}
    )


_SM8550 = _scaled(
    "SM8550",
    "Snapdragon 8 Gen 2",
    "npu:htp-v73",
    dram=_derived(67.2e9, "LPDDR5X-4200 (droidholic.com), 64 bit"),
    address=_stated(2 * 2.0**30, SCALING),
    npu=_Scale(1 / 1.98, "8 Gen 3's NPU is 98 % faster (Qualcomm, liliputing.com)"),
    npu_power=_Scale(1.40 / 1.98, "8 Gen 3's NPU is 98 % faster, 40 % better per watt (Qualcomm)"),
    cpu=_Scale(1 / 1.30, "8 Gen 3's CPU is 30 % faster (Qualcomm, liliputing.com)"),
    cpu_power=_Scale(1.20 / 1.30, "8 Gen 3's CPU is 30 % faster, 20 % better per watt (Qualcomm)"),
)

_SM8750 = _scaled(
    "SM8750",
    "Snapdragon 8 Elite",
    "npu:htp-v79",
    dram=_stated(84.8e9, "LPDDR5X-5300 (geektopia.es)"),
    address=_stated(4e9, f"32-bit addresses a session, {SCALING}"),
    npu=_Scale(
        1.45, f"45 % faster (Qualcomm, xda-developers.com); {HETERO} found 10.5 % in prefill"
    ),
    npu_power=_Scale(1.0, "45 % faster, 45 % better per watt (Qualcomm, xda-developers.com)"),
    cpu=_Scale(1.45, "45 % faster (Qualcomm, expertreviews.com)"),
    cpu_power=_Scale(1.45 / 1.44, "45 % faster, 44 % better per watt (expertreviews.com)"),
)

_SC8380XP = _scaled(
    "SC8380XP",
    "Snapdragon X Elite",
    "npu:htp-v73",
    dram=_stated(135e9, "LPDDR5X-8448, 128 bit (notebookcheck.net)"),
    address=_derived(4e9, f"32-bit addresses a session, {SCALING}; not stated for this SoC"),
    npu=_Scale(45 / 34, f"45 TOPS (Qualcomm; {T_MAN}) to SM8650's 34"),
    npu_power=_Scale(45 / 34, "taken as its rate: no figure was found"),
    cpu=_Scale(1.45 * 45.6 / 29.8, "SM8750 by cores x GHz: 12 x 3.8 to 2 x 4.32 + 6 x 3.53"),
    cpu_power=_Scale(45.6 / 29.8, "taken as its cores x GHz to SM8750's: no figure was found"),
)

SOCS: dict[str, Soc] = {soc.name: soc for soc in (_SM8550, _SM8650, _SM8750, _SC8380XP)}


def find_soc(name: str) -> Soc:
    """The SoC with this model number. Raises UsageError."""
    if name.upper() not in SOCS:
        raise UsageError(f"SoC {name!r} is not known", f"use one of {', '.join(SOCS)}")
    return SOCS[name.upper()]


def value_rows(soc: Soc) -> Iterator[tuple[str, str, str, str]]:
    """A SoC's values as rows of a table."""
    yield "value", "amount", "origin", "source"
    for name, value in soc.values.items():
        yield name, f"{value.amount:.4g}", value.origin, value.source
