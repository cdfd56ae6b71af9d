"""Context binaries of graphs, for one SoC, each checked before it counts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edge.disk import check_space
from edge.errors import NpuRefused
from npu.htp.context import check_header
from npu.htp.guard import Done, run_child
from npu.htp.socs import Soc
from npu.htp.trace import check_account, read_account

_LEAST_FREE_BYTES = 1 << 20


def compile_graphs(
    models: Mapping[str, Path],
    soc: Soc,
    folder: Path,
    done: Done,
    *,
    block_weights: bool,
    shared: bool = False,
) -> dict[str, tuple[Path, Path]]:
    """Compile ONNX `models`, by name, for a SoC into `folder`.

    Returns each graph's ONNX file and the context binary that it refers to: one for all where it is
    `shared`, with weights that are the same in it once. `done` is called with a graph's name when
    it is compiled. Raises NpuRefused with the op and the reason where any op is not on the HTP or
    not in integers, or where a binary is for something else; NpuCrashed; NoSpace.
    """
    shutil.rmtree(folder, ignore_errors=True)  # the compiler writes over nothing
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as traces:
        items = []
        for name, path in models.items():
            trace = Path(traces) / name
            trace.mkdir()
            out = folder / f"{name}.onnx"
            items.append({"name": name, "onnx": str(path), "out": str(out), "trace": str(trace)})
        settings = {"soc": soc.number, "block_weights": block_weights, "shared": shared}
        try:
            run_child({"verb": "compile", "items": items, **settings}, done)
        except NpuRefused:
            check_space(folder, _LEAST_FREE_BYTES)  # of a full disk the compiler says nothing
            for name in models:  # the compiler's account says more than the exception
                account = read_account(Path(traces) / name)
                if account.refused:
                    check_account(account, f"{name} for {soc.name}")
            raise
        for name in models:
            check_account(read_account(Path(traces) / name), f"{name} for {soc.name}")
    return {name: _checked(folder, name, soc, "*" if shared else f"{name}_*") for name in models}


def _checked(folder: Path, name: str, soc: Soc, stem: str) -> tuple[Path, Path]:
    path = folder / f"{name}.onnx"
    found = sorted(folder.glob(f"{stem}.bin"))
    if not path.is_file() or len(found) != 1:
        raise NpuRefused(f"{name} for {soc.name}: the compiler wrote no binary", "try again")
    check_header(found[0], soc.number, soc.version)
    return path, found[0]
