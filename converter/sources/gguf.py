"""A GGUF file as a source: llama.cpp's names and orders turned into a checkpoint's."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.sources.gguf_config import describe_model
from converter.sources.gguf_header import Entry
from converter.sources.gguf_parts import read_parts, whole_name
from converter.sources.gguf_tokenizer import tokenizer_files
from converter.sources.gguf_types import decode, decode_codes
from converter.sources.source import Stored
from edge.errors import BadWeights, MissingTensor, TruncatedSource, UnsupportedMath
from edge.planes import Quantized

# Frequencies of a head: no vector that goes into the config comes near.
_MAX_CONFIG_VALUES = 1 << 16


class GgufFile:
    """An open GGUF file, or all parts of a split one; `path` is the first.

    Headers are read; a tensor's rows are read when asked for.
    """

    def __init__(self, path: Path) -> None:
        self._parts, self._header = read_parts(path)
        self.path = self._parts[0]
        self._model = describe_model(path, self._header, self._small_vector)
        self.config: dict[str, Any] = self._model.config

    @property
    def folder(self) -> Path:
        return self.path

    @property
    def name(self) -> str:
        return whole_name(self.path)

    @property
    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._model.names)

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        stats = {path.name: path.stat() for path in self._parts}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    @property
    def quantized(self) -> bool:
        return any(entry.type.block > 1 for entry in self._header.tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        return self._entry(name).type.name

    def stored(self, name: str) -> Stored | None:
        kind = self._entry(name).type
        assert kind.form is not None  # the header refuses what is not read
        return Stored(kind.name, kind.form, kind.exact)

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        entry = self._entry(name)
        values = decode(entry.type, self._bytes(name, first, last))
        if self._model.architecture.plus_one and name.endswith("norm.weight"):
            with np.errstate(invalid="ignore"):  # NaN is found by whoever looks at the weights
                values = values - np.float32(1)
        return values.reshape(-1, *entry.shape[1:])

    def codes(self, name: str, first: int, last: int) -> Quantized:
        return decode_codes(self._entry(name).type, self._bytes(name, first, last))

    def shard_of(self, name: str) -> str:
        return self._entry(name).path.name

    def read_json(self, name: str) -> dict[str, Any]:
        return self._files.get(name, {})

    def read_bytes(self, name: str) -> bytes | None:
        found = self._files.get(name)
        return None if found is None else json.dumps(found, ensure_ascii=False).encode()

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        """The small files of the Hugging Face layout that the metadata makes up for."""
        return tokenizer_files(self.path, self._header.metadata)

    def _bytes(self, name: str, first: int, last: int) -> NDArray[np.uint8]:
        """Blocks of rows first..last in the checkpoint's order, [rows, bytes].

        A vector is one row to its blocks, but its elements are asked for.
        """
        entry = self._entry(name)
        if len(entry.shape) == 1:
            size = entry.byte_count // entry.shape[0]
            if entry.type.block > 1:
                raise UnsupportedMath(
                    f"{self.path}: vector {name} is {entry.type.name}, need floats",
                    "give a file whose vectors are F32, as llama.cpp makes them",
                )
        else:
            size = entry.row_bytes
        if not self._interleaved(name):
            return self._read(entry, first, last, size)
        head = self._model.head_dim
        start, end = first // head * head, min(-(-last // head) * head, entry.shape[0])
        order = _places(np.arange(first, last), head) - start
        return np.ascontiguousarray(self._read(entry, start, end, size)[order])

    def _read(self, entry: Entry, first: int, last: int, size: int) -> NDArray[np.uint8]:
        count = (last - first) * size
        content = np.fromfile(entry.path, np.uint8, count, offset=entry.start + first * size)
        if content.size != count:
            raise TruncatedSource(
                f"{entry.path}: was longer when it was opened", "copy or download the file again"
            )
        return content.reshape(last - first, size)

    def _interleaved(self, name: str) -> bool:
        inner = name.split(".")[-2:-1]
        return self._model.architecture.interleaved and inner in (["q_proj"], ["k_proj"])

    def _entry(self, name: str) -> Entry:
        if name not in self._model.names:
            raise MissingTensor(
                f"{self.path}: no tensor for {name}", "give a whole GGUF file of the model"
            )
        return self._header.tensors[self._model.names[name]]

    def _small_vector(self, name: str) -> list[float]:
        entry = self._header.tensors[name]
        if len(entry.shape) > 1 or entry.type.block > 1 or entry.shape[0] > _MAX_CONFIG_VALUES:
            raise TruncatedSource(
                f"{self.path}: tensor {name} is {list(entry.shape)} in {entry.type.name}, need a "
                "short vector of floats",
                "give a whole GGUF file of the model",
            )
        values = decode(entry.type, self._read(entry, 0, 1, entry.byte_count)).ravel()
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise BadWeights(
                f"{self.path}: tensor {name} has values that divide no frequency",
                "the file is damaged: get another copy",
            )
        return [float(value) for value in values]


def _places(rows: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Where rows of a checkpoint's q or k are in an interleaved file.

    Element i of a head and element i + half are neighbours there.
    """
    head, inner = np.divmod(rows, head_dim)
    half, pair = np.divmod(inner, head_dim // 2)
    return head * head_dim + 2 * pair + half
