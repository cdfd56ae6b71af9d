"""GGUF files: every tensor reads back as the checkpoint's, where and how llama.cpp wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.bench.gguf_file import (
    PACKAGE_FORMATS,
    check_source,
    choose_format,
    interleave,
    is_of,
    read_summary,
    write_gguf,
)
from converter import weights
from converter.sources.huggingface import open_checkpoint
from edge.errors import (
    MissingTensor,
    TruncatedSource,
    UnknownArchitecture,
    UnknownFormat,
    UnsupportedMath,
)
from tests.checkpoints import make_checkpoint, rewrite_weights

gguf = pytest.importorskip("gguf")

WIDE = {"hidden_size": 256, "intermediate_size": 512}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
BIASES = {f"attn_{n}.bias": f"self_attn.{n}_proj.bias" for n in "qkv"}
HEAD_NORMS = {f"attn_{n}_norm.weight": f"self_attn.{n}_norm.weight" for n in "qk"}
SUB_NORMS = {
    "attn_sub_norm.weight": "self_attn.attn_sub_norm.weight",
    "ffn_sub_norm.weight": "mlp.ffn_sub_norm.weight",
}
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Root mean square of the error over that of the values, for normal values.
ERRORS = {"F16": 1e-3, "Q8_0": 0.01, "Q4_0": 0.1, "TQ2_0": 0.85}


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors of a file, dequantized."""
    reader = gguf.GGUFReader(path)
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        for t in reader.tensors
    }


def expected(source: Path, layer_names: dict[str, str]) -> dict[str, NDArray[np.float32]]:
    """The checkpoint's tensors under llama.cpp's names."""
    from safetensors.numpy import load_file

    stored = load_file(source / "model.safetensors")
    names = dict(TOP) if "lm_head.weight" in stored else {k: TOP[k] for k in list(TOP)[:2]}
    for i in range(2):
        names |= {f"blk.{i}.{k}": f"model.layers.{i}.{v}" for k, v in layer_names.items()}
    return {name: stored[origin] for name, origin in names.items()}


