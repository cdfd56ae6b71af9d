"""An ARM64 Python under emulation, and the libraries that it runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpu.codegen import link
from cpu.codegen.emit import Module, object_code
from cpu.kernels.families import families
from cpu.kernels.kernel import Kernel
from cpu.kernels.step import emit_step
from edge.formats import Format
from tests.cpu.harness import ARM, dot_case, expand_case, isa_of
from tests.cpu.model_jobs import ALL_FORMATS

ROOT = Path(__file__).resolve().parents[3]

# The least processor that has a target's features, and what its kernel says of it.
PROCESSORS = dict(zip(ARM, ("cortex-a53", "cortex-a76", "max"), strict=True))
FLAGS = {
    "cortex-a53": "fp asimd",
    "cortex-a76": "fp asimd asimdhp asimddp",
    "max": "fp asimd asimdhp asimddp i8mm",
}


@dataclass(frozen=True)
class Emulator:
    """A Python for ARM64: `site` has its packages, `roots` a root folder for each processor."""

    site: Path
    roots: Path

    def run(self, *words: object, processor: str = "max") -> str:
        """Run it, with this checkout on its path; returns what it printed."""
        root = self.roots / processor
        command = ["qemu-aarch64", "-cpu", processor, "-L", root, root / "usr/bin/python3", *words]
        settings = {
            "PYTHONPATH": os.pathsep.join(map(str, (self.site, ROOT))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | settings,
            cwd=self.roots,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout[-2000:] + done.stderr[-2000:]
        assert done.returncode == 0, f"ended with {done.returncode}: {said}"
        return done.stdout


def describe(plain: Path, root: Path, flags: str) -> None:
    """Another root's system files, with a /proc/cpuinfo, which the emulator does not make."""
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {flags}\n")
    for name in ("etc", "lib", "usr"):
        (root / name).symlink_to(plain / name)


def compile_all(folder: Path) -> dict[str, Path]:
    """A library of every kernel for each target, made by as many processes as there are cores."""
    paths = {target: folder / f"{number}.so" for number, target in enumerate(ARM)}
    with ProcessPoolExecutor(min(len(ARM), len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(compile_target, paths, paths.values()))
    return paths


def compile_target(target: str, out: Path) -> None:
    module = Module(isa_of(target))
    for kernel in {kernel.name: kernel for kernel in _kernels(target)}.values():
        kernel.emit(module)
    emit_step(module)
    link.shared_library([object_code(module)], out)


def _kernels(target: str) -> Iterator[Kernel]:
    """What models need, and what tries expansion and dot products alone."""
    isa, rng = isa_of(target), np.random.default_rng(0)
    forms = map(Format.parse, ALL_FORMATS)
    for family in families(forms, matrix_unit=False, lookup_bits=isa.lookup_bits).values():
        yield from family
    for bits in (2, 3, 4):
        for many in (False, True):
            yield from expand_case(isa, bits, rng, many=many)[1]
    for whole in (False, True):
        yield from dot_case(isa, rng, whole=whole)[1]
