"""The prompt backend of Qualcomm's HTP, and of ONNX Runtime standing in for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpu.codegen.cache import cache_folder, keep
from edge.backend import kernels_for
from edge.bundle import Bundle
from edge.errors import NpuRefused, NpuUnavailable, UnknownTarget
from edge.npu import Binary, NpuRecord
from edge.target import Machine, Target
from npu.htp.context import check_header
from npu.htp.device import this_soc
from npu.htp.floats import Floats, NumpyFloats
from npu.htp.graphs import Ends, decodes, graph_ends
from npu.htp.guard import run_child
from npu.htp.layers import LayersProgram
from npu.htp.native import NativeFloats
from npu.htp.placed import STAND_IN, place
from npu.htp.program import HtpProgram
from npu.htp.provider import (
    cpu_session,
    emulated,
    load_onnxruntime,
    load_qnn,
    qnn_session,
    versions,
)
from npu.htp.shadow import ShadowWeights
from npu.htp.socs import SOCS

if TYPE_CHECKING:
    import onnxruntime


class HtpBackend:
    """Makes prompt programs. See `edge.backend.PromptBackend`."""

    def fitting(self, bundle: Bundle, machine: Machine) -> list[Target]:
        """The bundle's targets that a real NPU of this machine runs; emulation is never one."""
        record, soc = bundle.manifest.npu, this_soc()
        if record is None or soc is None or machine.arch != "aarch64":
            return []
        return [SOCS[soc].target] if any(b.soc == soc for b in record.binaries) else []

    def check(self, target: Target) -> str:
        """What runs `target` here, in words. Raises MissingDependency or NpuUnavailable."""
        if target == STAND_IN:
            load_onnxruntime()
        else:
            load_qnn()
        return place(target).text

    def load(
        self, bundle: Bundle, target: Target, threads: int | None = None
    ) -> HtpProgram | LayersProgram:
        """Make the bundle's NPU program ready on `target`; `threads` are for the CPU's part.

        Raises NpuUnavailable where the bundle has none for it, or this machine nothing to run it
        on; AlteredBundle, NpuRefused or NpuCrashed where its files are not what was compiled.
        """
        record, made = _record(bundle), sessions(bundle, target, prompts_only=True)
        floats = _floats(bundle, target, threads)
        if record.form == "layers":
            return LayersProgram(bundle, record, place(target), made, floats)
        return HtpProgram(bundle, record, place(target), made, _shadow(bundle, record), floats)

    def load_whole(self, bundle: Bundle, target: Target) -> LayersProgram:
        """The same, to decode with. Raises UnknownTarget where the program is for prompts alone."""
        record = _record(bundle)
        if record.form != "layers":
            raise UnknownTarget(
                f"{bundle.folder}: its NPU program is for prompts, not for single tokens",
                f"use --prefill {target}, with --decode for what runs after the prompt; or convert "
                "again with --npu-form layers",
            )
        made, floats = sessions(bundle, target), _floats(bundle, target, None)
        return LayersProgram(bundle, record, place(target), made, floats)


def sessions(
    bundle: Bundle, target: Target, *, prompts_only: bool = False
) -> dict[str, onnxruntime.InferenceSession]:
    """The graphs of a bundle's NPU program on `target`, by name, each checked; raises as `load`.

    With `prompts_only`, those for one token stay where they are.
    """
    record = _record(bundle)
    found = _choose(bundle, record, target)
    binaries = {n: b for n, b in found.items() if not (prompts_only and decodes(n))}
    _check_files(bundle, binaries)
    if target != STAND_IN:
        load_qnn()
        _try_first(bundle, binaries)
    made = {}
    for name, ends in graph_ends(bundle.graph, record).items():
        if prompts_only and decodes(name):
            continue
        binary = binaries[name]
        path = bundle.folder / binary.path
        stand_in = target == STAND_IN
        made[name] = cpu_session(path) if stand_in else qnn_session(path, shared=binary.shared)
        _check_session(made[name], path, ends)
    return made


def _record(bundle: Bundle) -> NpuRecord:
    if bundle.manifest.npu is None:
        raise NpuUnavailable(
            f"{bundle.folder} has no NPU program",
            "convert again with --npu SM8650 (or npu:ort, to try it here), or name another target",
        )
    return bundle.manifest.npu


