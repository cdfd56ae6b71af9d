"""Where a program runs, in words."""

from __future__ import annotations

from dataclasses import dataclass

from edge.target import Target
from npu.htp.provider import emulated

STAND_IN = Target("npu", "ort")


@dataclass(frozen=True)
class Placed:
    """Where a program runs: its target, and in words, with what stands in for it."""

    target: Target
    text: str
    emulated: bool


def place(target: Target) -> Placed:
    """Where a target runs on this machine."""
    if target == STAND_IN:
        text = f"{target} (ONNX Runtime's CPU provider, standing in for an NPU)"
        return Placed(target, text, emulated=False)
    if emulated():
        return Placed(target, f"{target} (Qualcomm's emulation)", emulated=True)
    return Placed(target, str(target), emulated=False)
