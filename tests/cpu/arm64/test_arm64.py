"""ARM64 under emulation: kernels compiled ahead against their twins, and the base package itself.

The emulated Python is made by `sysroot.sh` beside this file; without it, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import edge
from cpu.codegen import link
from cpu.codegen.image import link_image
from cpu.kernels import linear
from cpu.kernels.kernel import Kernel
from edge.formats import Format
from edge.kvcache import CacheFormat
from edge.target import Target
from tests.checkpoints import make_checkpoint
from tests.cpu.attention_cases import SHAPES as ATTENTION_SHAPES
from tests.cpu.attention_cases import attention_case
from tests.cpu.calls import Case, save
from tests.cpu.harness import (
    ARM,
    FORMATS,
    dot_case,
    expand_case,
    float_case,
    isa_of,
    kernels_of,
    linear_case,
    object_of,
    random_weights,
    whole_numbers,
)

pytest.importorskip("ziglang", reason="libraries are linked by it")

ROOT = Path(__file__).resolve().parents[3]

# The least processor that has a target's features, and what its kernel says of it.
PROCESSORS = dict(zip(ARM, ("cortex-a53", "cortex-a76", "max"), strict=True))
FLAGS = {
    "cortex-a53": "fp asimd",
    "cortex-a76": "fp asimd asimdhp asimddp",
    "max": "fp asimd asimdhp asimddp i8mm",
}

# Rows, width, rows of x, threads.
SHAPES = ((1, 1, 1, 1), (150, 300, 3, 2), (64, 123, 1, 1), (70, 172, 2, 3))


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


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("LUTRA_ARM64") or cache / "lutra" / "arm64")
    if not (folder / "complete").is_file() or shutil.which("qemu-aarch64") is None:
        pytest.skip(f"no ARM64 Python at {folder}; run tests/cpu/arm64/sysroot.sh")
    roots = tmp_path_factory.mktemp("roots")
    for processor, flags in FLAGS.items():
        describe(folder / "root", roots / processor, flags)
    return Emulator(folder / "site", roots)


def describe(plain: Path, root: Path, flags: str) -> None:
    """Another root's system files, with a /proc/cpuinfo, which the emulator does not make."""
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {flags}\n")
    for name in ("etc", "lib", "usr"):
        (root / name).symlink_to(plain / name)


def cases_of(target: str) -> tuple[list[Case], list[Kernel]]:
    """Everything that is compared on a target, and the kernels that it takes."""
    isa, rng = isa_of(target), np.random.default_rng(11)
    pairs = [expand_case(isa, bits, rng, many=many) for bits in (2, 3, 4) for many in (False, True)]
    pairs += [dot_case(isa, rng, whole=whole) for whole in (False, True)]
    for form in map(Format.parse, FORMATS):
        made = [whole_numbers(form, rng, many=many) for many in (False, True)]
        for rows, width, batch, threads in SHAPES:
            x = rng.normal(size=(batch, width)).astype(np.float32)
            weights = random_weights(form, rows, width, rng)
            made += [
                linear_case(form, weights, x, threads=threads, many=many) for many in (False, True)
            ]
        pairs += [(case, kernels_of(form)) for case in made]
    for form in (Format.parse("f16"), Format.parse("f32")):
        kernel = linear.float_linear_kernel(form)
        pairs += [(float_case(kernel, form, *shape), [kernel]) for shape in SHAPES]
    for cache_format in get_args(CacheFormat):
        pairs += [attention_case(cache_format, shape) for shape in ATTENTION_SHAPES]
    return [case for case, _ in pairs], [kernel for _, kernels in pairs for kernel in kernels]


@pytest.mark.parametrize("target", ARM)
def test_kernels_compiled_ahead_are_their_twins(
    arm64: Emulator, target: str, tmp_path: Path
) -> None:
    cases, kernels = cases_of(target)
    link.shared_library(object_of(isa_of(target), kernels), tmp_path / "kernels.so")
    save(tmp_path / "cases.npz", cases)
    script = Path(__file__).with_name("check.py")
    said = arm64.run(
        script, tmp_path / "kernels.so", tmp_path / "cases.npz", processor=PROCESSORS[target]
    )
    assert said == f"{len(cases)} cases hold\n"


@pytest.mark.parametrize("target", [ARM[0], ARM[-1]])
def test_code_images_are_their_twins(arm64: Emulator, target: str, tmp_path: Path) -> None:
    """Linked without a linker, with constants for every form of a reference to them."""
    isa, rng, form = isa_of(target), np.random.default_rng(3), Format.parse("w3g64")
    weights = random_weights(form, 70, 172, rng)
    x = rng.normal(size=(2, 172)).astype(np.float32)
    pairs = [expand_case(isa, 3, rng), dot_case(isa, rng, whole=True)]
    pairs += [(linear_case(form, weights, x), kernels_of(form))]
    pairs += [attention_case("int8", shape) for shape in ATTENTION_SHAPES[:4]]
    kernels = [kernel for _, kernels in pairs for kernel in kernels]
    (tmp_path / "kernels.code").write_bytes(link_image(object_of(isa, kernels)))
    save(tmp_path / "cases.npz", [case for case, _ in pairs])
    script = Path(__file__).with_name("check.py")
    said = arm64.run(
        script, tmp_path / "kernels.code", tmp_path / "cases.npz", processor=PROCESSORS[target]
    )
    assert said == f"{len(pairs)} cases hold\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with code for every target."""
    from converter.convert import convert

    folder = tmp_path_factory.mktemp("arm64")
    out = folder / "tiny.lutra"
    convert(make_checkpoint(folder / "tiny"), out, weights="w4g64", targets=ARM)
    return out


TOKENS = [1, 2, 3, 4, 5]
LOGITS = f"""
import sys, numpy, edge
bundle, target, threads, out = sys.argv[1:]
model = edge.load(bundle, target=target, threads=int(threads))
numpy.save(out, model.logits({TOKENS}))
print(model.program.target)
"""


def test_the_base_package_computes_what_it_does_here(
    arm64: Emulator, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "logits.npy"
    arm64.run("-c", LOGITS, bundle, "ref", 1, out, processor="cortex-a53")
    wanted = edge.load(bundle, target="ref").logits(TOKENS)
    np.testing.assert_allclose(np.load(out), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ARM)
@pytest.mark.parametrize("threads", [1, 2])
def test_programs_compiled_ahead_are_as_the_reference(
    arm64: Emulator, bundle: Path, target: str, threads: int, tmp_path: Path
) -> None:
    """`auto` is the target of the processor at hand, as the bundle has code for it."""
    out = tmp_path / "logits.npy"
    said = arm64.run("-c", LOGITS, bundle, "auto", threads, out, processor=PROCESSORS[target])
    assert said.strip() == str(Target.parse(target))
    wanted = edge.load(bundle, target="ref").logits(TOKENS)
    error = np.linalg.norm(np.load(out) - wanted) / np.linalg.norm(wanted)
    assert error < 1e-3


LUTRA = "import sys; from apps.cli import main; sys.exit(main(sys.argv[1:]))"


def test_the_command_line_verifies_and_generates(arm64: Emulator, bundle: Path) -> None:
    arm64.run("-c", LUTRA, "verify", bundle)
    words = ("run", bundle, "--target", "ref", "--raw", "-p", "Once", "--max-tokens", 5, "--json")
    said = json.loads(arm64.run("-c", LUTRA, *words).splitlines()[-1])
    assert len(said["token_ids"]) == 5
    assert said["target"] == "ref"
