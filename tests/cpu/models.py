"""Run by a Python that has NumPy alone: whole models with the kernels of a library compiled ahead.

python models.py LIBRARY TARGET JOBS OUT [EMULATOR]

JOBS is a list of {bundle, threads, ids, prompts}; OUT gets the logits of each, by its number. A
prompt is the numbers of tokens of its steps, from the first token on. EMULATOR is a library that
performs AMX instructions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu import native
from cpu.codegen.tables import isa_for
from cpu.library import Library
from cpu.program import CpuProgram
from edge.bundle import Bundle
from edge.generate import prefill
from edge.kvcache import KVCache
from edge.target import Target


def main(library: str, target: str, jobs: str, out: str, emulator: str = "") -> int:
    # as many threads as a job asks for, on however few processors: waiting threads give way
    os.sched_getaffinity = lambda process: set(range(16))
    if emulator:
        native.refused_tiles = lambda: ""
        assert ctypes.CDLL(emulator).start_emulation() == 0
    isa = isa_for(Target.parse(target))
    code = native.Native(
        [Library(Path(library))], matrix_unit=isa.tiles is not None, lookup_bits=isa.lookup_bits
    )
    made = {
        str(number): logits(code, Target.parse(target), job)
        for number, job in enumerate(json.loads(Path(jobs).read_text()))
    }
    assert importlib.util.find_spec("llvmlite") is None
    np.savez(out, **made)  # type: ignore[arg-type]
    print(f"{len(made)} models ran")
    return 0


def logits(code: native.Native, target: Target, job: dict[str, Any]) -> NDArray[np.float32]:
    """Of all tokens of all prompts."""
    bundle, parts = Bundle.open(job["bundle"]), []
    program = CpuProgram(bundle, target, code, job["threads"])
    for prompt in job["prompts"]:
        cache = KVCache(bundle.graph.caches, bundle.graph.context)
        for count in prompt:
            ids = job["ids"][cache.length : cache.length + count]
            parts.append(prefill(program, cache, ids, all_logits=True))
    return np.concatenate(parts)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
