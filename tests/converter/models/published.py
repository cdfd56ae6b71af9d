"""config.json files as published, and how many parameters their checkpoints have.

Keys that say nothing of the math are left out of most; the lists of longrope factors, which are
long, have the right length alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converter.presets import PRESETS


@dataclass(frozen=True)
class Published:
    """A checkpoint's config, and the parameters of its language model."""

    config: dict[str, Any]
    parameters: int


LLAMA_3_2_1B = Published(PRESETS["llama3.2-1b"], 1_235_814_400)

SMOLLM2_135M = Published(
    {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    134_515_008,
)

QWEN1_5_1_8B = Published(PRESETS["qwen1.5-1.8b"], 1_836_828_672)

QWEN2_5_0_5B = Published(PRESETS["qwen2.5-0.5b"], 494_032_768)

QWEN3_0_6B = Published(PRESETS["qwen3-0.6b"], 596_049_920)

MISTRAL_7B_V0_1 = Published(
    {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    7_241_732_096,
)

MISTRAL_7B_V0_3 = Published(
    MISTRAL_7B_V0_1.config
    | {
        "attention_dropout": 0.0,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32768,
    },
    7_248_023_552,
)

GEMMA_2_2B = Published(
    {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    2_614_341_888,
)

GEMMA_3_1B = Published(
    {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    999_885_952,
)

GEMMA_3_4B = Published(
    {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    3_880_263_168,
)

PHI_3_MINI_4K = Published(
    {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "vocab_size": 32064,
    },
    3_821_079_552,
)

PHI_3_MINI_128K = Published(
    PHI_3_MINI_4K.config
    | {
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "long_factor": [1.0 + i for i in range(48)],
            "short_factor": [1.0 + i / 48 for i in range(48)],
            "type": "longrope",
        },
        "sliding_window": 262144,
    },
    3_821_079_552,
)

PHI_4_MINI = Published(
    PHI_3_MINI_128K.config
    | {
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    3_836_021_760,
)

SMOLLM3_3B = Published(
    {
        "architectures": ["SmolLM3ForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    3_075_098_624,
)

BITNET_2B_BF16 = Published(PRESETS["bitnet-2b"], 2_412_820_480)

# The same model with weights packed four to a byte, which the converter refuses.
BITNET_2B_PACKED = BITNET_2B_BF16.config | {
    "quantization_config": {
        "linear_class": "autobitlinear",
        "quant_method": "bitnet",
        "quantization_mode": "offline",
    }
}

QWEN2_5_1_5B = Published(PRESETS["qwen2.5-1.5b"], 1_543_714_304)

PUBLISHED = {
    "meta-llama/Llama-3.2-1B": LLAMA_3_2_1B,
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2_135M,
    "Qwen/Qwen1.5-1.8B": QWEN1_5_1_8B,
    "Qwen/Qwen2.5-0.5B": QWEN2_5_0_5B,
    "Qwen/Qwen2.5-1.5B": QWEN2_5_1_5B,
    "Qwen/Qwen3-0.6B": QWEN3_0_6B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B_V0_1,
    "mistralai/Mistral-7B-v0.3": MISTRAL_7B_V0_3,
    "google/gemma-2-2b": GEMMA_2_2B,
    "google/gemma-3-1b-it": GEMMA_3_1B,
    "google/gemma-3-4b-it": GEMMA_3_4B,
    "microsoft/Phi-3-mini-4k-instruct": PHI_3_MINI_4K,
    "microsoft/Phi-3-mini-128k-instruct": PHI_3_MINI_128K,
    "microsoft/Phi-4-mini-instruct": PHI_4_MINI,
    "HuggingFaceTB/SmolLM3-3B": SMOLLM3_3B,
    "microsoft/bitnet-b1.58-2B-4T-bf16": BITNET_2B_BF16,
}