def _choose(bundle: Bundle, record: NpuRecord, target: Target) -> dict[str, Binary]:
    """The target's binaries by graph: on a phone its own SoC's, in emulation any.

    Whole layers come from their shared binary on a phone; the emulation ends the process there.
    """
    shared = record.form == "layers" and target != STAND_IN and not emulated()
    fitting = [b for b in record.binaries if b.target == target and b.shared == shared]
    if target != STAND_IN and not emulated():
        fitting = [binary for binary in fitting if binary.soc == this_soc()]
    if fitting:
        return {b.piece: b for b in fitting if b.soc == fitting[0].soc}
    here = "" if target == STAND_IN or emulated() else f", this is {this_soc() or 'no known SoC'}"
    raise NpuUnavailable(
        f"{bundle.folder} has no program for {target}{here}: it has {_listed(record)}",
        f"use one of them, or convert again with --npu {this_soc() or target}",
    )


def _listed(record: NpuRecord) -> str:
    names = {f"{b.target} ({b.soc})" if b.soc else str(b.target) for b in record.binaries}
    return ", ".join(sorted(names)) or "none"


def _files(binaries: dict[str, Binary]) -> list[str]:
    """All files of binaries, each once: a shared one is of many."""
    return list(dict.fromkeys(name for binary in binaries.values() for name in binary.files))


def _check_files(bundle: Bundle, binaries: dict[str, Binary]) -> None:
    """Compare SHA-256, which context binaries have none of their own of, and headers.

    An altered one often loads, and computes something else.
    """
    for name in _files(binaries):
        bundle.checked(name)
    for binary in binaries.values():
        if binary.context is not None:
            soc = SOCS[binary.soc]
            check_header(bundle.folder / binary.context, soc.number, soc.version)


def _try_first(bundle: Bundle, binaries: dict[str, Binary]) -> None:
    """Load the binaries in a child once, since a bad one can end the process.

    That they loaded is remembered for these files with these versions.
    """
    hashes = [bundle.manifest.files[name].sha256 for name in _files(binaries)]
    key = hashlib.sha256(json.dumps([hashes, versions()]).encode()).hexdigest()
    mark = cache_folder() / f"{key}.loads"
    if mark.exists():
        return
    items = [
        {"name": binary.piece, "path": str(bundle.folder / binary.path)}
        for binary in binaries.values()
    ]
    shared = any(binary.shared for binary in binaries.values())
    run_child({"verb": "load", "shared": shared, "items": items}, lambda _: None)
    keep(mark, b"")


def _check_session(session: Any, path: Path, ends: Ends) -> None:
    """Inputs and outputs must be those that the program will give and take."""
    need = [
        (end.name, f"tensor({end.activation.dtype})", list(end.shape))
        for end in (*ends.inputs, *ends.outputs)
    ]
    listed = [*session.get_inputs(), *session.get_outputs()]
    found = [(one.name, one.type, list(one.shape)) for one in listed]
    if sorted(found) != sorted(need):
        wrong = next(one for one in [*found, *need] if one not in found or one not in need)
        raise NpuRefused(
            f"{path}: does not fit the manifest at {wrong[0]} ({wrong[1]} {wrong[2]})",
            "convert the model again",
        )


def _floats(bundle: Bundle, target: Target, threads: int | None) -> Floats:
    """Compiled kernels where this machine runs any, else NumPy, which says why.

    Beside the stand-in, which has one thread, they have one as well.
    """
    threads = 1 if target == STAND_IN else threads
    kernels, reason = kernels_for(bundle, threads)
    if kernels is None:
        return NumpyFloats(bundle, reason)
    return NativeFloats(bundle, kernels)


def _shadow(bundle: Bundle, record: NpuRecord) -> ShadowWeights:
    hot = {}
    activations = record.by_value()
    for piece in record.pieces(bundle.graph):
        for op in piece.linears:
            outliers = activations[op.x].outliers
            hot[op.weight] = outliers.hot_channels if outliers is not None else ()
    return ShadowWeights(bundle, record.shadow, hot)


BACKEND = HtpBackend()
