"""Bundles with NPU programs, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.convert import convert
from converter.npu import plan_npu
from converter.synth import synthesize
from tests.golden.variants import VARIANTS

pytest.importorskip("onnxruntime", reason="the NPU extra is not installed")
pytest.importorskip("onnx", reason="NPU graphs are made with onnx, which is not installed")

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTRA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """A bundle of a tiny variant, or of a checkpoint, for `npus`; made once for each request."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(name: str, *npus: str, checkpoint: Path | None = None, **settings: Any) -> Path:
        key = (name, npus, *sorted(settings.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("npu")
            source = checkpoint or folder / "source"
            if checkpoint is None:
                synthesize(VARIANTS[name].config, source, seed=VARIANTS[name].seed, dtype="f32")
            weights, rows = settings.pop("weights", "f32"), settings.pop("rows", 32)
            plan = plan_npu(npus, rows, **settings)
            convert(source, folder / "b.lutra", weights=weights, chunk=rows, npu=plan)
            made[key] = folder / "b.lutra"
        return made[key]

    return make
