"""LoRA adapters in PEFT's layout, merged into the weights as they are read.

An adapter is a folder with adapter_config.json and adapter_model.safetensors: for a layer with
weight W [out, in], lora_A [r, in] and lora_B [out, r]. Merged, W + s * B A, where s is alpha / r
(arXiv 2106.09685), or alpha / sqrt(r) with rank stabilization (2312.03732), times a factor that the
user gives.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.models.config import Config
from converter.sources.source import Source, Stored
from edge.errors import (
    BadWeights,
    MissingTensor,
    SourceNotFound,
    TruncatedSource,
    UnsupportedMath,
    UsageError,
    WrongShape,
)
from edge.planes import Quantized
from edge.tensorfile import TensorFile, to_float32

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")

# What chose or trained the layers, and does not change what the adapter means.
_INERT_WORDS = """
    auto_mapping base_model_name_or_path eva_config exclude_modules inference_mode layers_pattern
    layers_to_transform loftq_config lora_dropout megatron_config megatron_core peft_version
    rank_pattern revision runtime_config target_modules task_type
"""
_INERT = tuple(_INERT_WORDS.split())
# Ways to draw the first A and B; others (pissa, olora, loftq, corda) change the base's weights too.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight: scale * B A, with A [r, in] and B [out, r] in `file`."""

    file: TensorFile
    stem: str
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, [out, in]."""
        a, b = (self.file.entries[self.stem + part].shape for part in (_A, _B))
        return b[0], a[1]

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows first..last of it, [last - first, in] float32. Raises BadWeights."""
        rank = self.file.entries[self.stem + _A].shape[0]
        a, b = self._read(_A, 0, rank), self._read(_B, first, last)
        with np.errstate(all="ignore"):
            rows = np.float32(self.scale) * (b @ a)
        if not np.isfinite(rows).all():
            raise BadWeights(
                f"{self.file.path}: what is added to {self.stem}.weight has NaN or infinity",
                "get another copy of the adapter, or use a smaller scale",
            )
        return rows

    def _read(self, part: str, first: int, last: int) -> NDArray[np.float32]:
        name = self.stem + part
        return to_float32(self.file.read(name, first, last), self.file.entries[name].dtype)


@dataclass(frozen=True)
class Adapter:
    """An open adapter: deltas by the name of the weight that they change."""

    folder: Path
    factor: float
    deltas: Mapping[str, Delta]

    @staticmethod
    def parse(text: str) -> Adapter:
        """Open FOLDER or FOLDER:FACTOR.

        Raises UsageError for a factor that is no number, SourceNotFound, TruncatedSource,
        WrongShape, or UnsupportedMath naming the key or tensor that is not understood.
        """
        folder, factor = Path(text), 1.0
        if not folder.is_dir() and ":" in text:
            name, _, number = text.rpartition(":")
            folder, factor = Path(name), _factor(text, number)
        config = _read_config(folder)
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise SourceNotFound(
                f"{folder}: no {WEIGHTS}",
                "save the adapter as safetensors (save_pretrained), and give its folder",
            )
        file = TensorFile(weights)
        return Adapter(folder, factor, dict(_deltas(file, config, factor)))

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        """Size, time and factor: tells whether the adapter has changed."""
        stat = (self.folder / WEIGHTS).stat()
        config = (self.folder / CONFIG).stat()
        return {
            f"lora {self.folder}:{self.factor!r}": [
                *(stat.st_size, stat.st_mtime_ns),
                *(config.st_size, config.st_mtime_ns),
            ]
        }


class MergedSource:
    """A source with adapters merged into its weights.

    Raises MissingTensor or WrongShape where an adapter was made for another model.
    """

    def __init__(self, inner: Source, adapters: Sequence[Adapter]) -> None:
        self._inner = inner
        self._adapters = adapters
        for adapter in adapters:
            for name, delta in adapter.deltas.items():
                _check(inner, adapter, name, delta)

    @property
    def folder(self) -> Path:
        return self._inner.folder

    @property
    def config(self) -> dict[str, Any]:
        return self._inner.config

    @property
    def name(self) -> str:
        return " + ".join([self._inner.name, *(a.folder.resolve().name for a in self._adapters)])

    @property
    def tensor_names(self) -> frozenset[str]:
        return self._inner.tensor_names

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        whole = dict(self._inner.fingerprint)
        for adapter in self._adapters:
            whole |= adapter.fingerprint
        return whole

    @property
    def quantized(self) -> bool:
        return self._inner.quantized

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(name)

    def dtype(self, name: str) -> str:
        return self._inner.dtype(name)

    def stored(self, name: str) -> Stored | None:
        how = self._inner.stored(name)
        if how is None or not any(name in a.deltas for a in self._adapters):
            return how
        if how.form is not None and not how.form.quantized:
            return how
        return Stored(how.kind, None, False, "an adapter changes it")

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        rows = self._inner.rows(name, first, last)
        for delta in self._deltas(name):
            rows = rows + delta.rows(first, last)
        return rows

    def codes(self, name: str, first: int, last: int) -> Quantized:
        return self._inner.codes(name, first, last)

    def shard_of(self, name: str) -> str:
        return self._inner.shard_of(name)

    def read_json(self, name: str) -> dict[str, Any]:
        return self._inner.read_json(name)

    def read_bytes(self, name: str) -> bytes | None:
        return self._inner.read_bytes(name)

    def _deltas(self, name: str) -> Iterator[Delta]:
        for adapter in self._adapters:
            if name in adapter.deltas:
                yield adapter.deltas[name]


