"""Outliers: what is taken out and put back is all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converter.convert import convert
from edge.bundle import Bundle
from edge.npu import Activation, Outliers, spanning
from edge.planes import StoredTensor
from npu.htp.shadow import ShadowWeights, _Kept, products, split
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
        shadow._kept[name] = _Kept(bundle.tensor(name))
        shadow._kept[name].keep_hot(np.array(hot), weights[:, hot].T)
    x = values()
    _, found = split(activation(), x)
    made = products(found, shadow.columns(name, found.used[0]), len(x))
    cut = np.zeros_like(x)
    cut[found.rows, found.channels] = found.cut
    np.testing.assert_allclose(made, cut @ weights.T, atol=1e-3)


def test_columns_are_read_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow, name = ShadowWeights(bundle, None, {}), "layers.0.down"
    weights = bundle.tensor(name).dequantized()
    shadow.columns(name, np.array([5, 80]))
    read: list[int] = []
    columns = StoredTensor.columns
    monkeypatch.setattr(
        StoredTensor, "columns", lambda self, index: read.extend(index) or columns(self, index)
    )
    found = shadow.columns(name, np.array([4, 80, 171]))
    np.testing.assert_array_equal(found.values[found.places], weights[:, [4, 80, 171]].T)
    assert read == [4, 171]


@pytest.mark.parametrize("cold_bytes", [0, 3000, 5000])
def test_what_was_used_last_stays(bundle: Bundle, cold_bytes: int) -> None:
    """A column of 32 outputs takes a tile, 256 bytes."""
    rng, names = np.random.default_rng(3), [f"layers.{layer}.down" for layer in range(2)]
    hot = np.arange(10)
    shadow = ShadowWeights(bundle, None, {}, cold_bytes)
    weights = {name: bundle.tensor(name).dequantized() for name in names}
    shadow._kept[names[0]] = _Kept(bundle.tensor(names[0]))
    shadow._kept[names[0]].keep_hot(hot, weights[names[0]][:, hot].T)
    for turn in range(40):
        name = names[turn % 3 > 0]
        channels = np.sort(rng.choice(172, 6, replace=False))
        found = shadow.columns(name, channels)
        np.testing.assert_array_equal(found.values[found.places], weights[name][:, channels].T)
        assert shadow.cold_bytes <= max(cold_bytes * 3 // 2, 6 * 256)
        assert len(shadow._kept[name].missing(channels)) == 0
    assert shadow.hot_bytes == 10 * 256
    assert len(shadow._kept[names[0]].missing(hot)) == 0


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
    found = shadow.columns("layers.0.down", np.array([8, 5, 4]))
    hot, cold, last = found.values[found.places]
    np.testing.assert_array_equal([last, hot], columns)
    np.testing.assert_allclose(cold, bundle.tensor("layers.0.down").dequantized()[:, 5])
    assert shadow.factors("layers.0.gated") is not None
    assert shadow.factors("layers.0.attended") is None
    assert shadow.hot_bytes == 2 * 64 * 4
    assert shadow.cold_bytes == 64 * 4
