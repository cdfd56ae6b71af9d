"""The skel library: what a phone's NPU loads to run the kernels, one file for each Hexagon version.

It is made of kernels (llvmlite), the dispatcher `skel.c` with the table of their contracts (clang
of ziglang), and nothing of a vendor's. The same objects, linked beside a main program, run in an
emulator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from edge.errors import UnknownTarget, UsageError
from edge.formats import Format
from edge.target import HVX_VERSIONS
from edge.tool import finish
from npu.hvx import build, contract, inner, protocol
from npu.hvx.contracts import families
from npu.hvx.elf import file_name
from npu.hvx.isa import table

_SOURCE = Path(__file__).with_name("skel.c")
_MARK = "/*KERNELS*/"


def objects(version: int, formats: Iterable[Format]) -> list[bytes]:
    """The library's objects. Raises MissingDependency without a compiler."""
    isa = table(version)
    forms = list({str(form): form for form in formats}.values())
    kernels = families(forms)
    made = [each for family in kernels for each in family]
    assert max(len(each.slots) for each in made) <= protocol.SLOTS
    source = protocol.header() + _SOURCE.read_text(encoding="utf-8")
    return [
        *build.kernel_objects(isa, kernels),
        build.runtime_object(isa),
        build.compiled(isa, source.replace(_MARK, contract.source(made))),
        *(build.assembled(isa, text) for text in inner.assemblies(forms)),
    ]


def library(version: int, formats: Iterable[Format], folder: Path) -> Path:
    """Write a version's library into `folder`; returns its path.

    Raises UnknownTarget for a version that there is no code for, MissingDependency without a
    compiler.
    """
    if version not in HVX_VERSIONS:
        known = ", ".join(f"v{number}" for number in HVX_VERSIONS)
        raise UnknownTarget(f"Hexagon v{version}: no code for it", f"use one of {known}")
    build.require_tools()
    path = folder / file_name(version)
    build.shared(objects(version, formats), path)
    return path


def main(words: list[str]) -> int:
    if len(words) < 3 or not words[1].removeprefix("v").isdigit():
        print("use: python -m npu.hvx.skel FOLDER VERSION FORMAT...   (such as . v73 w4g64)")
        return UsageError.exit_code
    folder, version = Path(words[0]), int(words[1].removeprefix("v"))
    folder.mkdir(parents=True, exist_ok=True)
    path = library(version, map(Format.parse, words[2:]), folder)
    print(f"wrote {path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    finish("skel", lambda: main(sys.argv[1:]))
