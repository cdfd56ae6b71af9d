"""A checkpoint in the Hugging Face layout: a local folder, or a name on the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.sources.source import Stored
from edge.errors import (
    MissingDependency,
    MissingTensor,
    SourceNotFound,
    TruncatedSource,
    UsageError,
)
from edge.formats import F16, F32
from edge.manifest import FILE_NAME as MANIFEST
from edge.planes import Quantized
from edge.tensorfile import TensorFile, to_float32

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What a conversion reads; other weights in a hub repository (pickles, GGUF, ONNX) stay there.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
# Types of weights; whole numbers are codes of a quantization, which other readers know.
_FLOATS = {"F64": F32, "F32": F32, "F16": F16, "BF16": F16}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Checkpoint:
    """An open checkpoint. Headers are read; a tensor's rows are read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._required_config()
        self._shards = {path.name: TensorFile(path) for path in self._shard_paths()}
        self._places = {name: shard for shard in self._shards.values() for name in shard.entries}

    @property
    def name(self) -> str:
        """A name for people: the hub's for a downloaded one, else the folder's."""
        hub = re.search(r"models--([^/]+?)--([^/]+?)/snapshots/", self.folder.as_posix() + "/")
        return f"{hub[1]}/{hub[2]}" if hub else self.folder.resolve().name

    @property
    def tensor_names(self) -> frozenset[str]:
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises MissingTensor."""
        return self._shard(name).entries[name].shape

    def dtype(self, name: str) -> str:
        """safetensors dtype of a tensor ("BF16"). Raises MissingTensor."""
        return self._shard(name).entries[name].dtype

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        """Rows first..last of a tensor (its elements, for a vector) as float32."""
        return to_float32(self._shard(name).read(name, first, last), self.dtype(name))

    @property
    def quantized(self) -> bool:
        return False

    def stored(self, name: str) -> Stored | None:
        """How a tensor is stored; None for one that is no floats."""
        form = _FLOATS.get(self.dtype(name))
        return None if form is None else Stored(self.dtype(name), form)

    def codes(self, name: str, first: int, last: int) -> Quantized:
        raise NotImplementedError(f"{name} is floats")

    def raw(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Rows first..last of a tensor as they are stored; bfloat16 as uint16."""
        end = self.shape(name)[0] if last is None else last
        return self._shard(name).read(name, first, end)

    def shard_of(self, name: str) -> str:
        """File name of the shard that holds a tensor."""
        return self._shard(name).path.name

    def read_json(self, name: str) -> dict[str, Any]:
        """An optional JSON file of the folder; empty where it is not there."""
        content = self.read_bytes(name)
        return {} if content is None else _parse_object(self.folder / name, content)

    def read_bytes(self, name: str) -> bytes | None:
        """An optional file of the folder. Raises SourceNotFound for one that cannot be read."""
        path = self.folder / name
        return _read(path) if os.path.lexists(path) else None

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        """Size and modification time of every shard: tells whether the weights have changed."""
        stats = {name: shard.path.stat() for name, shard in self._shards.items()}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    def _shard(self, name: str) -> TensorFile:
        if name not in self._places:
            raise MissingTensor(
                f"{self.folder}: no tensor {name} in {', '.join(sorted(self._shards))}",
                "the config implies it: check that config and weights belong together",
            )
        return self._places[name]

    def _required_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not path.is_file():
            if (self.folder / MANIFEST).is_file():
                raise SourceNotFound(
                    f"{self.folder} is a bundle", "give the checkpoint that it was made from"
                )
            raise SourceNotFound(
                f"{self.folder}: no config.json there", "give a folder in the Hugging Face layout"
            )
        return _read_object(path)

    def _shard_paths(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            names = sorted(set(self._weight_map().values()))
            paths = [self.folder / name for name in names]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise SourceNotFound(
                    f"{self.folder}: {INDEX} names {', '.join(missing)}, which is not there",
                    "download the missing shards",
                )
            return paths
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        raise self._no_weights()

    def _weight_map(self) -> Mapping[str, str]:
        weight_map = _read_object(self.folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise TruncatedSource(f"{self.folder / INDEX}: no weight_map", "download it again")
        for name in weight_map.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise TruncatedSource(
                    f"{self.folder / INDEX}: shard {name!r} is not a file name", "download it again"
                )
        return weight_map

    def _no_weights(self) -> SourceNotFound:
        pickles = [p.name for p in (*self.folder.glob("*.bin"), *self.folder.glob("*.pt*"))]
        if pickles:
            return SourceNotFound(
                f"{self.folder}: only pickled weights ({pickles[0]}), which could run code",
                "save the model as safetensors (save_pretrained with safe_serialization)",
            )
        return SourceNotFound(f"{self.folder}: no {SINGLE} and no {INDEX}", "download the weights")


def open_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a folder, or download a hub repository ("org/name") first.

    Raises SourceNotFound, TruncatedSource or MissingDependency; UsageError for a revision of a
    folder.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"revision {revision!r} of {folder}, which is a folder here",
                "leave --revision out, or give a hub name",
            )
        return Checkpoint(folder)
    if folder.is_file():
        raise SourceNotFound(f"{folder} is a file", "give the folder that holds config.json")
    if not _HUB_NAME.fullmatch(str(source)):
        raise SourceNotFound(
            f"{source}: no such folder, and not a hub name", "use a path, or a name like org/name"
        )
    return Checkpoint(_download(str(source), revision))


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependency(
            f"{name} is not a folder here, and downloading needs huggingface_hub",
            'pip install "lutra[convert]"',
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceNotFound(
            f"{name}: no such folder here, and the hub did not give it ({reason})",
            "check the name and the network; gated models need `hf auth login`",
        ) from error


def _read(path: Path) -> bytes:
    try:
        if path.is_file():  # reading a pipe or a device might never end
            return path.read_bytes()
        found = "no file that can be read"
    except OSError as error:
        found = error.strerror or str(error)
    raise SourceNotFound(f"{path}: {found}", "put a readable file there, or remove it")


def _read_object(path: Path) -> dict[str, Any]:
    return _parse_object(path, _read(path))


def _parse_object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TruncatedSource(f"{path}: not whole JSON ({error})", "download it again") from error
    if not isinstance(data, dict):
        raise TruncatedSource(f"{path}: {type(data).__name__}, need an object", "download it again")
    return data
