"""Outliers: what is taken out and put back is all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converter.convert import convert
from edge.bundle import Bundle
from edge.npu import Activation, Outliers, spanning
from npu.htp.shadow import ShadowWeights, split
from tests.checkpoints import make_checkpoint

RESTORED = Outliers(1.0, 0.0, 0, (), 1.0, True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("shadow")
    make_checkpoint(folder / "tiny")
    convert(folder / "tiny", folder / "tiny.lutra", weights="w4g32")
    return Bundle.open(folder / "tiny.lutra")


def values(rows: int = 7, width: int = 172) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    x[:, 3] *= 40
    x[2] *= 9
    return x


def activation(restored: bool = True) -> Activation:
    made = spanning("x", 8, -2.0, 2.0)
    return replace(made, outliers=RESTORED) if restored else made


@pytest.mark.parametrize("factored", [False, True])
def test_inside_and_cut_sum_to_the_whole(factored: bool) -> None:
    x = values()
    factors = np.random.default_rng(1).uniform(0.5, 2, x.shape[1]).astype(np.float32)
    given = factors if factored else None
    codes, found = split(activation(), x, given)
    whole = activation().decode(codes) * (factors if factored else 1)
    whole[found.rows, found.channels] += found.cut
    assert (np.abs(whole - x) <= activation().scale * (factors.max() if factored else 1)).all()
    assert set(found.channels) >= {3}
    assert (np.diff(found.rows) >= 0).all()


def test_nothing_is_taken_where_it_is_not_restored() -> None:
    codes, found = split(activation(restored=False), values())
    assert len(found.cut) == 0
    assert codes.min() == 0
    assert codes.max() == 255


@pytest.mark.parametrize("hot", [(), (3, 9), tuple(range(172))])
def test_restored_products_are_those_of_the_weights(bundle: Bundle, hot: tuple[int, ...]) -> None:
    name = "layers.1.down"
    weights = bundle.tensor(name).dequantized()  # [out, in]
    shadow = ShadowWeights(bundle, None, {})
    if hot:
        shadow._hot[name] = weights[:, hot].T
        shadow._places[name] = np.full(172, -1)
        shadow._places[name][list(hot)] = np.arange(len(hot))
    x = values()
    _, found = split(activation(), x)
    out = np.zeros((len(x), len(weights)), np.float32)
    work = shadow.restore(name, found, out)
    cut = np.zeros_like(x)
    cut[found.rows, found.channels] = found.cut
    np.testing.assert_allclose(out, cut @ weights.T, atol=1e-3)
    assert work == len(found.cut) * len(weights)


def test_blocks_add_up(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = split(activation(), values())
    shadow = ShadowWeights(bundle, None, {})
    whole, parts = np.zeros((2, 7, 32), np.float32)
    shadow.restore("layers.0.down", found, whole)
    monkeypatch.setattr("npu.htp.shadow._BLOCK_VALUES", 32)
    shadow.restore("layers.0.down", found, parts)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_the_file_keeps_hot_columns(tmp_path: Path, bundle: Bundle) -> None:
    from edge.planes import Part
    from edge.tensorfile import TensorFileWriter

    columns = np.arange(64, dtype=np.float16).reshape(2, 32)
    factors = np.linspace(1, 2, 172, dtype=np.float32)
    path = bundle.folder / "shadow.safetensors"
    arrays = {"layers.0.down.hot": columns, "layers.0.gated.factors": factors}
    writer = TensorFileWriter(path, {n: Part(str(a.dtype), a.shape) for n, a in arrays.items()})
    for name, array in arrays.items():
        writer.write(name, array)
    writer.close()
    shadow = ShadowWeights(bundle, path.name, {"layers.0.down": (4, 8)})
    path.unlink()
    np.testing.assert_array_equal(shadow.columns("layers.0.down", np.array([8, 4])), columns[::-1])
    cold = bundle.tensor("layers.0.down").dequantized()[:, 5]
    np.testing.assert_allclose(shadow.columns("layers.0.down", np.array([5, 4]))[0], cold)
    assert shadow.factors("layers.0.gated") is not None
    assert shadow.factors("layers.0.attended") is None
    assert shadow.byte_count == 2 * 32 * 4
