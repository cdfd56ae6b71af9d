"""Hexagon by version: what its vector unit (HVX) has, as tables for the vector language.

An instruction packet is up to four instructions that run together. HVX has four units: two that
multiply, one that shifts, one that permutes. A plain operation takes any of them; a multiplication
that makes a pair of vectors takes both multipliers; `vlut16` takes the shifter and the permuter;
loading into a register takes any, loading for use in the same packet (`.tmp`) none.

Versions from 68 on have float vectors (`floats`): those of qf32, through which LLVM lowers float32,
and from 79 on IEEE's own, which earlier phones' cores lack. 67, the one that qemu-hexagon runs, has
neither: there the same float kernels have one lane, and use the scalar float instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cpu.codegen.isa import CodeLayout, Expansion, Isa
from cpu.codegen.language import Code, Value
from edge.errors import UnknownTarget
from edge.target import Target
from npu.hvx.floats import VECTOR_LANES, vector_floats

VECTOR_BYTES = 128
TRIPLE = "hexagon-unknown-linux-musl"
EMULATED = 67
FIRST_WITH_FLOATS = 68
FIRST_WITH_IEEE = 79

_DATA_LAYOUT = (
    "e-m:e-p:32:32:32-a:0-n16:32-i64:64:64-i32:32:32-i16:16:16-i1:8:8-f32:32:32-f64:64:64"
    "-v32:32:32-v64:64:64-v512:512:512-v1024:1024:1024-v2048:2048:2048"
)


@dataclass(frozen=True)
class Hexagon(Isa):
    """A Hexagon version. `float_lanes` is how many float32 one operation takes."""

    version: int = EMULATED
    float_lanes: int = 1

    @property
    def lanes(self) -> int:
        return self.float_lanes

    @property
    def assembler_processor(self) -> str:
        """The processor with its features, as `zig cc -mcpu` takes it."""
        v = self.version
        return f"hexagonv{v}+hvx+hvxv{v}+hvx_length128b"


def table(version: int) -> Hexagon:
    """The table of a version."""
    floats = version >= FIRST_WITH_FLOATS
    return Hexagon(
        name=f"hexagon-v{version}",
        triple=TRIPLE,
        processor=f"hexagonv{version}",
        features=f"+hvxv{version},+hvx-length128b{_float_feature(version)}",
        data_layout=_DATA_LAYOUT,
        vector_bytes=VECTOR_BYTES,
        few=Expansion(_no_layout, _no_codes),
        many=Expansion(_no_layout, _no_codes),
        together=(1, 1),
        dot=_no_dot,
        dot_bytes=_no_dot,
        pause=_no_pause,
        keys_together=1,
        floats=vector_floats(version) if floats else None,
        aligned=True,
        version=version,
        float_lanes=VECTOR_LANES if floats else 1,
    )


def _float_feature(version: int) -> str:
    if version >= FIRST_WITH_IEEE:
        return ",+hvx-ieee-fp"
    return ",+hvx-qfloat" if version >= FIRST_WITH_FLOATS else ""


def table_for(target: Target) -> Hexagon:
    """The table of a target such as npu:hvx-v73. Raises UnknownTarget."""
    if target.unit != "npu:hvx":
        raise UnknownTarget(
            f"target {target}: not a Hexagon vector unit", "use one such as npu:hvx-v73"
        )
    return table(int(target.arch.rpartition("v")[2]))


# The CPU's linear kernels expand codes and multiply; here partial sums are looked up (`gemv`).


def _no_layout(bits: int) -> CodeLayout:
    raise TypeError(f"no layout of {bits}-bit codes: npu.hvx.gemv looks up partial sums")


def _no_codes(code: Code, planes: Sequence[Sequence[Value]]) -> Iterator[Value]:
    del code, planes
    raise TypeError("codes are not expanded: npu.hvx.gemv looks up partial sums")


def _no_dot(code: Code, accumulator: Value, codes: Value, activations: Value) -> Value:
    del code, accumulator, codes, activations
    raise TypeError("no dot product of codes: npu.hvx.gemv looks up partial sums")


def _no_pause(code: Code) -> None:
    """Nothing: a worker runs its calls to the end, and meets no other within one."""
    del code
