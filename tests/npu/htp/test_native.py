"""The CPU's part of a prefill: compiled kernels beside their NumPy twins, op by op."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import edge
from edge.backend import kernels_for, prompt_backend_for
from edge.bundle import Bundle
from edge.graph import Attention, Linear, Op
from edge.kvcache import CacheFormat, KVCache
from edge.npu import Activation, Codes
from edge.reference import Step, Values
from edge.target import Target
from npu.htp.floats import Made, NumpyFloats
from npu.htp.native import NativeFloats
from npu.htp.program import HtpProgram
from npu.htp.shadow import Columns, Extracted
from tests.golden.variants import token_ids
from tests.npu.htp.conftest import MakeBundle

ORT = Target.parse("npu:ort")


class Both:
    """Does everything twice and compares; goes on with the twin's values."""

    place = "both"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        kernels, reason = kernels_for(bundle, threads)
        assert kernels is not None, reason
        self.native = NativeFloats(bundle, kernels)
        self.twin = NumpyFloats(bundle, "the twin")
        self.compared: set[str] = set()

    def run(self, op: Op, step: Step) -> Values:
        quantized = isinstance(op, Linear)  # the head, whose rows become integers
        most = 3e-4 if quantized else 2e-6
        return self.near(
            type(op).__name__, self.native.run(op, step), self.twin.run(op, step), most
        )

    def append(self, op: Attention, step: Step) -> None:
        arrays = step.cache.keys[op.cache], step.cache.values[op.cache]
        self.twin.append(op, step)
        wanted = [array.copy() for array in arrays]
        for array in arrays:
            array[:, step.cache.length :] = 0
        self.native.append(op, step)
        for array, want in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(array, want)
        self.compared.add("append")

    def attend(self, op: Attention, step: Step) -> Values:
        made = self.native.attend(op, step)
        return self.near("attend", made, self.twin.attend(op, step), 1e-5)

    def split(
        self, activation: Activation, x: Values, factors: Values | None
    ) -> tuple[Codes, Extracted]:
        codes, found = self.native.split(activation, x, factors)
        wanted, listed = self.twin.split(activation, x, factors)
        np.testing.assert_array_equal(codes, wanted)
        for name in ("rows", "channels", "cut"):
            np.testing.assert_array_equal(getattr(found, name), getattr(listed, name))
        self.compared.add("split by factors" if factors is not None else "split")
        return wanted, listed

    def join(self, made: Made) -> Values:
        wanted = self.twin.join(made)
        np.testing.assert_array_equal(self.native.join(made), wanted)
        return wanted

    def products(self, found: Extracted, columns: Columns, rows: int) -> Values:
        made = self.native.products(found, columns, rows)
        return self.near("products", made, self.twin.products(found, columns, rows), 1e-5)

    def near(self, name: str, made: Values, wanted: Values, most: float) -> Values:
        self.compared.add(name)
        assert made.shape == wanted.shape
        np.testing.assert_allclose(made, wanted, rtol=0, atol=most * np.abs(wanted).max())
        return wanted


def load(folder: Path) -> tuple[edge.Model, HtpProgram]:
    model = edge.load(folder, target="ref")
    program = prompt_backend_for(ORT).load(model.bundle, ORT)
    assert isinstance(program, HtpProgram)
    return model, program


@pytest.mark.parametrize("form", get_args(CacheFormat))
@pytest.mark.parametrize(
    ("name", "threads", "settings"),
    [
        ("llama", 1, {}),
        ("llama", 2, {"weights": "w4g32", "smoothing": 0.5}),
        ("llama_mlp_bias", 1, {}),
        ("gemma2", 1, {}),
        ("bitnet_ternary", 1, {"mode": "w8a16"}),
    ],
)
def test_every_op_is_as_its_twin(
    name: str, threads: int, settings: dict[str, str], form: CacheFormat, make_bundle: MakeBundle
) -> None:
    model, program = load(make_bundle(name, "npu:ort", **settings))
    both = Both(model.bundle, threads)
    program._floats = both
    cache = KVCache(model.bundle.graph.caches, 64, form)
    ids = np.resize(token_ids(), 41).astype(np.int32)
    program.run_prompt(ids[:5], cache, 0)
    program.run_prompt(ids[5:], cache, 3)  # two chunks, the last one short
    needed = {type(op).__name__ for op in model.bundle.graph.ops()} - {"Attention", "Gate"}
    assert both.compared >= needed | {"append", "attend"}
    assert ("mode" in settings) or both.compared >= {"products", "Gate"}
    assert ("split by factors" in both.compared) == ("smoothing" in settings)


def test_native_code_is_the_default(make_bundle: MakeBundle) -> None:
    _, program = load(make_bundle("llama", "npu:ort"))
    assert isinstance(program._floats, NativeFloats)
    assert program.place.endswith(f"with {program._floats.place} beside it")
    assert program._floats.place.startswith("cpu:")


def test_numpy_says_why(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle("llama", "npu:ort")
    monkeypatch.setattr("npu.htp.backend.kernels_for", lambda *_: (None, "no kernels today"))
    model, program = load(bundle)
    assert program.place.endswith("with NumPy (no kernels today) beside it")
    logits = program.run_prompt(token_ids(), model.session().cache, 1)
    assert np.isfinite(logits).all()
