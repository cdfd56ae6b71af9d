"""GGUF files as sources: the same model as from the checkpoint that they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge
from converter.convert import convert
from converter.models import build_model
from converter.sources.gguf_types import TYPES
from converter.synth import synthesize
from edge.bundle import Bundle
from edge.watch import Silent
from tests.checkpoints import make_checkpoint
from tests.converter.models.test_golden import distance, golden
from tests.gguf_files import write_gguf
from tests.golden.variants import VARIANTS, token_ids

gguf = pytest.importorskip("gguf")

# What llama.cpp has no way to say, or says otherwise: its code fixes the gate's function, which
# layers slide and which have positions, the details of yarn, and that Gemma 2 has its soft caps.
NOT_IN_GGUF = {
    *("llama_gelu", "llama_relu", "llama_relu2"),
    *("llama_yarn_exact", "llama_yarn_attention", "llama_yarn_mscale"),
    *("qwen2_windows", "qwen2_layer_types", "qwen3_windows", "gemma2_full"),
    *("smollm3", "smollm3_listed", "smollm3_windows", "smollm3_biases", "smollm3_yarn"),
    *("gemma2_scores_uncapped", "gemma2_logits_uncapped"),
    "gemma3",  # multimodal: its language model is a gemma3 file
    "bitnet_ternary",  # master weights, which are not ternary yet
}
# float32 metadata against float64 in a config: 1e-7 of an angle or a scale.
TOLERANCE = 1e-4
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}


class Notes(Silent):
    """Keeps what a conversion notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in NOT_IN_GGUF])
