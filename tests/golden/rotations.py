"""Frequencies of published shapes: configs, and which of a model's rotations is meant."""

from __future__ import annotations

from dataclasses import dataclass

from tests.converter.models import published
from tests.golden.variants import Config


@dataclass(frozen=True)
class RotationCase:
    """A config, the length it is used at, and the graph's name for the frequencies.

    `layer_type` is Transformers' name for the rotation, where a model has two.
    """

    config: Config
    context: int | None = None
    tensor: str = "rope"
    layer_type: str | None = None


_QWEN_YARN: Config = published.QWEN2_5_1_5B.config | {
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
}

ROTATIONS: dict[str, RotationCase] = {
    "llama3.2-1b": RotationCase(published.LLAMA_3_2_1B.config),
    "qwen2.5-yarn": RotationCase(_QWEN_YARN),
    "phi-3-short": RotationCase(published.PHI_3_MINI_128K.config, context=4096),
    "phi-3-long": RotationCase(published.PHI_3_MINI_128K.config, context=4097),
    "phi-4-mini": RotationCase(published.PHI_4_MINI.config, context=131072),
    "smollm3": RotationCase(published.SMOLLM3_3B.config),
    "bitnet": RotationCase(published.BITNET_2B_BF16.config),
    "gemma-3-4b global": RotationCase(
        published.GEMMA_3_4B.config["text_config"], None, "rope.global", "full_attention"
    ),
    "gemma-3-4b local": RotationCase(
        published.GEMMA_3_4B.config["text_config"], None, "rope.local", "sliding_attention"
    ),
}
