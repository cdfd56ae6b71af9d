"""The peer: llama.cpp at its best, through llama-cpp-python in a Python of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.bench.gguf_file import (
    LLAMACPP_FORMATS,
    Summary,
    check_source,
    is_of,
    read_summary,
    require_gguf,
    write_gguf,
)
from apps.bench.process import Child
from converter.models import build_model
from converter.sources.huggingface import open_checkpoint
from edge.errors import MissingDependency, OutputExists, UsageError
from edge.graph import Graph
from edge.target import Target, this_machine
from edge.watch import Watcher

SIDE = "apps.bench.llamacpp_side"

# The environment variable that names the Python to find llama_cpp in.
PYTHON_VARIABLE = "LUTRA_PEER_PYTHON"

# Features of targets as llama.cpp's system info calls them.
SYSTEM_INFO = {
    "avx2": "AVX2",
    "avx512": "AVX512",
    "vnni": "AVX512_VNNI",
    "amx": "AMX_INT8",
    "dotprod": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}

BUILD = "python -m apps.bench.build_peer FOLDER"


@dataclass(frozen=True)
class PeerOptions:
    """Which peer to run: its Python, what checkpoint it gets, in what format, kept in `file`.

    `flash_attention` is auto, on or off; `any_build` takes a build with other instruction sets than
    the target's.
    """

    checkpoint: Path
    form: str
    python: str
    file: Path | None
    flash_attention: str
    any_build: bool


@dataclass(frozen=True)
class PeerModel:
    """A GGUF file ready to be loaded, what it holds, and what sets it apart from our model.

    `versions` are the peer's, with the instruction sets that it was built for.
    """

    path: Path
    file_bytes: int
    form: str
    summary: Summary
    notes: list[str]
    versions: dict[str, Any]


def default_python() -> str:
    """The Python that LUTRA_PEER_PYTHON names, else this one."""
    return os.environ.get(PYTHON_VARIABLE, sys.executable)


def check_model(checkpoint: Path, graph: Graph) -> None:
    """Check that a checkpoint's matrices are those of a bundle's graph, by name and shape.

    Raises UsageError: a peer that runs another model is no peer.
    """
    bundles = {tensor.name: tensor.shape for tensor in graph.tensors}
    theirs = build_model(open_checkpoint(checkpoint).config).graph
    layers = len(theirs.caches), len(graph.caches)
    if layers[0] != layers[1]:
        raise _other_model(f"{checkpoint} has {layers[0]} layers, the bundle {layers[1]}")
    for tensor in theirs.tensors:
        if len(tensor.shape) > 1 and bundles.get(tensor.name) != tensor.shape:
            found = bundles.get(tensor.name, "none")
            what = f"{checkpoint}: {tensor.name} is {tensor.shape}, the bundle's {found}"
            raise _other_model(what)


def _other_model(what: str) -> UsageError:
    return UsageError(what, "give --checkpoint what the bundle was converted from")


def start_side(python: str) -> Child:
    """The peer in a process of its own."""
    return Child(SIDE, python)


def open_peer(
    options: PeerOptions, target: Target, folder: Path, threads: int, watcher: Watcher
) -> PeerModel:
    """Check how the peer was built, and write its model.

    Raises MissingDependency where llama_cpp is not installed, UsageError where it uses other
    instruction sets than ours, and what writing raises.
    """
    with start_side(options.python) as child:
        try:
            versions = child.ask("versions")
        except MissingDependency as error:
            raise MissingDependency(
                f"{options.python}: {error.what}",
                f"{BUILD}, then add --peer-python FOLDER/bin/python",
            ) from error
        if not options.any_build:
            check_build(versions["system_info"], target)
        return _prepare(options, child, versions, folder, threads, watcher)


def check_build(system_info: str, target: Target) -> None:
    """Compare the peer's instruction sets with the target's, or for `ref` with the machine's.

    Raises UsageError: a comparison is of programs, not of what the processor may do.
    """
    wanted: Collection[str] = target.features
    if target.kind != "cpu":
        wanted, target = this_machine().features, this_machine().target()
    has = {name for name, theirs in SYSTEM_INFO.items() if _is_on(system_info, theirs)}
    missing = sorted((set(wanted) & set(SYSTEM_INFO)) - has)
    surplus = sorted(has - set(wanted))
    if not missing and not surplus:
        return
    parts = [f"lacks {', '.join(missing)}"] * bool(missing)
    parts += [f"uses {', '.join(surplus)}"] * bool(surplus)
    raise UsageError(
        f"the peer {' and '.join(parts)}, the target is {target}",
        f'{BUILD} --target "{target}", or add --peer-any-build to compare all the same',
    )


def _is_on(system_info: str, name: str) -> bool:
    return re.search(rf"\b{name} = 1\b", system_info) is not None


def _prepare(
    options: PeerOptions,
    child: Child,
    versions: dict[str, Any],
    folder: Path,
    threads: int,
    watcher: Watcher,
) -> PeerModel:
    """Write the GGUF file, or take the one that is there where it is of the same checkpoint."""
    require_gguf()
    notes = check_source(open_checkpoint(options.checkpoint))
    path = options.file or folder / "peer.gguf"
    if path.exists():
        _check_file(options, path)
    else:
        _write(options, child, path, threads, watcher)
    size = path.stat().st_size
    return PeerModel(path, size, options.form, read_summary(path), notes, versions)


def _check_file(options: PeerOptions, path: Path) -> None:
    """Check that a file from an earlier run is what would be written now."""
    cure = "remove it, or choose another --peer-file"
    if not is_of(path, options.checkpoint):
        raise OutputExists(f"{path} was not written from {options.checkpoint} as it is now", cure)
    if (form := read_summary(path).form) != options.form:
        raise OutputExists(f"{path} is {form}, not {options.form}", cure)


def _write(options: PeerOptions, child: Child, path: Path, threads: int, watcher: Watcher) -> None:
    if options.form not in LLAMACPP_FORMATS:
        write_gguf(options.checkpoint, path, options.form, watcher)
        return
    source = path.with_name(path.name + ".f16")
    partial = path.with_name(path.name + ".partial")
    try:
        write_gguf(options.checkpoint, source, "F16", watcher)
        watcher.note(f"llama.cpp quantizes to {options.form}")
        child.ask(
            "quantize", source=str(source), out=str(partial), form=options.form, threads=threads
        )
        partial.replace(path)
    finally:
        source.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
