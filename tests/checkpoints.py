"""Tiny random checkpoints for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.synth import synthesize

# 172 is no multiple of a group, a tile or a step: padding is always in play.
TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def make_checkpoint(folder: Path, *, dtype: str = "f32", **changes: Any) -> Path:
    """A random checkpoint in `folder`, with keys of the config changed."""
    synthesize(TINY | changes, folder, dtype=dtype)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json behind the weights' back; a value of None removes the key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rewrite_weights(folder: Path, **changes: NDArray[Any] | None) -> None:
    """Replace tensors of model.safetensors; None removes one. Names have "." as "__"."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, values in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if values is not None:
            tensors[name.replace("__", ".")] = np.ascontiguousarray(values)
    save_file(tensors, path)
