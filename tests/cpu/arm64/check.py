"""Run by the emulated Python, which has NumPy alone: the cases of a file, with compiled kernels.

python check.py FILE CASES, where FILE is a library, or a code image.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from cpu.codegen.image import Image
from cpu.library import Library
from tests.cpu.calls import check, load, run


def main(library: Path, file: Path) -> int:
    functions = Image.open(library) if library.suffix == ".code" else Library(library)
    cases = load(file)
    for case in cases:
        check(case, run(functions, case))
    assert importlib.util.find_spec("llvmlite") is None
    print(f"{len(cases)} cases hold")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
