"""From a GGUF file's metadata to a config.json and the names of a Hugging Face checkpoint.

What llama.cpp has in its code rather than in the file (which layers slide, which have no
positions, the scale of Gemma's largest) is in the tables here. A key of the architecture that
nothing here reads is refused by name, as unread keys of a config.json are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converter.sources.gguf_header import Header, Value
from edge.errors import TruncatedSource, UnknownArchitecture, UnsupportedMath

ROPE_FREQS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

# Tensors that go into the config.
CONFIG_TENSORS = (ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS)

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}

# Keys that change nothing of what is computed.
_INERT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "basename")

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp means by an architecture's name.

    `interleaved`: rows of q and k are so ordered that neighbours turn together, where a checkpoint
    turns element i with i + half. `plus_one`: norms hold 1 + the checkpoint's weight. `names`
    overrule the common ones; `special` adds what its config needs beside the common keys.
    """

    model_type: str
    interleaved: bool = False
    plus_one: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    special: Callable[[Keys, dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class Description:
    """A config with what is needed to find and read the tensors: names by the checkpoint's."""

    config: dict[str, Any]
    architecture: Architecture
    names: Mapping[str, str]

    @property
    def head_dim(self) -> int:
        return int(self.config["head_dim"])


class Keys:
    """The metadata of one architecture, with a record of what was read."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.name = self.text("general.architecture", whole=True)
        self._read = {self._full(key) for key in _INERT}

    def has(self, key: str) -> bool:
        return self._full(key) in self.header.metadata

    def integer(self, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
        """A whole number, or one for every layer if all are the same."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or not 0 < value <= most:
            raise self.unsupported(
                key, f"need a whole number up to {most}, the same for all layers"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not abs(value) < 1e30:  # type: ignore[operator,arg-type]
            raise self.unsupported(key, "need a number")
        return float(value)  # type: ignore[arg-type]

    def text(self, key: str, default: str | None = None, *, whole: bool = False) -> str:
        value = self.header.metadata.get(key, default) if whole else self._get(key, default)
        if not isinstance(value, str):
            raise TruncatedSource(
                f"{self.path}: key {key} is {_short(value)}, need a text",
                "give a GGUF file of a language model",
            )
        return value

    def flags(self, key: str) -> list[bool] | None:
        """A flag for every layer, or None where the key is one number or absent."""
        value = self.header.metadata.get(self._full(key))
        if not isinstance(value, np.ndarray):
            return None
        self._read.add(self._full(key))
        return [bool(flag) for flag in value]

    def expect(self, key: str, *allowed: Value) -> None:
        """Refuse a key that says anything but what is computed anyway."""
        if self.has(key) and self._get(key, None) not in allowed:
            raise self.unsupported(key, f"need {' or '.join(map(str, allowed))}")

    def finish(self) -> None:
        """Refuse keys that nobody read. Raises UnsupportedMath naming the first."""
        for key in self.header.metadata:
            if key.startswith(self.name + ".") and key not in self._read:
                raise self.unsupported(key.removeprefix(self.name + "."), "no math for this key")

    def unsupported(self, key: str, need: str) -> UnsupportedMath:
        value = self.header.metadata.get(self._full(key))
        return UnsupportedMath(
            f"{self.path}: key {self._full(key)} is {_short(value)}: {need}",
            "convert from the Hugging Face checkpoint that the file was made from",
        )

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}"

    def _get(self, key: str, default: Value | None) -> Value:
        full = self._full(key)
        self._read.add(full)
        value = self.header.metadata.get(full, default)
        if value is None:
            raise TruncatedSource(f"{self.path}: no key {full}", "give a whole GGUF file")
        return value


def describe_model(
    path: Path, header: Header, vectors: Callable[[str], list[float]]
) -> Description:
    """The config of a file and the names of its tensors. `vectors` reads a small tensor.

    Raises UnknownArchitecture, UnsupportedMath naming the key, or TruncatedSource.
    """
    keys = Keys(path, header)
    arch = ARCHITECTURES.get(keys.name)
    if arch is None:
        raise UnknownArchitecture(
            f"{path}: architecture {keys.name!r} is not one that this version converts",
            f"convert one of: {', '.join(ARCHITECTURES)}",
        )
    config = _common(keys, arch)
    config |= _rope(keys, config, vectors)
    if arch.special is not None:
        arch.special(keys, config)
    keys.finish()
    names = {checkpoint_name(arch, n): n for n in header.tensors if n not in CONFIG_TENSORS}
    return Description(config, arch, names)


def checkpoint_name(arch: Architecture, name: str) -> str:
    """A tensor's name in the Hugging Face layout; its own where it has none there."""
    stem, _, part = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{part}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    inner = (_LAYER | dict(arch.names)).get(found[2]) if found else None
    return f"model.layers.{found[1]}.{inner}.{part}" if found and inner else name


def _common(keys: Keys, arch: Architecture) -> dict[str, Any]:
    table = keys.header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise TruncatedSource(f"{keys.path}: no token_embd.weight", "give a whole GGUF file")
    for key in ("expert_count", "expert_used_count"):
        keys.expect(key, 0)
    keys.expect("attention.causal", True)
    keys.expect("use_parallel_residual", False)
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", max(hidden // heads, 1))
    keys.expect("attention.value_length", head_dim)
    config: dict[str, Any] = {
        "model_type": arch.model_type,
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count", most=len(keys.header.tensors)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 1e4),
        "tie_word_embeddings": "output.weight" not in keys.header.tensors,
    }
    if arch.model_type != "qwen2" and "blk.0.attn_q.bias" in keys.header.tensors:
        config["attention_bias"] = True
    if "blk.0.ffn_gate.bias" in keys.header.tensors:
        config["mlp_bias"] = True
    turned = keys.integer("rope.dimension_count", head_dim)
    if turned != head_dim:
        config["partial_rotary_factor"] = turned / head_dim
    return config


def _rope(
    keys: Keys, config: Mapping[str, Any], vectors: Callable[[str], list[float]]
) -> dict[str, Any]:
    """What scales the frequencies: a divisor for each, in a tensor, or a rule, in keys."""
    trained = config["max_position_embeddings"]
    kind = keys.text("rope.scaling.type", "none")
    if ROPE_FREQS in keys.header.tensors:
        if kind != "none":
            raise keys.unsupported("rope.scaling.type", f"need none beside {ROPE_FREQS}")
        divisors = vectors(ROPE_FREQS)
        scaling = {"short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0}
        return {"rope_scaling": {"rope_type": "longrope", **scaling}}
    if LONG_FACTORS in keys.header.tensors and SHORT_FACTORS in keys.header.tensors:
        return _longrope(keys, trained, vectors)
    match kind:
        case "none":
            keys.expect("rope.scaling.factor", 0.0, 1.0)
            return {}
        case "linear":
            factor = keys.number("rope.scaling.factor")
            keys.expect("rope.scaling.original_context_length", trained)
            return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
        case "yarn":
            return {"rope_scaling": _yarn(keys, trained)}
    raise keys.unsupported("rope.scaling.type", "need none, linear, yarn or longrope")


def _yarn(keys: Keys, trained: int) -> dict[str, Any]:
    keys.expect("rope.scaling.attn_factor", 1.0)
    keys.expect("rope.scaling.yarn_attn_factor", 1.0)
    keys.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    return {
        "rope_type": "yarn",
        "factor": keys.number("rope.scaling.factor"),
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", trained
        ),
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _longrope(keys: Keys, trained: int, vectors: Callable[[str], list[float]]) -> dict[str, Any]:
    """Two sets of divisors, for up to the original length and beyond (Phi 3)."""
    keys.expect("rope.scaling.type", "none", "longrope")
    section: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": vectors(LONG_FACTORS),
        "short_factor": vectors(SHORT_FACTORS),
    }
    if keys.has("rope.scaling.attn_factor"):
        section["attention_factor"] = keys.number("rope.scaling.attn_factor")
    original = keys.integer("rope.scaling.original_context_length", trained)
    return {"original_max_position_embeddings": original, "rope_scaling": section}


def _llama(keys: Keys, config: dict[str, Any]) -> None:
    """Llama, and Mistral, which differs by its window alone."""
    if keys.has("attention.sliding_window"):
        config["model_type"] = "mistral"
        config["sliding_window"] = keys.integer("attention.sliding_window")


def _phi3(keys: Keys, config: dict[str, Any]) -> None:
    if keys.has("attention.sliding_window"):
        config["sliding_window"] = keys.integer("attention.sliding_window")


def _gemma(keys: Keys, config: dict[str, Any], largest: int) -> None:
    """What Gemma 2 and 3 share; the one with `largest` layers has a scale of its own."""
    wide = config["num_hidden_layers"] == largest
    scalar = config["hidden_size"] // config["num_attention_heads"] if wide else config["head_dim"]
    if keys.has("attention.scale"):
        scale = keys.number("attention.scale")
        if not 1e-6 < scale < 1e6:
            raise keys.unsupported("attention.scale", "need what scores can be multiplied by")
        scalar = scale**-2
    config["query_pre_attn_scalar"] = scalar
    config["sliding_window"] = keys.integer("attention.sliding_window")
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    config |= {cap: keys.number(cap) for cap in caps if keys.has(cap)}


def _gemma2(keys: Keys, config: dict[str, Any]) -> None:
    _gemma(keys, config, largest=46)


def _gemma3(keys: Keys, config: dict[str, Any]) -> None:
    _gemma(keys, config, largest=62)
    config["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 1e4)
    slides = keys.flags("attention.sliding_window_pattern")
    if slides is None:
        pattern = keys.integer("attention.sliding_window_pattern", 6)
        slides = [(i + 1) % pattern != 0 for i in range(config["num_hidden_layers"])]
    config["layer_types"] = [_LOCAL if slide else _GLOBAL for slide in slides]


def _bitnet(keys: Keys, config: dict[str, Any]) -> None:
    """Ternary weights come with activations of 8 bits; weights in floats say nothing of them."""
    config["hidden_act"] = "silu" if keys.name == "bitnet" else "relu2"
    first = keys.header.tensors.get("blk.0.attn_q.weight")
    if first is not None and first.type.name in ("TQ1_0", "TQ2_0"):
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True, special=_llama),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", plus_one=True, names=_GEMMA_NORMS, special=_gemma2),
    "gemma3": Architecture("gemma3_text", plus_one=True, names=_GEMMA_NORMS, special=_gemma3),
    "phi3": Architecture("phi3", names=_PHI3_FUSED, special=_phi3),
    "smollm3": Architecture("smollm3", interleaved=True),
    "bitnet": Architecture("bitnet", special=_bitnet),
    "bitnet-b1.58": Architecture("bitnet", special=_bitnet),
}