def turned(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of every head in the order 0, half, 1, half + 1, ..."""
    order = np.arange(head_dim).reshape(2, -1).T.ravel()
    heads = np.arange(0, len(rows), head_dim)
    moved: NDArray[np.float32] = rows[(heads[:, None] + order).ravel()]
    return moved


@pytest.mark.parametrize("form", PACKAGE_FORMATS)
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, LAYER),
        ({"attention_bias": True, "tie_word_embeddings": True}, LAYER | BIASES),
        ({"model_type": "qwen2"}, LAYER | BIASES),
        ({"model_type": "qwen3", "head_dim": 64}, LAYER | HEAD_NORMS),
        ({"model_type": "bitnet", "hidden_act": "relu2"}, LAYER | SUB_NORMS),
    ],
    ids=["llama", "llama-biased", "qwen2", "qwen3", "bitnet"],
)
def test_tensors_read_back(
    changes: dict[str, Any], names: dict[str, str], form: str, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "model", architectures=None, **WIDE, **changes)
    write_gguf(source, tmp_path / "model.gguf", form)
    found, wanted = read(tmp_path / "model.gguf"), expected(source, names)
    if changes.get("attention_bias"):
        wanted |= expected(source, {"attn_output.bias": "self_attn.o_proj.bias"})
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        if "model_type" not in changes and ("attn_q." in name or "attn_k." in name):
            values = turned(values, 64)
        if values.ndim == 1:
            np.testing.assert_array_equal(found[name], values)
            continue
        error = np.square(found[name] - values).mean() / np.square(values).mean()
        assert error**0.5 < ERRORS[form], name
        if form == "TQ2_0":
            assert len(np.unique(found[name][0, :256])) == 3
    summary = read_summary(tmp_path / "model.gguf")
    matrices = sum(values.ndim == 2 for values in wanted.values())
    assert summary.formats == {form: matrices}
    assert summary.form == form


def test_ternary_weights_are_exact(tmp_path: Path) -> None:
    source = make_checkpoint(
        tmp_path / "model",
        model_type="bitnet",
        architectures=None,
        hidden_act="relu2",
        quantization_config={
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        },
        **WIDE,
    )
    write_gguf(source, tmp_path / "model.gguf", "TQ2_0")
    found, masters = read(tmp_path / "model.gguf"), expected(source, LAYER)
    for name in ("blk.1.attn_q.weight", "blk.0.ffn_down.weight"):
        scale = np.float32(np.abs(masters[name]).mean())
        ternary = np.clip(np.rint(masters[name] / scale), -1, 1)
        np.testing.assert_allclose(found[name], ternary * scale, rtol=1e-3)
    assert any("gates by silu" in note for note in check_source(open_checkpoint(source)))


def test_metadata_says_what_llamacpp_needs(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", rope_theta=5000.0)
    write_gguf(source, tmp_path / "model.gguf", "F16")
    fields = {
        name: field.contents()
        for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()
        if not name.startswith("GGUF.")
    }
    assert fields.pop("lutra.source")
    assert fields == {
        "general.architecture": "llama",
        "general.name": "model",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 172,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 5000.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.vocab_size": 300,
        "tokenizer.ggml.model": "no_vocab",
    }


def test_scaled_frequencies_become_divisors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 4.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 16,
    }
    source = make_checkpoint(tmp_path / "model", rope_scaling=scaling)
    write_gguf(source, tmp_path / "model.gguf", "F16")
    factors = read(tmp_path / "model.gguf")["rope_freqs.weight"]
    # waves of 6 to 6283 positions against an original context of 16: the first is kept
    assert factors.shape == (4,)
    np.testing.assert_allclose(factors[1:], 4, rtol=1e-5)
    assert 1 < factors[0] < 4


def test_rows_that_are_no_whole_blocks_fall_back() -> None:
    assert choose_format("TQ2_0", (8, 512)) == "TQ2_0"
    assert choose_format("TQ2_0", (8, 96)) == "Q4_0"
    assert choose_format("Q2_K", (8, 5504)) == "Q4_0"
    assert choose_format("Q8_0", (8, 96)) == "Q8_0"
    assert choose_format("Q8_0", (8, 100)) == "F16"
    assert choose_format("F16", (8, 100)) == "F16"
    assert choose_format("Q4_0", (96,)) == "F32"


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_leave_out_an_embedding_apart(tied: bool, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    write_gguf(source, tmp_path / "model.gguf", "Q8_0")
    summary = read_summary(tmp_path / "model.gguf")
    row = 34  # 32 weights and a scale
    assert summary.tensor_bytes - summary.bytes_per_token == (0 if tied else 299 * row)


def test_interleaved_rows_turn_alike() -> None:
    """Neighbours turned after interleaving are element i turned with i + half, interleaved."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 1)).astype(np.float32)
    angles = rng.uniform(0, 3, 4)
    heads = x.reshape(3, 2, 4)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = heads[:, 0], heads[:, 1]
    halves = np.stack([a * cos - b * sin, a * sin + b * cos], axis=1).reshape(24, 1)
    pairs = interleave(x, 8).reshape(3, 4, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    neighbours = np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(24, 1)
    np.testing.assert_allclose(interleave(halves.astype(np.float32), 8), neighbours, rtol=1e-5)


def test_blocks_of_rows_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "model", vocab_size=1000)
    write_gguf(source, tmp_path / "whole.gguf", "Q4_0")
    monkeypatch.setattr(weights, "BLOCK_WEIGHTS", 1 << 11)
    write_gguf(source, tmp_path / "blocks.gguf", "Q4_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "blocks.gguf").read_bytes()


def test_a_file_knows_its_checkpoint(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    other = make_checkpoint(tmp_path / "other", rms_norm_eps=1e-6)
    write_gguf(source, tmp_path / "model.gguf", "F16")
    assert is_of(tmp_path / "model.gguf", source)
    assert not is_of(tmp_path / "model.gguf", other)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "gemma2"}, UnknownArchitecture, "'gemma2'"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
            },
            UnsupportedMath,
            "sliding windows",
        ),
        ({"hidden_act": "gelu"}, UnsupportedMath, "gates by gelu"),
        (
            {"model_type": "qwen2", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            UnsupportedMath,
            "frequencies",
        ),
    ],
)
def test_what_llamacpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "model", architectures=None, **changes)
    with pytest.raises(error, match=message):
        write_gguf(source, tmp_path / "model.gguf", "F16")
    assert not list(tmp_path.glob("*.gguf*"))


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    with pytest.raises(UnknownFormat, match="Q9_9"):
        write_gguf(source, tmp_path / "model.gguf", "Q9_9")
    rewrite_weights(source, model__norm__weight=None)
    with pytest.raises(MissingTensor):
        write_gguf(source, tmp_path / "model.gguf", "F16")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    path = tmp_path / "model.gguf"
    write_gguf(source, path, "F16")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(TruncatedSource, match=r"model\.gguf"):
        read_summary(path)
