"""Sessions on ONNX Runtime that run where they are told to, or raise.

The provider would rather run a graph on the CPU than fail, in three ways: nodes that it does not
take go to the CPU, a missing library puts all of them there, and Python's session retries on the
CPU after an error. All three are off here, and where the nodes are is checked.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import MissingDependency, NpuRefused, NpuUnavailable

if TYPE_CHECKING:
    import onnxruntime

QNN = "QNNExecutionProvider"
CPU = "CPUExecutionProvider"

_CURE = 'pip install "lutra[npu]" (x86-64 Linux, or ARM64 with a Snapdragon), or use --prefill auto'


def cpu_session(path: Path) -> onnxruntime.InferenceSession:
    """A graph on ONNX Runtime's CPU provider, on one thread: the stand-in for an NPU."""
    ort = load_onnxruntime()
    options = _options(ort)
    return _open(ort, path, options, [CPU], CPU)


def qnn_session(
    path: Path,
    options: Mapping[str, str] | None = None,
    *,
    context: Path | None = None,
    shared: bool = False,
    last: bool = False,
) -> onnxruntime.InferenceSession:
    """A graph or a context binary on the HTP, real or emulated.

    `options` are the provider's. With `context`, the graph's context binary is written beside that
    ONNX file. `shared` sessions have one binary, and weights that are the same once; it is written
    with the `last` of them, so all must be kept until then. Raises NpuUnavailable without the
    provider, NpuRefused where it does not take all.
    """
    ort = load_onnxruntime()
    library = load_qnn()
    chosen = _options(ort)
    chosen.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if context is not None:
        chosen.add_session_config_entry("ep.context_enable", "1")
        chosen.add_session_config_entry("ep.context_embed_mode", "0")
        chosen.add_session_config_entry("ep.context_file_path", str(context))
    if shared:
        chosen.add_session_config_entry("ep.share_ep_contexts", "1")
    if last:
        chosen.add_session_config_entry("ep.stop_share_ep_contexts", "1")
    settings = {"backend_path": library.get_qnn_htp_path(), **(options or {})}
    if not Path(settings["backend_path"]).is_file():
        raise NpuUnavailable(f"no NPU library at {settings['backend_path']}", _CURE)
    chosen.add_provider_for_devices(_devices(ort)[:1], settings)
    return _open(ort, path, chosen, [], QNN)


def load_onnxruntime() -> Any:
    """The onnxruntime module. Raises MissingDependency."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("the NPU needs onnxruntime", _CURE) from error
    return onnxruntime


@cache
def load_qnn() -> Any:
    """The module of Qualcomm's provider, registered. Raises MissingDependency, NpuUnavailable."""
    ort = load_onnxruntime()
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise MissingDependency("the HTP needs onnxruntime-qnn", _CURE) from error
    try:
        ort.register_execution_provider_library(QNN, onnxruntime_qnn.get_library_path())
    except Exception as error:  # onnxruntime's classes have no common base
        raise NpuUnavailable(f"onnxruntime-qnn does not load: {error}", _CURE) from error
    if not _devices(ort):
        raise NpuUnavailable("onnxruntime-qnn finds no device on this machine", _CURE)
    return onnxruntime_qnn


def emulated() -> bool:
    """Whether the HTP of this machine is Qualcomm's emulation of one, which x86-64 has."""
    return platform.machine() in ("x86_64", "AMD64")


def versions() -> dict[str, str]:
    """Versions of the packages that make and run NPU graphs, of those that are installed."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-qnn", "onnx"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _devices(ort: Any) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == QNN]


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it would print comes back as an exception
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _open(
    ort: Any, path: Path, options: Any, providers: list[str], need: str
) -> onnxruntime.InferenceSession:
    try:
        with _silent_output():
            session = ort.InferenceSession(
                str(path), sess_options=options, providers=providers or None, enable_fallback=0
            )
    except Exception as error:  # onnxruntime's classes have no common base
        raise NpuRefused(f"{path}: {_first_line(error)}", "convert again") from error
    placed = {info.ep_name for info in session.get_provider_graph_assignment_info()}
    if placed != {need}:
        raise NpuRefused(
            f"{path}: placed on {', '.join(sorted(placed)) or 'nothing'}, need {need} alone",
            "convert again; lutra doctor shows what runs here",
        )
    return session


@contextlib.contextmanager
def _silent_output() -> Iterator[None]:
    """Qualcomm's library greets on standard output, which is the user's; within this it does not.

    What C has buffered is flushed first and last, so that it is the greeting alone that goes.
    """
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    library.fflush(None)
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