def test_a_variant_survives(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    synthesize(variant.config, tmp_path / "source", seed=variant.seed, dtype="f32")
    path = write_gguf(tmp_path / "source", tmp_path / "model.gguf")
    convert(path, tmp_path / "m.lutra", weights="f32", context=variant.context)
    logits = edge.load(tmp_path / "m.lutra", target="ref").logits(token_ids())
    assert distance(logits, golden(name)) < TOLERANCE


@pytest.mark.parametrize("form", ["Q4_0", "Q5_0", "Q8_0", "TQ1_0", "TQ2_0"])
def test_integers_are_kept_exactly(form: str, tmp_path: Path) -> None:
    """What the bundle decodes to is, bit for bit, what the gguf package decodes the file to."""
    source = make_checkpoint(tmp_path / "model", **WIDE)
    path = write_gguf(source, tmp_path / "model.gguf", form)
    notes = Notes()
    manifest = convert(path, tmp_path / "m.lutra", watcher=notes)
    bundle = Bundle.open(tmp_path / "m.lutra")
    assert notes.texts == []
    assert {t.relative_rms_error for t in manifest.tensors.values()} == {0.0}
    kind = gguf.GGMLQuantizationType[form]
    assert str(manifest.tensors["layers.1.q"].form) == str(TYPES[kind].form)
    theirs = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    for ours, name in {
        "embed": "token_embd.weight",
        "head": "output.weight",
        "layers.0.v": "blk.0.attn_v.weight",
        "layers.1.down": "blk.1.ffn_down.weight",
        "layers.1.k": "blk.1.attn_k.weight",
    }.items():
        expected = theirs[name]
        if ours.endswith(".k"):
            expected = expected.reshape(2, 16, 2, 256).swapaxes(1, 2).reshape(64, 256)
        np.testing.assert_array_equal(bundle.tensor(ours).dequantized(), expected)


@pytest.mark.parametrize(
    "form", sorted(t.name for t in TYPES.values() if t.block > 1 and t.readable and not t.exact)
)
def test_what_no_format_holds_is_stored_nearly_and_said(form: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", **WIDE)
    path = random_blocks(write_gguf(source, tmp_path / "model.gguf", "F16"), form)
    notes = Notes()
    manifest = convert(path, tmp_path / "m.lutra", watcher=notes)
    assert notes.texts == [
        f"note: 1 tensors in {form} are quantized anew, to w8g32: no format here holds them "
        "exactly, this one nearly; --weights and --head choose others"
    ]
    assert 0 < manifest.tensors["layers.0.down"].relative_rms_error < 0.01
    stored = Bundle.open(tmp_path / "m.lutra").tensor("layers.0.down").dequantized()
    reader = gguf.GGUFReader(path)
    down = next(t for t in reader.tensors if t.name == "blk.0.ffn_down.weight")
    expected = gguf.dequantize(down.data, down.tensor_type)
    assert np.abs(stored - expected).max() < np.abs(expected).max() / 127


def test_a_fixed_codebook_of_integers_is_kept_exactly(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", **WIDE)
    path = random_blocks(write_gguf(source, tmp_path / "model.gguf", "F16"), "IQ4_NL")
    manifest = convert(path, tmp_path / "m.lutra")
    assert str(manifest.tensors["layers.0.down"].form) == "w8g32"
    down = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_down.weight")
    np.testing.assert_array_equal(
        Bundle.open(tmp_path / "m.lutra").tensor("layers.0.down").dequantized(),
        gguf.dequantize(down.data, down.tensor_type),
    )


def random_blocks(path: Path, form: str) -> Path:
    """The file with blocks of random bits and sane scales for one matrix, in `form`."""
    reader = gguf.GGUFReader(path)
    out = path.with_name(f"{form}.gguf")
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name != "blk.0.ffn_down.weight":
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        kind = gguf.GGMLQuantizationType[form]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, width = (int(n) for n in reversed(tensor.shape))
        rng = np.random.default_rng(0)
        data = rng.integers(0, 256, (rows, width // block, size), np.uint8)
        if form == "MXFP4":  # the scale is an exponent
            data[:, :, 0] = rng.integers(114, 118, data.shape[:2])
        for places in _SCALES[form]:
            scales = rng.uniform(0.001, 0.002, data.shape[:2]).astype(np.float16).view(np.uint16)
            for number, place in enumerate(places):
                width = 16 // len(places)  # bits of the scale, the highest of its byte
                bits = (scales >> (number * width)) & ((1 << width) - 1)
                data[:, :, place] &= (1 << (8 - width)) - 1
                data[:, :, place] |= (bits << (8 - width)).astype(np.uint8)
        writer.add_tensor(tensor.name, data.reshape(rows, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


# The bytes that hold the float16 scales and minima of a block; IQ1_M's is in four of them.
_FIRST, _SECOND = (0, 1), (2, 3)
_SCALES = {
    "Q4_1": (_FIRST, _SECOND),
    "Q5_1": (_FIRST, _SECOND),
    "Q2_K": ((80, 81), (82, 83)),
    "Q3_K": ((108, 109),),
    "Q4_K": (_FIRST, _SECOND),
    "Q5_K": (_FIRST, _SECOND),
    "Q6_K": ((208, 209),),
    "IQ1_M": ((49, 51, 53, 55),),
    "MXFP4": (),
} | {
    f"IQ{name}": (_FIRST,)
    for name in ("1_S", "2_XXS", "2_XS", "2_S", "3_XXS", "3_S", "4_NL", "4_XS")
}


def test_floats_of_a_file_without_integers_become_4_bits(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    path = write_gguf(source, tmp_path / "model.gguf", "F16")
    manifest = convert(path, tmp_path / "m.lutra")
    assert str(manifest.tensors["layers.0.q"].form) == "w4g64"


def test_floats_beside_integers_are_kept(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", **WIDE | {"intermediate_size": 500})
    path = write_gguf(source, tmp_path / "model.gguf", "Q4_0")
    manifest = convert(path, tmp_path / "m.lutra")
    assert str(manifest.tensors["layers.0.down"].form) == "f32"
    assert str(manifest.tensors["layers.0.up"].form) == "w4g32"


def test_another_format_is_chosen_by_name_alone(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", **WIDE)
    path = write_gguf(source, tmp_path / "model.gguf", "Q8_0")
    notes = Notes()
    manifest = convert(path, tmp_path / "m.lutra", weights="w4g64", head="w8g32", watcher=notes)
    assert str(manifest.tensors["layers.0.q"].form) == "w4g64"
    assert manifest.tensors["head"].relative_rms_error == 0
    assert notes.texts == [
        "note: 14 tensors in Q8_0 are quantized anew, to w4g64: what they were quantized from "
        "would give better text"
    ]


def test_ternary_weights_have_8_bit_activations(tmp_path: Path) -> None:
    """TQ2_0 of weights that BitNet's training made ternary is computed as BitNet computes."""
    config = VARIANTS["bitnet_ternary"].config | {"hidden_size": 256, "intermediate_size": 256}
    config |= {"num_attention_heads": 8, "tie_word_embeddings": True}
    synthesize(config, tmp_path / "source", dtype="f32")
    masters = build_model(config).graph
    tensors = _round(tmp_path / "source")
    path = write_gguf(tmp_path / "source", tmp_path / "model.gguf", "TQ2_0", top="F32")
    convert(path, tmp_path / "m.lutra")
    bundle = Bundle.open(tmp_path / "m.lutra")
    assert [op.kind for op in bundle.graph.ops()] == [op.kind for op in masters.ops()]
    for ours, name in {"q": "self_attn.q_proj", "down": "mlp.down_proj"}.items():
        stored = bundle.tensor(f"layers.2.{ours}").dequantized()
        np.testing.assert_array_equal(stored, tensors[f"model.layers.2.{name}.weight"])


def _round(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Make every linear weight of a checkpoint -s, 0 or s, with s representable in float16."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, values in tensors.items():
        if "_proj" in name:
            scale = np.float32(np.float16(np.abs(values).mean()))
            tensors[name] = np.clip(np.rint(values / scale), -1, 1) * scale
    save_file(tensors, path)
    return tensors
