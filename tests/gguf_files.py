"""GGUF files for tests: a checkpoint in the Hugging Face layout as llama.cpp would have it.

Written with the gguf package from tables of its own, so that the reader is held to llama.cpp's
conventions and not to itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.models import build_model
from edge.graph import Attention, Rope

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "bitnet": "bitnet-b1.58",
}
_INTERLEAVED = ("llama", "mistral", "smollm3")
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
_GEMMA_NAMES = _NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(
    source: Path,
    out: Path,
    form: str = "F32",
    *,
    top: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint as a GGUF file: matrices in `form` where their rows are whole blocks, else F32.

    `top` is the form of embedding and head, if it is another.

    `metadata` overrules the keys made from the config (without the architecture's prefix) and adds
    those that begin with "tokenizer.", "general." or "split."; None leaves one out.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    arch = ARCHITECTURES[config["model_type"]]
    if arch == "bitnet-b1.58" and config.get("hidden_act") == "silu":
        arch = "bitnet"
    writer = gguf.GGUFWriter(out, arch)
    for key, value in (_keys(config, tensors) | dict(metadata or {})).items():
        whole = key.startswith(("tokenizer.", "general.", "split."))
        if value is not None:
            _add(writer, key if whole else f"{arch}.{key}", value)
    for name, divisors in _divisors(config).items():
        writer.add_tensor(name, divisors)
    for name, values in tensors.items():
        inner = name.startswith("model.layers.")
        _write_tensor(writer, config, name, values, form if inner else top or form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def split_gguf(path: Path, folder: Path, count: int, *, turned: bool = False) -> list[Path]:
    """A file in `count` parts, as llama-gguf-split makes them; `turned` from the last tensor on."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = list(reader.tensors)[:: -1 if turned else 1]
    each = -(-len(tensors) // count)
    parts = []
    for number in range(count):
        parts.append(folder / f"{path.stem}-{number + 1:05}-of-{count:05}.gguf")
        architecture = reader.fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(parts[-1], architecture if number == 0 else "")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(field.name, field.contents(), *field.types)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[number * each : (number + 1) * each]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


def _write_tensor(
    writer: Any, config: Mapping[str, Any], name: str, values: NDArray[Any], form: str
) -> None:
    import gguf

    values = np.ascontiguousarray(_as_llamacpp(config, name, values.astype(np.float32)))
    kind = gguf.GGMLQuantizationType[form]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if form == "F32" or values.ndim == 1 or values.shape[-1] % block:
        writer.add_tensor(_gguf_name(config, name), values)
        return
    packed = gguf.quantize(values, kind)
    writer.add_tensor(_gguf_name(config, name), packed, raw_dtype=kind)


def _as_llamacpp(config: Mapping[str, Any], name: str, values: NDArray[Any]) -> NDArray[Any]:
    if config["model_type"].startswith("gemma") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if config["model_type"] in _INTERLEAVED and name.split(".")[-2] in ("q_proj", "k_proj"):
        heads = config["num_attention_heads"]
        if name.split(".")[-2] == "k_proj":
            heads = config.get("num_key_value_heads", 4 if "smollm" in config["model_type"] else 0)
        shape = values.shape
        return (
            values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
            .swapaxes(1, 2)
            .reshape(shape)
        )
    return values


def _gguf_name(config: Mapping[str, Any], name: str) -> str:
    names = _GEMMA_NAMES if config["model_type"].startswith("gemma") else _NAMES
    stem, part = name.rsplit(".", 1)
    if stem in names:
        return f"{names[stem]}.{part}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{names[inner]}.{part}"


def _keys(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """llama.cpp's keys, from the graph where a config leaves its defaults out."""
    graph = build_model(config).graph
    attention = next(op for op in graph.ops() if isinstance(op, Attention))
    rope = next(op for op in graph.ops() if isinstance(op, Rope))
    section = config.get("rope_scaling") or {}
    keys: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": graph.caches[0].kv_heads,
        "attention.key_length": graph.caches[0].head_dim,
        "attention.value_length": graph.caches[0].head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": 2 * graph.tensor(rope.frequencies).shape[0],
        "rope.freq_base": float(_theta(config)),
        "vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "no_vocab",
    }
    windows = {op.window for op in graph.ops() if isinstance(op, Attention)} - {None}
    if windows:
        keys["attention.sliding_window"] = windows.pop()
    if config["model_type"].startswith("gemma"):
        keys["attention.scale"] = attention.scale
        keys |= _gemma_keys(config)
    kind = section.get("rope_type", section.get("type"))
    if kind in ("linear", "yarn"):
        keys["rope.scaling.type"] = kind
        keys["rope.scaling.factor"] = float(section["factor"])
    if kind == "yarn":
        original = section["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
        keys["rope.scaling.yarn_beta_fast"] = section.get("beta_fast", 32.0)
        keys["rope.scaling.yarn_beta_slow"] = section.get("beta_slow", 1.0)
    if kind == "longrope":
        key = "original_max_position_embeddings"
        keys["rope.scaling.original_context_length"] = config.get(key) or section[key]
        keys["rope.scaling.attn_factor"] = rope.scale
    return keys


def _theta(config: Mapping[str, Any]) -> float:
    defaults = {"smollm3": 2e6, "bitnet": 5e5, "gemma3_text": 1e6}
    return config.get("rope_theta", defaults.get(config["model_type"], 1e4))


def _gemma_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        name: float(config[name])
        for name in ("attn_logit_softcapping", "final_logit_softcapping")
        if config.get(name)
    }
    if config["model_type"] == "gemma3_text":
        keys["rope.freq_base_swa"] = config.get("rope_local_base_freq", 1e4)
        keys["attention.sliding_window_pattern"] = config.get("sliding_window_pattern", 6)
    return keys


def _divisors(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Tensors that divide frequencies: of llama3, which llama.cpp has no rule for, and Phi 3."""
    section = config.get("rope_scaling") or {}
    kind = section.get("rope_type", section.get("type"))
    if kind == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(section[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    if kind != "llama3":
        return {}
    plain = build_model({k: v for k, v in config.items() if k != "rope_scaling"})
    scaled = build_model(config)
    return {"rope_freqs.weight": plain.constants["rope"] / scaled.constants["rope"]}


def _add(writer: Any, key: str, value: Any) -> None:
    """A metadata key by the type of its value; floats are float32, as llama.cpp has them."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def tokenizer_metadata(source: Path, pre: str | None = None) -> dict[str, Any]:
    """A checkpoint's tokenizer as llama.cpp's keys: SentencePiece, or byte-level as `pre`.

    SentencePiece numbers its pieces in the order that it made them, which is what scores say.
    """
    stored = json.loads((source / "tokenizer.json").read_text())
    config = json.loads((source / "tokenizer_config.json").read_text())
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].__getitem__)
    added = {token["content"] for token in stored["added_tokens"]}
    metadata: dict[str, Any] = {
        "model": "gpt2" if pre else "llama",
        "tokens": tokens,
        "token_type": [_token_type(token, added) for token in tokens],
    }
    if pre:
        metadata |= {"pre": pre, "merges": [" ".join(m) for m in stored["model"]["merges"]]}
    else:
        metadata["scores"] = [-float(number) for number in range(len(tokens))]
    for name, key in {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token"}.items():
        if key in config:
            metadata[f"{name}_token_id"] = tokens.index(config[key])
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return keys | {"tokenizer.chat_template": config.get("chat_template")}


def _token_type(token: str, added: set[str]) -> int:
    if token == "<unk>":
        return 2
    return 3 if token in added else 6 if token.startswith("<0x") else 1
