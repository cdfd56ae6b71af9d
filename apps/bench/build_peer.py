"""Build the peer at its best, in a Python environment of its own.

    python -m apps.bench.build_peer FOLDER [--target cpu:x86_64,avx512,vnni] [--tune]

llama.cpp comes as the source in llama-cpp-python's sdist. It is compiled by clang for exactly the
instruction sets of a target, this machine's own unless told: gcc 12 makes AMX code of it that
crashes. With --tune it is compiled for this processor in all else too (-march=native). Which is
faster depends on the format (docs/benchmarks.md); the better one counts.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from apps.bench.peer import PYTHON_VARIABLE
from edge.errors import LutraError, MissingDependency, OutputExists, UsageError
from edge.target import Target, this_machine
from edge.tool import finish

VERSION = "0.3.36"

_PYTHON = Path("bin", "python")

# What its bindings import.
REQUIREMENTS = ("numpy", "typing_extensions", "diskcache", "jinja2")

_PARTS = ("TOOLS", "SERVER", "TESTS", "EXAMPLES", "COMMON")

# By feature of a target. Of what is not named, cmake's files switch SSE4.2 to AVX2 on by default.
_FLAGS = {
    "avx2": ("GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2"),
    "avx512": ("GGML_AVX512",),
    "vnni": ("GGML_AVX512_VNNI",),
    "amx": ("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16"),
}

# Flags that go with AVX-512 and VNNI where /proc/cpuinfo lists them.
_CPUINFO_FLAGS = {"avx512vbmi": "GGML_AVX512_VBMI", "avx512_bf16": "GGML_AVX512_BF16"}


def cmake_arguments(target: Target, cpuinfo: str, *, tune: bool = False) -> list[str]:
    """Options of llama.cpp's build for a target. Raises UsageError where it is not this machine's.

    Only x86-64 names its instruction sets; elsewhere all of the machine's are used. `tune` leaves
    the rest to -march=native.
    """
    switches = {f"LLAMA_BUILD_{part}": False for part in _PARTS} | {"LLAVA_BUILD": False}
    machine = this_machine()
    if mismatch := machine.mismatch(target):
        raise UsageError(f"--target: {mismatch}", f"use {machine.target()} or less")
    if target.arch != "x86_64":
        if target != machine.target():
            raise UsageError(f"--target {target}", f"on {target.arch} use {machine.target()}")
        switches["GGML_NATIVE"] = True
    else:
        switches["GGML_NATIVE"] = False
        switches |= {
            flag: name in target.features for name, flags in _FLAGS.items() for flag in flags
        }
        with_vnni = "vnni" in target.features
        switches |= {
            flag: with_vnni and name in cpuinfo.split() for name, flag in _CPUINFO_FLAGS.items()
        }
    arguments = [f"-D{name}={'ON' if on else 'OFF'}" for name, on in switches.items()]
    if tune:
        flags = " ".join(["-march=native", *_withheld(target)])
        arguments += [f"-DCMAKE_{language}_FLAGS={flags}" for language in ("C", "CXX")]
    return arguments


def _withheld(target: Target) -> list[str]:
    """What keeps -march=native from instruction sets that a target lacks. Raises UsageError."""
    lacking = set(this_machine().features) - set(target.features)
    if lacking - {"amx"}:
        raise UsageError(f"--tune for {target}", "leave --tune out, or leave out no more than amx")
    return [f"-mno-amx-{part}" for part in ("tile", "int8", "bf16") if lacking]


def build(folder: Path, arguments: list[str], compiler: str, version: str) -> Path:
    """Make the environment and build into it with cmake's arguments; returns its Python.

    The folder is there when all of it is. Raises OutputExists, MissingDependency, or LutraError
    where a step fails.
    """
    if folder.exists():
        raise OutputExists(f"{folder} exists", "remove it, or choose another folder")
    compilers = {"CC": compiler, "CXX": compiler.replace("clang", "clang++")}
    for name in compilers.values():
        if shutil.which(name) is None:
            cure = "install clang 19 and its OpenMP (Debian: clang-19 libomp-19-dev)"
            raise MissingDependency(f"no {name} here", cure)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(partial))
    pip = (str(partial / _PYTHON), "-m", "pip", "install", "--disable-pip-version-check")
    _run(*pip, "--quiet", *REQUIREMENTS)
    source = ("--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python")
    environment = compilers | {"CMAKE_ARGS": shlex.join(arguments)}
    _run(*pip, *source, f"llama-cpp-python=={version}", **environment)
    partial.replace(folder)  # Python and what it imports are found from where they lie
    return folder / _PYTHON


def main() -> int:
    """The command line. Raises LutraError."""
    parser = argparse.ArgumentParser(
        prog="build_peer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="environment to make")
    parser.add_argument("--target", help="instruction sets to use (default: all of this machine)")
    parser.add_argument("--tune", action="store_true", help="compile with -march=native")
    parser.add_argument("--compiler", default="clang-19", help="C compiler (clang-19)")
    parser.add_argument("--version", default=VERSION, help=f"of llama-cpp-python ({VERSION})")
    args = parser.parse_args()
    target = this_machine().target() if args.target is None else Target.parse(args.target)
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    arguments = cmake_arguments(target, cpuinfo, tune=args.tune)
    python = build(args.folder, arguments, args.compiler, args.version)
    print(f"built for {target}; use --peer-python {python}, or set {PYTHON_VARIABLE}")
    return 0


def _run(*command: str, **environment: str) -> None:
    try:
        subprocess.run(command, check=True, env={**os.environ, **environment})  # noqa: S603
    except subprocess.CalledProcessError as error:
        raise LutraError(f"{' '.join(command)}: ended with code {error.returncode}") from error


if __name__ == "__main__":
    finish("build_peer", main)
