"""Gate and up by bands: the same to the bit as whole, by any threads in any order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge
from converter.convert import convert
from converter.synth import synthesize
from cpu.backend import BACKEND
from cpu.lowering import FEW_ROWS, Lowering
from cpu.memory import Memory
from cpu.program import CpuProgram, Table
from edge.model import Model
from edge.target import this_machine
from tests.checkpoints import make_checkpoint
from tests.golden.variants import VARIANTS

PLAIN = [str(t) for t in BACKEND.targets(this_machine()) if "amx" not in t.features]

native = pytest.mark.skipif(not PLAIN, reason="no code generator for this machine")

# The longest chunk, in part, and a shorter one; both have more rows than go without bands.
TOKENS = 150

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A tiny model whose feed-forward is of some bands, the last one smaller and not whole."""
    folder = tmp_path_factory.mktemp("bands")

    def make(form: str, activation: str = "silu") -> Path:
        source, out = folder / activation, folder / f"{activation}-{form}.lutra"
        if not source.exists():
            make_checkpoint(
                source,
                intermediate_size=590,
                num_hidden_layers=1,
                hidden_act=activation,
                max_position_embeddings=400,
            )
        if not out.exists():
            convert(source, out, weights=form, head=form)
        return out

    return make


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpu.lowering.TILES_EACH", 2)


def logits(model: Model) -> NDArray[np.float32]:
    return model.logits(np.random.default_rng(0).integers(0, 300, TOKENS))


def whole(path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> NDArray[np.float32]:
    """Logits of a model without bands."""
    with monkeypatch.context() as patch:
        patch.setattr("cpu.lowering.find_banded", lambda *_: {})
        return logits(edge.load(path, target=target, threads=1))


@native
@pytest.mark.parametrize("target", PLAIN)
@pytest.mark.parametrize(
    ("form", "activation"),
    [
        ("w4g32", "silu"),
        ("w2g64a", "gelu"),
        ("w3g128a", "gelu_pytorch_tanh"),  # blocks of two tiles
        ("ternary", "relu2"),
        ("w8gc", "gelu"),
    ],
)
def test_bands_give_what_the_whole_does(
    form: str, activation: str, target: str, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(form, activation)
    wanted = whole(path, monkeypatch, target)
    for threads in range(1, min(3, len(os.sched_getaffinity(0))) + 1):
        assert np.array_equal(logits(edge.load(path, target=target, threads=threads)), wanted)


def in_turns(program: CpuProgram, order: Sequence[int]) -> Callable[[Table, int], None]:
    """A step whose threads run one after another, in this order from barrier to barrier."""

    def step(table: Table, calls: int) -> None:
        ends = np.flatnonzero(table.rows[:calls, 2]) + 1
        for part in np.split(table.rows[:calls], ends):
            rows = part.copy()
            rows[:, 2] = 0
            for thread in order:
                program._native.step(rows.ctypes.data, len(rows), 0, thread, len(order))

    return step


@native
@pytest.mark.parametrize("form", ["w4g64", "w4g128"])
def test_no_thread_reads_or_writes_what_another_has_not_left(
    form: str, bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(form)
    wanted = whole(path, monkeypatch, PLAIN[0])
    for order in ((0, 1), (1, 0), (0, 1, 2), (2, 1, 0), (1, 2, 0)):
        model = edge.load(path, target=PLAIN[0], threads=1)
        assert isinstance(model.program, CpuProgram)
        monkeypatch.setattr(model.program.team, "count", len(order))
        monkeypatch.setattr(model.program, "_step", in_turns(model.program, order))
        assert np.array_equal(logits(model), wanted)


@pytest.mark.parametrize(
    ("name", "form", "rows", "used"),
    [
        ("llama", "w4g32", FEW_ROWS + 1, True),
        ("llama", "w4g32", FEW_ROWS, False),
        ("llama", "f32", FEW_ROWS + 1, False),
        ("bitnet_ternary", "w4g32", FEW_ROWS + 1, False),  # a norm is between
    ],
)
def test_bands_are_of_what_only_a_quantized_product_reads(
    name: str, form: str, rows: int, used: bool, tmp_path: Path
) -> None:
    variant = VARIANTS[name]
    synthesize(variant.config, tmp_path / "source", seed=variant.seed, dtype="f32")
    convert(tmp_path / "source", tmp_path / "m", weights=form, head=form, context=variant.context)
    opened = edge.load(tmp_path / "m", target="ref").bundle
    lowering = Lowering(opened, Memory(), 2, rows, "f32", matrix_unit=False)
    kernels = {call.kernel.name for call in lowering.run().calls}
    assert ("quantize_sliced_b32" in kernels) == used
