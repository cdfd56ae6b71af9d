"""A bundle's manifest: everything about it but the weights, as data with a checked JSON form.

Nothing is inferred from a name. The manifest carries a digest of itself, so a hand-edited or
half-copied one is told from a good one before anything is believed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edge import graph as graphs
from edge import npu
from edge.backend import Artifact
from edge.digest import sha256
from edge.errors import BadManifest, LutraError, WrongSchema
from edge.formats import Format
from edge.graph import Graph
from edge.npu import NpuRecord
from edge.records import make
from edge.target import Target

SCHEMA = 1
FILE_NAME = "manifest.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"

_CURE = "copy the bundle again, or convert again"


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file of the bundle."""

    byte_count: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """Format of a tensor and what storing it in that format cost.

    `relative_rms_error` is the root mean square of the error over that of the weights.
    """

    form: Format
    relative_rms_error: float


@dataclass(frozen=True)
class GraphSize:
    """A chunk length that the bundle is made for."""

    name: str
    rows: int
    logit_rows: int


@dataclass(frozen=True)
class GenerationDefaults:
    """What the checkpoint's authors set for sampling; None where they set nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class TokenizerRecord:
    """What the engine must know of the tokens beside tokenizer.json, which stands for itself.

    `special_tokens` are the texts ("bos_token" and so on) that the chat template may print.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `graph` is in its decode form, of one row.

    `source` counts the types of the checkpoint's tensors, for people.
    """

    lutra: str
    name: str
    model_type: str
    config: Mapping[str, Any]
    tokenizer: TokenizerRecord
    generation: GenerationDefaults
    graph: Graph
    graph_sizes: tuple[GraphSize, ...]
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, FileRecord]
    artifacts: tuple[Artifact, ...] = ()
    source: str = ""
    npu: NpuRecord | None = None

    def to_text(self) -> str:
        """The JSON text, with schema and digest."""
        body = self._body()
        return json.dumps(body | {"digest": _digest(body)}, indent=1, ensure_ascii=False)

    def _body(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "lutra": self.lutra,
            "name": self.name,
            "model_type": self.model_type,
            "source": self.source,
            "config": dict(self.config),
            "tokenizer": asdict(self.tokenizer),
            "generation": asdict(self.generation),
            "graph": graphs.to_json(self.graph),
            "graph_sizes": [asdict(size) for size in self.graph_sizes],
            "tensors": {
                name: {"format": str(t.form), "relative_rms_error": t.relative_rms_error}
                for name, t in self.tensors.items()
            },
            "artifacts": [
                {"path": a.path, "target": str(a.target), "tools": a.tools} for a in self.artifacts
            ],
            "files": {name: asdict(record) for name, record in self.files.items()},
        } | ({} if self.npu is None else {"npu": npu.to_json(self.npu)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest.json. Raises BadManifest, WrongSchema or BadGraph."""
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(path, f"not whole ({type(error).__name__}: {error})") from error
    if schema != SCHEMA:
        raise _wrong_schema(path, schema, data.get("lutra", "?"))
    digest = data.pop("digest", None)
    if digest != _digest(data):
        raise _bad(path, "altered: its digest is not that of what it says")
    try:
        return _parse(data)
    except LutraError as error:
        raise type(error)(f"{path}: {error.what}", error.cure or _CURE) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(path, f"{type(error).__name__}: {error}") from error


def _parse(data: Mapping[str, Any]) -> Manifest:
    parts: dict[str, Any] = {
        "tokenizer": make(TokenizerRecord, data["tokenizer"]),
        "generation": make(GenerationDefaults, data["generation"]),
        "graph": graphs.from_json(data["graph"], rows=1, logit_rows=1),
        "graph_sizes": [make(GraphSize, size) for size in data["graph_sizes"]],
        "tensors": {name: _tensor(record) for name, record in data["tensors"].items()},
        "artifacts": [_artifact(record) for record in data["artifacts"]],
        "files": {_inside(name): make(FileRecord, r) for name, r in data["files"].items()},
    }
    if "npu" in data:
        parts["npu"] = npu.from_json(data["npu"])
    _require_listed(parts)
    plain = {name: data[name] for name in ("lutra", "name", "model_type", "config")}
    return make(Manifest, plain | parts | {"source": data.get("source", "")})


def _tensor(record: Mapping[str, Any]) -> TensorRecord:
    form = Format.parse(record["format"])
    return make(TensorRecord, {"form": form, "relative_rms_error": record["relative_rms_error"]})


def _artifact(record: Mapping[str, Any]) -> Artifact:
    return make(Artifact, {**record, "target": Target.parse(record["target"])})


def _require_listed(parts: Mapping[str, Any]) -> None:
    """What is named anywhere must be among the files. Raises ValueError."""
    named = [WEIGHTS, *(artifact.path for artifact in parts["artifacts"])]
    if (record := parts.get("npu")) is not None:
        named += [name for binary in record.binaries for name in binary.files]
        named += [record.shadow] if record.shadow is not None else []
    for name in named:
        if _inside(name) not in parts["files"]:
            raise ValueError(f"{name} is not among its files")


def _inside(name: str) -> str:
    """A file's path in the bundle, which must stay there. Raises ValueError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file {name!r} is outside of the bundle")
    return name


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(canonical.encode()).hexdigest()


def _bad(path: Path, found: str) -> BadManifest:
    return BadManifest(f"{path}: {found}", _CURE)


def _wrong_schema(path: Path, schema: object, version: object) -> WrongSchema:
    newer = isinstance(schema, int) and schema > SCHEMA
    return WrongSchema(
        f"{path}: schema {schema}, written by lutra {version}; this version reads schema {SCHEMA}",
        "upgrade: pip install -U lutra" if newer else "convert the model again with this version",
    )
