"""What chunk-sharing saves: one set of NPU graphs for all chunks, against one set for each.

The static pieces of a bundle are loaded once, as prefill does it, then again for every further
chunk of a prompt, as it would be if graphs depended on a chunk's place. Bytes are of the files;
memory is what the process grows by, measured.

example:
  python -m apps.bench.sharing model.lutra --prefill npu:htp-v75 --chunks 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from apps.output import megabytes, print_json, print_table
from edge.backend import prompt_backend_for
from edge.bundle import Bundle
from edge.errors import LutraError, NpuUnavailable
from edge.npu import NpuRecord
from edge.target import Target
from npu.htp.graphs import graph_ends


@dataclass(frozen=True)
class Sharing:
    """Figures for a prompt of some chunks; `apart` are those of a set of graphs for each chunk."""

    chunks: int
    graphs: int
    graphs_apart: int
    file_bytes: int
    file_bytes_apart: int
    memory_bytes: int
    memory_bytes_apart: int


def measure(bundle: Bundle, target: Target, chunks: int) -> Sharing:
    """Load the graphs once, then once more for each further chunk."""
    record = bundle.manifest.npu
    if record is None:
        raise NpuUnavailable(f"{bundle.folder} has no NPU program", "convert with --npu")
    backend = prompt_backend_for(target)
    before = memory_bytes()
    kept: list[object] = [backend.load(bundle, target)]
    once = memory_bytes() - before
    kept += [backend.load(bundle, target) for _ in range(chunks - 1)]
    apart = memory_bytes() - before
    graphs, stored = len(graph_ends(bundle.graph, record)), _file_bytes(bundle, record, target)
    return Sharing(chunks, graphs, chunks * graphs, stored, chunks * stored, once, apart)


def _file_bytes(bundle: Bundle, record: NpuRecord, target: Target) -> int:
    fitting = [binary for binary in record.binaries if binary.target == target]
    loaded = [b for b in fitting if b.soc == fitting[0].soc and not b.shared]
    names = [binary.context or binary.path for binary in loaded]
    return sum(bundle.manifest.files[name].byte_count for name in names)


def memory_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Memory of this process that is in use."""
    line = next(t for t in status.read_text().splitlines() if t.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        "python -m apps.bench.sharing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="converted with --npu")
    parser.add_argument("--prefill", default="npu:ort", metavar="TARGET", help="(npu:ort)")
    parser.add_argument("--chunks", type=int, default=4, metavar="N", help="of a prompt (4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    try:
        made = measure(Bundle.open(args.bundle), Target.parse(args.prefill), args.chunks)
    except LutraError as error:
        print(f"sharing: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        print_json(asdict(made))
    else:
        print_table(
            [("", "shared", f"one set for each of {made.chunks} chunks", "saved"), *rows(made)]
        )
    return 0


def rows(made: Sharing) -> list[tuple[str, str, str, str]]:
    """The table's rows."""

    def row(
        name: str, shared: int, apart: int, show: Callable[[int], str]
    ) -> tuple[str, str, str, str]:
        return name, show(shared), show(apart), f"{100 * (1 - shared / max(apart, 1)):.0f} %"

    return [
        row("graphs", made.graphs, made.graphs_apart, str),
        row("files", made.file_bytes, made.file_bytes_apart, megabytes),
        row("memory (measured)", made.memory_bytes, made.memory_bytes_apart, megabytes),
    ]


if __name__ == "__main__":
    sys.exit(main())
