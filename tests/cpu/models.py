"""Run by the emulated Python, which has NumPy alone: whole models with a library's kernels.

python models.py LIBRARY TARGET JOBS OUT

JOBS is a list of {bundle, threads, rows, ids}; OUT gets the logits of each, by its number.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu.codegen.tables import isa_for
from cpu.library import Library
from cpu.native import Native
from cpu.program import CpuProgram
from edge.bundle import Bundle
from edge.generate import prefill
from edge.kvcache import KVCache
from edge.target import Target


def main(library: str, target: str, jobs: str, out: str) -> int:
    # as many threads as a job asks for, on however few processors: waiting threads give way
    os.sched_getaffinity = lambda process: set(range(16))
    lookup_bits = isa_for(Target.parse(target)).lookup_bits
    native = Native([Library(Path(library))], matrix_unit=False, lookup_bits=lookup_bits)
    made = {
        str(number): logits(native, Target.parse(target), job)
        for number, job in enumerate(json.loads(Path(jobs).read_text()))
    }
    np.savez(out, **made)  # type: ignore[arg-type]
    print(f"{len(made)} models ran")
    return 0


def logits(native: Native, target: Target, job: dict[str, Any]) -> NDArray[np.float32]:
    """Of all tokens, `rows` of them at a time."""
    bundle, ids, rows = Bundle.open(job["bundle"]), job["ids"], job["rows"]
    program = CpuProgram(bundle, target, native, job["threads"])
    cache = KVCache(bundle.graph.caches, bundle.graph.context)
    steps = range(0, len(ids), rows)
    return np.concatenate(
        [prefill(program, cache, ids[i : i + rows], all_logits=True) for i in steps]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