def _check(inner: Source, adapter: Adapter, name: str, delta: Delta) -> None:
    if name not in inner.tensor_names:
        raise MissingTensor(
            f"{adapter.folder}: the adapter changes {name}, which {inner.name} does not have",
            "give the adapter with the model that it was trained on",
        )
    if inner.shape(name) != delta.shape:
        raise WrongShape(
            f"{adapter.folder}: the adapter is for a {name} of {list(delta.shape)}, "
            f"{inner.name} has {list(inner.shape(name))}",
            "give the adapter with the model that it was trained on",
        )


def _factor(text: str, number: str) -> float:
    try:
        factor = float(number)
    except ValueError:
        raise SourceNotFound(f"{text}: no such folder", "give FOLDER or FOLDER:SCALE") from None
    if not math.isfinite(factor):
        raise UsageError(f"--lora {text}: a scale of {factor}", "give a number, such as 0.5")
    return factor


@dataclass(frozen=True)
class _Settings:
    """What an adapter_config.json says of its scales."""

    alpha: float
    alpha_by_name: Mapping[str, float]
    stabilized: bool

    def scale(self, module: str, rank: int) -> float:
        """alpha / r of one layer, whose own alpha is found as PEFT does: by the name's end."""
        named = (a for key, a in self.alpha_by_name.items() if f".{module}".endswith(f".{key}"))
        alpha = next(named, self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilized else rank)


def _read_config(folder: Path) -> _Settings:
    path = folder / CONFIG
    try:
        values = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise TruncatedSource(f"{path}: not whole JSON ({error})", "copy it again") from error
    if not isinstance(values, dict):
        raise SourceNotFound(f"{folder}: no {CONFIG}", "give the folder of a PEFT adapter")
    try:
        return _settings(Config(values, f"{CONFIG} "))
    except UnsupportedMath as error:
        what = error.what.replace("config key ", "", 1)
        raise UnsupportedMath(f"{folder}: {what}", "merge it with PEFT first") from error


def _settings(config: Config) -> _Settings:
    config.choice("peft_type", ["LORA"])
    config.choice("bias", ["none"], "none")
    start = config.peek("init_lora_weights")
    if start not in _STARTS:
        raise config.unsupported("init_lora_weights", "need one that leaves the base as it was")
    patterns = config.section("alpha_pattern") or Config({})
    by_name = {key: patterns.number(key) for key in patterns.values}
    for key in by_name:
        if not re.fullmatch(r"[\w.]+", key):
            raise config.unsupported("alpha_pattern", "need names of layers, not expressions")
    config.integer("r")
    settings = _Settings(config.number("lora_alpha"), by_name, config.flag("use_rslora", False))
    config.ignore(*_INERT)
    config.finish()
    return settings


def _deltas(file: TensorFile, config: _Settings, factor: float) -> Iterator[tuple[str, Delta]]:
    """The weights that a file changes. Raises UnsupportedMath for tensors of another kind."""
    for name, entry in file.entries.items():
        stem = name.removesuffix(_A).removesuffix(_B)
        pair = [file.entries.get(stem + part) for part in (_A, _B)]
        known = stem != name and stem.startswith(_PREFIX) and entry.dtype in _FLOATS
        if not known or None in pair:
            raise UnsupportedMath(
                f"{file.path}: tensor {name} is not one of a pair of lora_A and lora_B in floats",
                "merge the adapter with PEFT first (merge_and_unload), and convert the result",
            )
        a, b = (part.shape for part in pair if part is not None)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
            raise WrongShape(
                f"{file.path}: {stem} has lora_A {list(a)} and lora_B {list(b)}, need [r, in] and "
                "[out, r]",
                "get another copy of the adapter",
            )
        module = stem.removeprefix(_PREFIX)
        scale = factor * config.scale(module, a[0])
        if not math.isfinite(scale):
            raise BadWeights(f"{file.path}: {stem} has a scale of {scale}", "check lora_alpha")
        yield f"{module}.weight", Delta(file, stem, scale)
