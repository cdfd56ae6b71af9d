"""GPTQ, AWQ, compressed-tensors and BitNet: their integers in the bundle, exactly."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge
from converter.convert import convert, prepare
from converter.plan import Formats
from converter.sources.open import open_source
from edge.bundle import Bundle
from edge.errors import (
    BadWeights,
    LutraError,
    MissingTensor,
    TruncatedSource,
    UnsupportedMath,
    WrongShape,
)
from tests.checkpoints import edit_config, make_checkpoint, rewrite_weights
from tests.converter.sources.test_gguf import Notes
from tests.npu.htp.measure import divergence
from tests.packed_checkpoints import (
    Layer,
    awq_tensors,
    bitnet_tensors,
    compressed_tensors,
    draw_layer,
    gptq_tensors,
    pack_checkpoint,
)

Q = "model.layers.1.self_attn.q_proj.weight"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 64,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": None,
}
BITNET = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
}


def compressed(bits: int, group: int | None, symmetric: bool, **more: Any) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
        "group_size": group,
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    group_0 = {"targets": ["Linear"], "weights": weights | more, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group_0 | {"output_activations": None}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": 1.5,
    }


def gptq_case(
    bits: int, group: int, *, symmetric: bool = False, version: int = 1, **more: Any
) -> tuple[Any, Any, Any]:
    section = GPTQ | {"bits": bits, "group_size": group, "sym": symmetric} | more
    return (
        section,
        lambda layer: gptq_tensors(layer, bits, version),
        lambda rng, shape: draw_layer(
            rng, shape, bits, shape[1] if group == -1 else group, symmetric=symmetric
        ),
    )


def compressed_case(
    bits: int, group: int | None, symmetric: bool, *, zeros_packed: bool = True
) -> tuple[Any, Any, Any]:
    return (
        compressed(bits, group, symmetric),
        lambda layer: compressed_tensors(
            layer, bits, symmetric=symmetric, zeros_packed=zeros_packed
        ),
        lambda rng, shape: draw_layer(rng, shape, bits, group or shape[1], symmetric=symmetric),
    )


def ternary_layer(rng: np.random.Generator, shape: tuple[int, int]) -> Layer:
    scales = np.full((shape[0], 1), rng.uniform(0.5, 2), np.float32)
    order = np.zeros(shape[1], np.int64)
    return Layer(rng.integers(0, 3, shape), scales, np.ones((shape[0], 1), np.int64), order)


CASES: dict[str, tuple[tuple[Any, Any, Any], str]] = {
    "gptq 4 bits": (gptq_case(4, 32), "w4g32a"),
    "gptq 4 bits, symmetric": (gptq_case(4, 128, symmetric=True), "w4g128"),
    "gptq 2 bits": (gptq_case(2, 64), "w2g64a"),
    "gptq 3 bits": (gptq_case(3, 32), "w3g32a"),
    "gptq 8 bits": (gptq_case(8, 64, symmetric=True), "w8g64"),
    "gptq rows": (gptq_case(4, -1), "w4gca"),
    "gptq v2": (gptq_case(4, 32, version=2, checkpoint_format="gptq_v2"), "w4g32a"),
    "awq": ((AWQ, awq_tensors, lambda rng, shape: draw_layer(rng, shape, 4, 64)), "w4g64a"),
    "compressed-tensors": (compressed_case(4, 32, True), "w4g32"),
    "compressed-tensors, asymmetric": (compressed_case(4, 128, False), "w4g128a"),
    "compressed-tensors, plain zeros": (
        compressed_case(4, 32, False, zeros_packed=False),
        "w4g32a",
    ),
    "compressed-tensors, 8 bits": (compressed_case(8, None, True), "w8gc"),
    "bitnet": ((BITNET, bitnet_tensors, ternary_layer), "ternary"),
}


def write(case: str, folder: Path, **changes: Any) -> dict[str, Layer]:
    if case == "bitnet":
        changes |= {"model_type": "bitnet", "architectures": None, "hidden_act": "relu2"}
    return pack_checkpoint(folder, *CASES[case][0], **changes)


@pytest.mark.parametrize("case", CASES)
def test_integers_are_kept_exactly(case: str, tmp_path: Path) -> None:
    """What the bundle decodes to is, bit for bit, what the integers mean."""
    layers = write(case, tmp_path / "source")
    notes = Notes()
    manifest = convert(tmp_path / "source", tmp_path / "m.lutra", watcher=notes)
    bundle = Bundle.open(tmp_path / "m.lutra")
    assert notes.texts == []
    assert {t.relative_rms_error for t in manifest.tensors.values()} == {0.0}
    source = open_source(tmp_path / "source")
    names = {f"{n}_proj": n for n in "qkvo"} | {f"{n}_proj": n for n in ("gate", "up", "down")}
    for name, layer in layers.items():
        _, _, number, _, kind, _ = name.split(".")
        ours = f"layers.{number}.{names[kind]}"
        assert str(manifest.tensors[ours].form) == CASES[case][1]
        np.testing.assert_array_equal(bundle.tensor(ours).dequantized(), layer.weights())
        np.testing.assert_array_equal(source.rows(name, 3, 20), layer.weights()[3:20])


@pytest.mark.parametrize("case", ["gptq 3 bits", "awq", "compressed-tensors, asymmetric", "bitnet"])
def test_blocks_make_the_same_bundle_as_whole_tensors(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(case, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "whole")
    monkeypatch.setattr("converter.weights.BLOCK_WEIGHTS", 1)
    convert(tmp_path / "source", tmp_path / "blocks")
    whole, blocks = (tmp_path / n / "weights.safetensors" for n in ("whole", "blocks"))
    assert whole.read_bytes() == blocks.read_bytes()


def test_a_group_over_the_largest_is_several(tmp_path: Path) -> None:
    section, pack, draw = gptq_case(4, 256)
    layers = pack_checkpoint(tmp_path / "source", section, pack, draw, intermediate_size=640)
    manifest = convert(tmp_path / "source", tmp_path / "m.lutra")
    stored = Bundle.open(tmp_path / "m.lutra").tensor("layers.0.down").dequantized()
    assert str(manifest.tensors["layers.0.down"].form) == "w4g128a"
    np.testing.assert_array_equal(stored, layers["model.layers.0.mlp.down_proj.weight"].weights())


def test_packed_bitnet_computes_what_its_floats_do(tmp_path: Path) -> None:
    """The packed file's logits are those of a graph with the same weights in float32."""
    write("bitnet", tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "m.lutra")
    convert(tmp_path / "source", tmp_path / "floats.lutra", weights="f32")
    ours, theirs = (
        edge.load(tmp_path / name, target="ref").logits([1, 2, 3])
        for name in ("m.lutra", "floats.lutra")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_older_files_describe_themselves_apart(tmp_path: Path) -> None:
    write("gptq 4 bits", tmp_path / "source")
    edit_config(tmp_path / "source", quantization_config=None)
    described = {"bits": 4, "group_size": 32, "sym": False, "desc_act": False, "damp_percent": 0.01}
    (tmp_path / "source" / "quantize_config.json").write_text(json.dumps(described))
    manifest = convert(tmp_path / "source", tmp_path / "m.lutra")
    assert str(manifest.tensors["layers.0.q"].form) == "w4g32a"


def shuffled(folder: Path, method: str, **changes: Any) -> dict[str, Layer]:
    """A checkpoint whose groups are out of order."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Layer:
        return draw_layer(rng, shape, 4, 32, shuffled=True)

    if method == "gptq":
        section, pack = GPTQ | {"desc_act": True}, lambda layer: gptq_tensors(layer, 4)
    else:
        section = compressed(4, 32, False, actorder="group")
        pack = lambda layer: compressed_tensors(layer, 4, symmetric=False)  # noqa: E731
    return pack_checkpoint(folder, section, pack, draw, **changes)


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_groups_out_of_order_are_put_in_order_or_quantized_anew(
    method: str, tmp_path: Path
) -> None:
    """Exactly between gate, up and down; elsewhere nearly, and that is said with what it costs."""
    layers = shuffled(tmp_path / "source", method, mlp_bias=True)
    notes = Notes()
    manifest = convert(tmp_path / "source", tmp_path / "m.lutra", watcher=notes)
    (note,) = notes.texts
    assert note.startswith("note: 12 tensors in ")
    assert "(act-order), this one nearly, in 9 bits a weight instead of 5.03; --weights" in note
    bundle = Bundle.open(tmp_path / "m.lutra")
    down = layers["model.layers.1.mlp.down_proj.weight"]
    order = np.argsort(down.group_of, kind="stable")
    assert str(manifest.tensors["layers.1.down"].form) == "w4g32a"
    made = bundle.tensor("layers.1.down").dequantized()
    np.testing.assert_array_equal(made, down.weights()[:, order])
    for name, kind, rows in [("q", "self_attn.q_proj", slice(None)), ("up", "mlp.up_proj", order)]:
        expected = layers[f"model.layers.1.{kind}.weight"].weights()[rows]
        made = bundle.tensor(f"layers.1.{name}").dequantized()
        assert np.abs(made - expected).max() < np.abs(expected).max() / 127


def test_groups_out_of_order_keep_the_text_right(tmp_path: Path) -> None:
    """KL divergence to the checkpoint's own weights: a hundred times less than at its 4 bits."""
    shuffled(tmp_path / "source", "gptq", mlp_bias=True)
    logits = {}
    for form in ("f32", None, "w4g32a"):
        convert(tmp_path / "source", tmp_path / f"{form}", weights=form, head="f32")
        logits[form] = edge.load(tmp_path / f"{form}", target="ref").logits(np.arange(40))
    nearly, rounded = (divergence(logits["f32"], logits[form]) for form in (None, "w4g32a"))
    assert 0 < nearly < rounded / 100


def test_rows_that_are_kept_move_with_the_columns_behind_them(tmp_path: Path) -> None:
    """Where only `down` is out of order, every integer is kept, and the model stays the same."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Layer:
        return draw_layer(rng, shape, 4, 32, shuffled=shape[1] == 256)

    layers = pack_checkpoint(
        tmp_path / "source", GPTQ, lambda layer: gptq_tensors(layer, 4), draw, mlp_bias=True
    )
    notes = Notes()
    manifest = convert(tmp_path / "source", tmp_path / "m.lutra", watcher=notes)
    assert notes.texts == []
    assert {t.relative_rms_error for t in manifest.tensors.values()} == {0.0}
    down, gate = (layers[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("down", "gate"))
    order = np.argsort(down.group_of, kind="stable")
    made = Bundle.open(tmp_path / "m.lutra").tensor("layers.0.gate").dequantized()
    np.testing.assert_array_equal(made, gate.weights()[order])
    convert(tmp_path / "source", tmp_path / "floats.lutra", weights="f32")
    ours, theirs = (
        edge.load(tmp_path / name, target="ref").logits([1, 2, 3])
        for name in ("m.lutra", "floats.lutra")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_integers_that_are_kept_are_not_scaled(tmp_path: Path) -> None:
    """With --awq, where `o` is quantized anew and `v` in front of it is kept."""
    pytest.importorskip("numba")

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Layer:
        return draw_layer(rng, shape, 4, 32, shuffled=shape == (192, 192))  # q and o

    pack = gptq_case(4, 32)[1]
    pack_checkpoint(tmp_path / "source", GPTQ, pack, draw, bos_token_id=1)
    logits = []
    for name, options in {"floats": {"weights": "f32"}, "scaled": {"scaled": True}}.items():
        manifest = convert(tmp_path / "source", tmp_path / name, **options)  # type: ignore[arg-type]
        logits.append(edge.load(tmp_path / name, target="ref").logits(np.arange(40)))
    assert manifest.tensors["layers.0.v"].relative_rms_error == 0
    assert divergence(*logits) < 1e-3


def test_groups_of_unequal_sizes_are_refused(tmp_path: Path) -> None:
    write("gptq 4 bits", tmp_path / "source")
    index = np.zeros(192, np.int32)
    rewrite_weights(tmp_path / "source", model__layers__1__self_attn__q_proj__g_idx=index)
    with pytest.raises(UnsupportedMath, match=r"gives groups other counts .* than 32; --weights"):
        convert(tmp_path / "source", tmp_path / "m.lutra")


def test_groups_of_16_are_refused(tmp_path: Path) -> None:
    pack_checkpoint(tmp_path / "source", *gptq_case(4, 16))
    with pytest.raises(UnsupportedMath, match="a scale for 16 weights, need a multiple of one of"):
        convert(tmp_path / "source", tmp_path / "m.lutra")


def test_scales_that_float16_does_not_hold(tmp_path: Path) -> None:
    write("gptq 4 bits", tmp_path / "source")
    scales = np.full((6, 192), 1e-3, np.float32)
    rewrite_weights(tmp_path / "source", model__layers__1__self_attn__q_proj__scales=scales)
    with pytest.raises(BadWeights, match=r"q_proj.weight has scales that float16.*--weights w8g32"):
        convert(tmp_path / "source", tmp_path / "m.lutra")
    scales = np.full((6, 192), np.nan, np.float16)
    rewrite_weights(tmp_path / "source", model__layers__1__self_attn__q_proj__scales=scales)
    with pytest.raises(BadWeights, match="has a scale that is no number"):
        convert(tmp_path / "source", tmp_path / "m.lutra")


def test_zeros_that_the_config_denies(tmp_path: Path) -> None:
    write("gptq 4 bits", tmp_path / "source")
    edit_config(tmp_path / "source", quantization_config=GPTQ | {"sym": True})
    with pytest.raises(BadWeights, match="zeros other than 8, and its config calls it symmetric"):
        convert(tmp_path / "source", tmp_path / "m.lutra")


def test_a_fourth_ternary_value(tmp_path: Path) -> None:
    write("bitnet", tmp_path / "source")
    packed = np.full((48, 192), 0xFF, np.uint8)
    rewrite_weights(tmp_path / "source", model__layers__1__self_attn__q_proj__weight=packed)
    with pytest.raises(BadWeights, match="has a code of 3"):
        convert(tmp_path / "source", tmp_path / "m.lutra")


def rename(folder: Path, part: str) -> None:
    rewrite_weights(folder, **{f"model__layers__1__self_attn__q_proj__{part}": None})


def resize(folder: Path, part: str, shape: tuple[int, ...], dtype: str) -> None:
    values = np.zeros(shape, dtype)
    rewrite_weights(folder, **{f"model__layers__1__self_attn__q_proj__{part}": values})


Damage = Callable[[Path], None]
BROKEN: dict[str, tuple[str, Damage, type[LutraError], str]] = {
    "no scales": ("awq", lambda f: rename(f, "scales"), MissingTensor, "q_proj.scales"),
    "no zeros": ("gptq 4 bits", lambda f: rename(f, "qzeros"), MissingTensor, "q_proj.qzeros"),
    "few zeros": (
        "gptq 4 bits",
        lambda f: resize(f, "qzeros", (3, 24), "int32"),
        WrongShape,
        r"qzeros is \[3, 24\], need \[6, 24\]",
    ),
    "floats": (
        "awq",
        lambda f: resize(f, "qweight", (192, 24), "float32"),
        LutraError,
        "qweight is F32, need I32",
    ),
    "another width": (
        "awq",
        lambda f: resize(f, "qweight", (64, 24), "int32"),
        WrongShape,
        "qzeros is",
    ),
    "a vector": (
        "awq",
        lambda f: resize(f, "qweight", (64,), "int32"),
        WrongShape,
        "need a matrix",
    ),
    "group index": (
        "gptq 4 bits",
        lambda f: rewrite_weights(
            f, model__layers__1__self_attn__q_proj__g_idx=np.full(192, 99, np.int32)
        ),
        BadWeights,
        "names group 99",
    ),
    "shape": (
        "compressed-tensors",
        lambda f: rewrite_weights(
            f,
            model__layers__1__self_attn__q_proj__weight_shape=np.array([192, 10**12], np.int64),
        ),
        WrongShape,
        "weight_packed is",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_layers_are_refused(case: str, tmp_path: Path) -> None:
    kind, damage, error, message = BROKEN[case]
    write(kind, tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(error, match=message):
        prepare(tmp_path / "source", Formats.parse())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (GPTQ | {"bits": 5}, "quantization_config.bits is 5: need 2, 3, 4 or 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (GPTQ | {"dynamic": {"-:mlp": {}}}, "quantization_config.dynamic is"),
        (GPTQ | {"group_size": 0}, "quantization_config.group_size is 0"),
        (AWQ | {"version": "gemv"}, "version is 'gemv': need gemm"),
        (AWQ | {"bits": 3}, "bits is 3: need 4"),
        (AWQ | {"zero_point": False}, "zero_point is False"),
        ({"quant_method": "hqq"}, "quant_method is 'hqq': need gptq, awq"),
        (compressed(4, 32, True) | {"format": "marlin-24"}, "format is 'marlin-24'"),
        (compressed(4, 32, True) | {"config_groups": {}}, "config_groups is {}"),
        (compressed(3, 32, True), "num_bits is 3: need 4 or 8"),
        (compressed(4, 32, True, type="float"), "type is 'float': need int"),
        (compressed(4, 32, True) | {"kv_cache_scheme": {"a": 1}}, "kv_cache_scheme is"),
    ],
)
def test_what_is_not_understood_is_named(
    section: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "source")
    edit_config(tmp_path / "source", quantization_config=section)
    with pytest.raises(UnsupportedMath, match=message):
        prepare(tmp_path / "source", Formats.parse())


def test_a_header_of_an_exabyte(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    path = source / "model.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])
    tracemalloc.start()
    try:
        with pytest.raises(TruncatedSource, match="with a header of 1152921504606846976"):
            prepare(source, Formats.parse())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", ["[4294967296, 4294967296]", "[73786976294838206464]"])
def test_a_shape_whose_size_wraps_around(shape: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    header = (
        f'{{"model.norm.weight": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 0]}}}}'
    )
    content = len(header).to_bytes(8, "little") + header.encode()
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(TruncatedSource, match="its shape needs another count"):
        prepare(source, Formats.parse())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Weights of checkpoints of several packings, by the folders that they are in."""
    base = tmp_path_factory.mktemp("fuzz")
    for case in ("gptq 3 bits", "awq", "compressed-tensors, asymmetric", "bitnet"):
        write(case, base / case)
    return {str(f): (f / "model.safetensors").read_bytes() for f in base.iterdir()}


@settings(max_examples=120)
@given(data=st.data())
def test_damage_anywhere_is_an_error_of_ours_or_none(
    data: st.DataObject, packed: dict[str, bytes]
) -> None:
    folder = data.draw(st.sampled_from(sorted(packed)))
    content = bytearray(packed[folder])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 6000))
        change = data.draw(st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(_NUMBERS)))
        content[place : place + len(change)] = change
    (Path(folder) / "model.safetensors").write_bytes(bytes(content))
    with contextlib.suppress(LutraError):
        job = prepare(folder, Formats.parse())
        for planned in job.plan.tensors:
            name = planned.tensor.name
            for _ in job.weights.codes(name) if planned.kept else job.weights.blocks(name):
                pass


_NUMBERS = [b"99999999", b"-1", b"0", b"[", b"1e9", b"null", b'"F16"', b"\xff\xff"]
