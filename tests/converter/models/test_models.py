"""Published checkpoints build, and configs that ask for other math are refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from converter.models import build_model, model_types
from converter.models.builder import Model
from edge.errors import UnknownArchitecture, UnsupportedMath
from edge.graph import Attention, Int8
from tests.converter.models import published
from tests.golden.variants import VARIANTS


def windows(model: Model) -> list[int | None]:
    return [op.window for op in model.graph.ops() if isinstance(op, Attention)]


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_published_checkpoint_has_its_parameters(name: str) -> None:
    case = published.PUBLISHED[name]
    model = build_model(case.config)
    stored = {origin.name: origin.shape for origin in model.origins.values()}
    assert sum(math.prod(shape) for shape in stored.values()) == case.parameters
    used = [t for t in model.graph.tensors if t.name not in model.constants]
    assert sum(math.prod(tensor.shape) for tensor in used) == case.parameters


def test_every_model_file_has_a_published_config() -> None:
    types = {case.config["model_type"] for case in published.PUBLISHED.values()}
    assert types == set(model_types())


def test_context_is_the_one_asked_for() -> None:
    config = VARIANTS["llama"].config
    assert build_model(config).graph.context == 64
    assert build_model(config, 16).graph.context == 16


def test_windows_of_published_checkpoints() -> None:
    gemma3 = windows(build_model(published.GEMMA_3_4B.config))
    assert gemma3[:7] == [1024] * 5 + [None, 1024]
    assert len(gemma3) == 34
    assert windows(build_model(published.GEMMA_2_2B.config))[:3] == [4096, None, 4096]
    assert set(windows(build_model(published.MISTRAL_7B_V0_1.config))) == {4096}
    assert set(windows(build_model(published.MISTRAL_7B_V0_3.config))) == {None}
    assert set(windows(build_model(published.QWEN2_5_0_5B.config))) == {None}


def test_a_missing_window_is_not_a_null_one() -> None:
    """Transformers gives Mistral a window of 4096 where the key is missing, none where null."""
    config = dict(published.MISTRAL_7B_V0_3.config)
    assert set(windows(build_model(config))) == {None}
    del config["sliding_window"]
    assert set(windows(build_model(config))) == {4096}


def test_bitnet_rounds_what_its_linear_layers_read() -> None:
    model = build_model(VARIANTS["bitnet_ternary"].config)
    rounded = [op for op in model.graph.ops() if isinstance(op, Int8)]
    # q, k and v share one, gate and up another; o and down have theirs
    assert len(rounded) == 4 * len(model.graph.caches)
    transforms = {
        model.origins[t.name].transform for t in model.graph.tensors if t.role == "linear"
    }
    assert transforms == {"ternarize"}


def test_packed_bitnet_is_taken_as_it_is() -> None:
    model = build_model(published.BITNET_2B_PACKED)
    assert any(isinstance(op, Int8) for op in model.graph.ops())
    assert {origin.transform for origin in model.origins.values()} == {"as_is"}


# gemma3 has its sizes in text_config, where published files leave most of them out.
@pytest.mark.parametrize("name", sorted(set(model_types()) - {"gemma3"}))
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_missing_key_is_named(name: str, key: str) -> None:
    config = {k: value for k, value in VARIANTS[name].config.items() if k != key}
    with pytest.raises(UnsupportedMath, match=f"config key {key} is missing"):
        build_model(config)


@pytest.mark.parametrize("name", model_types())
def test_unknown_key_is_named(name: str) -> None:
    config = VARIANTS[name].config | {"residual_multiplier": 0.22}
    with pytest.raises(UnsupportedMath, match=r"config key residual_multiplier is 0\.22"):
        build_model(config)


def test_unknown_key_of_a_nested_config_is_named() -> None:
    config = VARIANTS["gemma3"].config
    config = config | {"text_config": config["text_config"] | {"altup_num_inputs": 4}}
    with pytest.raises(UnsupportedMath, match=r"config key text_config\.altup_num_inputs is 4"):
        build_model(config)


def test_multimodal_config_without_text_is_refused() -> None:
    with pytest.raises(UnsupportedMath, match="text_config"):
        build_model({"model_type": "gemma3"})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"hidden_size": "48"}, "hidden_size"),
        ("llama", {"hidden_size": 48.0}, "hidden_size"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
        ("llama", {"vocab_size": 0}, "vocab_size"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads"),
        ("llama", {"attention_bias": 1}, "attention_bias"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ("llama", {"rope_theta": math.inf}, "rope_theta"),
        ("llama", {"hidden_act": "xielu"}, "hidden_act"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"sliding_window": 8}, "sliding_window"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("mistral", {"sliding_window": 2.5}, "sliding_window"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
        ("phi3", {"partial_rotary_factor": "half"}, "partial_rotary_factor"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": "1110"}, "no_rope_layers"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("bitnet", {"quantization_config": {"quant_method": "bitnet"}}, "linear_class"),
        ("bitnet", {"quantization_config": {}}, "quant_method"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar"),
    ],
)
def test_wrong_value_is_named(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedMath, match=rf"config key (\w+\.)?{named} is"):
        build_model(VARIANTS[name].config | changes)


@pytest.mark.parametrize(
    "key", ["use_rms_norm", "modules_to_not_convert", "linear_class", "quant_method"]
)
def test_other_bitnet_quantization_is_named(key: str) -> None:
    config = VARIANTS["bitnet_ternary"].config
    values = {"use_rms_norm": True, "modules_to_not_convert": ["q_proj"]}
    section = config["quantization_config"] | {key: values.get(key, "bitlinear")}
    with pytest.raises(UnsupportedMath, match=rf"quantization_config\.{key}"):
        build_model(config | {"quantization_config": section})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "config"}, "config"),
        ({"model_type": "../llama"}, "llama"),
        ({"model_type": None}, "None"),
        ({}, "None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel"),
    ],
)
def test_other_architectures_are_refused(values: dict[str, Any], named: str) -> None:
    config = (VARIANTS["llama"].config | values) if values else {}
    with pytest.raises(UnknownArchitecture, match=named):
        build_model(config)
