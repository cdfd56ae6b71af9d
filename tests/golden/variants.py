"""Tiny models, each with one piece of math switched on that another lacks.

Widths differ from one another, so that a swapped dimension does not go unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]

TOKEN_COUNT = 24
VOCABULARY = 96


@dataclass(frozen=True)
class Variant:
    """A config, and the variant that it must differ from: the one without its piece of math.

    `seed` is the weights', the same in both; `context` is what the bundle is made for, the model's
    own if None.
    """

    config: Config
    differs_from: str | None = None
    context: int | None = None
    seed: int = 0


def token_ids() -> NDArray[np.int64]:
    """The prompt of all variants, [TOKEN_COUNT]."""
    return np.random.Generator(np.random.PCG64(1)).integers(3, VOCABULARY, TOKEN_COUNT)


_SIZES: Config = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}
_LLAMA: Config = _SIZES | {"model_type": "llama", "rope_theta": 10000.0}
_LLAMA_FAST: Config = _LLAMA | {"head_dim": 16, "rope_theta": 100.0}  # eight pairs turn visibly
_MISTRAL: Config = _SIZES | {"model_type": "mistral", "sliding_window": None}
_QWEN2: Config = _SIZES | {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
_QWEN3: Config = _SIZES | {
    "head_dim": 16,
    "max_window_layers": 1,
    "model_type": "qwen3",
    "sliding_window": 8,
}
_GEMMA2: Config = _SIZES | {
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.0,
    "head_dim": 16,
    "model_type": "gemma2",
    "query_pre_attn_scalar": 12,
    "sliding_window": 8,
}
_GEMMA3: Config = _SIZES | {
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "rope_local_base_freq": 100.0,
    "sliding_window": 8,
    "sliding_window_pattern": 2,
}
_GEMMA3_TEXT: Config = _GEMMA3 | {"model_type": "gemma3_text"}
_PHI3: Config = _SIZES | {"model_type": "phi3", "sliding_window": None}
_SMOLLM3: Config = _SIZES | {"model_type": "smollm3", "no_rope_layer_interval": 2}
_BITNET: Config = _SIZES | {"model_type": "bitnet", "rope_theta": 10000.0}

_LLAMA3_SCALING: Config = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16,
    "rope_type": "llama3",
}
_YARN: Config = {
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_type": "yarn",
}
_LONGROPE: Config = {
    "long_factor": [1.5, 2.0, 4.0, 8.0],
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "type": "longrope",
}
_ONLINE: Config = {
    "linear_class": "autobitlinear",
    "quant_method": "bitnet",
    "quantization_mode": "online",
}
_VISION: Config = {
    "hidden_size": 16,
    "image_size": 28,
    "intermediate_size": 16,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
}

VARIANTS: dict[str, Variant] = {
    "llama": Variant(_LLAMA),
    "llama_multi_head": Variant(_LLAMA | {"num_key_value_heads": 6}, "llama"),
    "llama_tied": Variant(_LLAMA | {"tie_word_embeddings": True}, "llama"),
    "llama_attention_bias": Variant(_LLAMA | {"attention_bias": True}, "llama"),
    "llama_mlp_bias": Variant(_LLAMA | {"mlp_bias": True}, "llama"),
    "llama_head_dim": Variant(_LLAMA | {"head_dim": 16}, "llama"),
    "llama_theta": Variant(_LLAMA | {"rope_theta": 100.0}, "llama"),
    "llama_eps": Variant(_LLAMA | {"rms_norm_eps": 0.5}, "llama"),
    "llama_gelu": Variant(_LLAMA | {"hidden_act": "gelu"}, "llama"),
    "llama_relu": Variant(_LLAMA | {"hidden_act": "relu"}, "llama"),
    "llama_linear": Variant(_LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, "llama"),
    "llama_llama3": Variant(_LLAMA | {"rope_scaling": _LLAMA3_SCALING}, "llama"),
    "llama_fast": Variant(_LLAMA_FAST, "llama_head_dim"),
    "llama_yarn": Variant(_LLAMA_FAST | {"rope_scaling": _YARN}, "llama_fast"),
    "llama_yarn_exact": Variant(
        _LLAMA_FAST | {"rope_scaling": _YARN | {"truncate": False}}, "llama_yarn"
    ),
    "llama_yarn_attention": Variant(
        _LLAMA_FAST | {"rope_scaling": _YARN | {"attention_factor": 1.5}}, "llama_yarn"
    ),
    "llama_yarn_mscale": Variant(
        _LLAMA_FAST | {"rope_scaling": _YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}}, "llama_yarn"
    ),
    "llama_yarn_betas": Variant(
        _LLAMA_FAST
        | {
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_type": "yarn",
            }
        },
        "llama_yarn",
    ),
    "llama_longrope": Variant(
        _LLAMA
        | {"rope_scaling": _LONGROPE | {"original_max_position_embeddings": 32, "factor": 3.0}},
        "llama",
    ),
    "mistral": Variant(_MISTRAL, None),
    "mistral_window": Variant(_MISTRAL | {"sliding_window": 8}, "mistral"),
    "mistral_head_dim": Variant(_MISTRAL | {"head_dim": 16}, "mistral"),
    "qwen2": Variant(_QWEN2, "llama"),
    "qwen2_windows": Variant(_QWEN2 | {"use_sliding_window": True}, "qwen2"),
    "qwen2_layer_types": Variant(
        _QWEN2
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "use_sliding_window": True,
        },
        "qwen2_windows",
    ),
    "qwen3": Variant(_QWEN3, "llama_head_dim"),
    "qwen3_bias": Variant(_QWEN3 | {"attention_bias": True}, "qwen3"),
    "qwen3_windows": Variant(_QWEN3 | {"use_sliding_window": True}, "qwen3"),
    "gemma2": Variant(_GEMMA2, "llama_head_dim"),
    "gemma2_scores_uncapped": Variant(_GEMMA2 | {"attn_logit_softcapping": None}, "gemma2"),
    "gemma2_logits_uncapped": Variant(_GEMMA2 | {"final_logit_softcapping": None}, "gemma2"),
    "gemma2_scalar": Variant(_GEMMA2 | {"query_pre_attn_scalar": 48}, "gemma2"),
    "gemma2_full": Variant(_GEMMA2 | {"layer_types": ["full_attention"] * 3}, "gemma2"),
    "gemma2_untied": Variant(_GEMMA2 | {"tie_word_embeddings": False}, "gemma2"),
    "gemma2_bias": Variant(_GEMMA2 | {"attention_bias": True}, "gemma2"),
    "gemma3_text": Variant(_GEMMA3_TEXT, "gemma2"),
    "gemma3_text_pattern": Variant(_GEMMA3_TEXT | {"sliding_window_pattern": 3}, "gemma3_text"),
    "gemma3_text_local": Variant(_GEMMA3_TEXT | {"rope_local_base_freq": 10000.0}, "gemma3_text"),
    "gemma3_text_global": Variant(_GEMMA3_TEXT | {"rope_theta": 100.0}, "gemma3_text"),
    "gemma3_text_linear": Variant(
        _GEMMA3_TEXT | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "gemma3_text"
    ),
    "gemma3_text_capped": Variant(_GEMMA3_TEXT | {"final_logit_softcapping": 2.0}, "gemma3_text"),
    "gemma3": Variant(
        {
            "mm_tokens_per_image": 4,
            "model_type": "gemma3",
            "text_config": _GEMMA3_TEXT,
            "vision_config": _VISION,
        },
    ),
    "phi3": Variant(_PHI3, None),
    "phi3_window": Variant(_PHI3 | {"sliding_window": 8}, "phi3"),
    "phi3_tied": Variant(_PHI3 | {"tie_word_embeddings": True}, "phi3"),
    "phi3_partial": Variant(_PHI3 | {"partial_rotary_factor": 0.5}, "phi3"),
    "phi3_short": Variant(
        _PHI3 | {"original_max_position_embeddings": 32, "rope_scaling": _LONGROPE}, "phi3"
    ),
    "phi3_long": Variant(
        _PHI3 | {"original_max_position_embeddings": 16, "rope_scaling": _LONGROPE},
        "phi3_short",
        context=64,
    ),
    "smollm3": Variant(_SMOLLM3, "smollm3_everywhere"),
    "smollm3_everywhere": Variant(_SMOLLM3 | {"no_rope_layers": [1, 1, 1]}, None),
    "smollm3_listed": Variant(_SMOLLM3 | {"no_rope_layers": [0, 1, 1]}, "smollm3"),
    "smollm3_windows": Variant(
        _SMOLLM3 | {"use_sliding_window": True, "sliding_window": 8}, "smollm3"
    ),
    "smollm3_biases": Variant(_SMOLLM3 | {"attention_bias": True, "mlp_bias": True}, "smollm3"),
    "smollm3_yarn": Variant(_SMOLLM3 | {"rope_scaling": _YARN}, "smollm3"),
    "llama_relu2": Variant(_LLAMA | {"hidden_act": "relu2"}, "llama"),
    "bitnet": Variant(_BITNET, "llama_relu2"),
    "bitnet_bias": Variant(_BITNET | {"attention_bias": True}, "bitnet"),
    "bitnet_silu": Variant(_BITNET | {"hidden_act": "silu"}, "bitnet"),
    "bitnet_theta": Variant({k: v for k, v in _BITNET.items() if k != "rope_theta"}, "bitnet"),
    "bitnet_ternary": Variant(_BITNET | {"quantization_config": _ONLINE}, "bitnet"),
}
