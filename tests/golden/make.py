"""Makes golden.npz: what Transformers computes for every variant, in float32 with eager attention.

And for every rotation, its frequencies followed by its attention factor.

Needs torch and transformers, which the tests do not; run from the repository's root, with both
installed beside lutra:

    python -m tests.golden.make

Beside the logits of each variant it stores a fingerprint of the weights, so that a test tells other
weights from other math.
"""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # BitNet's rounding is compiled otherwise, and slowly

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
from transformers.integrations.bitnet import AutoBitLinear, replace_with_bitnet_linear
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.utils.quantization_config import BitNetQuantConfig

from converter.models import build_model
from converter.synth import drawn_tensors
from tests.golden.rotations import ROTATIONS, RotationCase
from tests.golden.store import PATH, fingerprint
from tests.golden.variants import VARIANTS, Config, Variant, token_ids

# What a multimodal checkpoint names its language model, and what Transformers does inside.
RENAMED = ("language_model.model.", "model.language_model.")

# How far from a half the codes of 8-bit activations must stay, in steps: float32 differs from one
# machine to the next by some 1e-5 of a step, and a code that tips over shows in the logits.
CODE_MARGIN = 5e-5


def main() -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, variant in VARIANTS.items():
        weights = {
            tensor.name: tensor.values(variant.seed)
            for tensor in drawn_tensors(build_model(variant.config))
        }
        model = make_model(variant)
        load(model, weights)
        refuse_ties(model)
        with torch.no_grad():
            logits = model(torch.from_numpy(token_ids())[None]).logits[0]
        arrays[name] = logits.numpy().astype(np.float32)
        arrays[f"{name}.weights"] = np.array(fingerprint(weights))
        print(f"{name:28} largest {np.abs(arrays[name]).max():6.2f}")
    for name, case in ROTATIONS.items():
        arrays[f"rotation.{name}"] = make_rotation(case)
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")


def make_model(variant: Variant) -> torch.nn.Module:
    """The model of a variant in Transformers, with whatever weights."""
    config = make_config(variant.config)
    made_by = AutoModelForImageTextToText if config.model_type == "gemma3" else AutoModelForCausalLM
    model = made_by.from_config(config, attn_implementation="eager").float().eval()
    quantization = variant.config.get("quantization_config")
    if quantization is not None:
        settings = {key: value for key, value in quantization.items() if key != "quant_method"}
        replace_with_bitnet_linear(model, ["lm_head"], BitNetQuantConfig(**settings))
    return model


def make_config(values: Config) -> PreTrainedConfig:
    """The config in Transformers, without the quantization of weights that are not loaded."""
    copied = deepcopy(values)  # Transformers writes into nested ones
    copied.pop("quantization_config", None)
    return AutoConfig.for_model(copied.pop("model_type"), **copied)


def load(model: torch.nn.Module, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Put the weights in, and see that every tensor of the language model is there and no other."""
    state = {name.replace(*RENAMED): torch.from_numpy(array) for name, array in weights.items()}
    if model.config.tie_word_embeddings:
        embedding = next(name for name in state if name.endswith("embed_tokens.weight"))
        state["lm_head.weight"] = state[embedding]
    missing, unexpected = model.load_state_dict(state, strict=False)
    seeing = ("model.vision_tower.", "model.multi_modal_projector.")
    missing = [name for name in missing if not name.startswith(seeing)]
    assert not missing, f"missing {missing}"
    assert not unexpected, f"unexpected {unexpected}"


def make_rotation(case: RotationCase) -> np.ndarray[Any, Any]:
    """Frequencies and attention factor, [rotary_dim / 2 + 1]."""
    config = make_config(case.config)
    if case.layer_type is None:
        kind = config.rope_parameters["rope_type"]
        plain = Phi3RotaryEmbedding.compute_default_rope_parameters
        function = ROPE_INIT_FUNCTIONS.get(kind, plain)
        frequencies, factor = function(config, seq_len=case.context)
    else:
        kind = config.rope_parameters[case.layer_type]["rope_type"]
        plain = Gemma3RotaryEmbedding.compute_default_rope_parameters
        function = ROPE_INIT_FUNCTIONS.get(kind, plain)
        frequencies, factor = function(config, layer_type=case.layer_type)
    return np.append(frequencies.numpy(), np.float32(factor))


def refuse_ties(model: torch.nn.Module) -> None:
    """See that no 8-bit code is near a tie; another seed of the variant moves them."""

    def check(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        codes = inputs[0] * 127 / inputs[0].abs().amax(-1, keepdim=True)
        margin = float((codes - codes.floor() - 0.5).abs().min())
        assert margin > CODE_MARGIN, f"a code is {margin:.1e} from a tie: use another seed"

    for module in model.modules():
        if isinstance(module, AutoBitLinear):
            module.register_forward_pre_hook(check)


if __name__ == "__main__":
    main()
