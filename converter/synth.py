"""Checkpoints of random weights in the Hugging Face layout: any published shape without a download.

A tensor depends on the seed and its own name alone, so any one can be made without the others, and
the model with other layers or another vocabulary has the same values where it has the same tensors.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.models import build_model
from converter.models.builder import Model
from converter.sources.huggingface import INDEX, SINGLE
from edge.disk import disk_errors
from edge.errors import MissingDependency, OutputExists, UsageError
from edge.planes import Part
from edge.tensorfile import TensorFileWriter, to_bfloat16
from edge.watch import Silent, Watcher

Floats = NDArray[np.float32]

# Types of published checkpoints, and what NumPy stores them as.
DTYPES = {"bf16": "uint16", "f16": "float16", "f32": "float32"}

# Shards of published checkpoints have up to 5 GB.
SHARD_BYTES = 5_000_000_000

# Values drawn at a time: 1 MB in float32, which stays in a second-level cache and makes the
# rounding to bfloat16 11 times as fast as 64 MB does.
BLOCK_VALUES = 1 << 18

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Drawn:
    """A tensor of the checkpoint: normal values with this mean and standard deviation."""

    name: str
    shape: tuple[int, ...]
    mean: float
    deviation: float

    @property
    def count(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    def blocks(self, seed: int) -> Iterator[tuple[int, Floats]]:
        """The values in order, as (first row, rows), about BLOCK_VALUES at a time."""
        generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(self.name.encode())]))
        rows, *width = self.shape
        step = max(BLOCK_VALUES // math.prod(width), 1)
        for first in range(0, rows, step):
            block = (min(step, rows - first), *width)
            normal = generator.standard_normal(block, dtype=np.float32)
            yield first, normal * np.float32(self.deviation) + np.float32(self.mean)

    def values(self, seed: int) -> Floats:
        """The whole tensor."""
        return np.concatenate([block for _, block in self.blocks(seed)])


def drawn_tensors(model: Model) -> list[Drawn]:
    """The checkpoint's tensors, drawn so that the logits depend on every piece of the math.

    Matrices keep the size of what they multiply (1 / sqrt(fan in)), which for the usual widths is
    near the 0.02 of published initializers; norm weights and biases vary by 0.2.
    """
    drawn: dict[str, Drawn] = {}
    for origin in model.origins.values():
        mean, deviation = 0.0, 0.2
        if len(origin.shape) == 2:
            deviation = origin.shape[1] ** -0.5
        elif origin.transform != "plus_one" and origin.name.endswith(".weight"):
            mean = 1.0
        drawn.setdefault(origin.name, Drawn(origin.name, origin.shape, mean, deviation))
    return list(drawn.values())


def synthesize(
    config: Mapping[str, Any],
    out: str | Path,
    *,
    seed: int = 0,
    dtype: str = "bf16",
    shard_bytes: int = SHARD_BYTES,
    watcher: Watcher | None = None,
) -> int:
    """Write a checkpoint with random weights for a config.json into the new folder `out`.

    Returns how many weights there are. Raises UnsupportedMath, OutputExists, NoSpace, or
    UsageError for a dtype other than bf16, f16 and f32. config.json is written last: a folder
    without it is one whose writing was interrupted.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}", f"use one of {', '.join(DTYPES)}")
    model = build_model(config)
    tensors = drawn_tensors(model)
    tokenizer = make_tokenizer(model.graph.vocabulary)
    folder = Path(out)
    with disk_errors(folder, "free some space and remove the folder"):
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise OutputExists(f"{folder} exists", "remove it, or choose another name") from error
        _write_weights(folder, tensors, seed, dtype, shard_bytes, watcher or Silent())
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", _tokenizer_config())
        _write_json(folder / "generation_config.json", _TOKEN_IDS | {"do_sample": False})
        _write_json(folder / "config.json.partial", {**config, **_TOKEN_IDS})
        (folder / "config.json.partial").rename(folder / "config.json")
    return sum(tensor.count for tensor in tensors)


def _write_weights(
    folder: Path, tensors: list[Drawn], seed: int, dtype: str, shard_bytes: int, watcher: Watcher
) -> None:
    shards = list(_shards(tensors, shard_bytes // np.dtype(DTYPES[dtype]).itemsize))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    watcher.start("weights", sum(tensor.count for tensor in tensors), "weights")
    if len(shards) == 1:
        _write_shard(folder / SINGLE, shards[0], seed, dtype, watcher)
        return
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, seed, dtype, watcher)
    places = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    _write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


def _shards(tensors: Iterable[Drawn], limit: int) -> Iterator[list[Drawn]]:
    """Tensors in groups of at most `limit` values; a larger one is alone."""
    shard: list[Drawn] = []
    for tensor in tensors:
        if shard and sum(t.count for t in shard) + tensor.count > limit:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_shard(path: Path, tensors: list[Drawn], seed: int, dtype: str, watcher: Watcher) -> None:
    stored = DTYPES[dtype]
    writer = TensorFileWriter(path, {t.name: Part(stored, t.shape) for t in tensors})
    try:
        for tensor in tensors:
            for first, values in tensor.blocks(seed):
                narrow = to_bfloat16(values) if dtype == "bf16" else values.astype(stored)
                writer.write(tensor.name, narrow, first)
                watcher.advance(values.size)
    finally:
        writer.close()


# The tokenizer: three special tokens, then one token a byte.

_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": [0, 2]}


def make_tokenizer(vocabulary: int) -> str:
    """A tokenizer.json with a token for every byte.

    Ids beyond them have no text. A vocabulary of fewer than 259 has the printable bytes first and
    lacks the rest. Raises MissingDependency.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise MissingDependency(
            "making a tokenizer.json needs tokenizers", "pip install tokenizers"
        ) from error
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (c != "Ġ", ord(c)))
    tokens = [*SPECIAL_TOKENS, *letters][:vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return str(tokenizer.to_str(pretty=True))


def _tokenizer_config() -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[2],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
