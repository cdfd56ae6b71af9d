"""ARM64 under emulation: kernels compiled ahead against their twins, and the base package itself.

The emulated Python is made by `sysroot.sh` beside this file (see `conftest`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import edge
from cpu.codegen.image import link_image
from cpu.kernels import linear
from edge.formats import Format
from edge.kvcache import CacheFormat
from edge.target import Target
from tests.checkpoints import make_checkpoint
from tests.cpu.arm64.emulator import PROCESSORS, Emulator
from tests.cpu.attention_cases import SHAPES as ATTENTION_SHAPES
from tests.cpu.attention_cases import attention_case
from tests.cpu.calls import Case, save
from tests.cpu.code_cases import code_cases
from tests.cpu.harness import (
    ARM,
    FORMATS,
    dot_case,
    expand_case,
    float_case,
    isa_of,
    kernels_of,
    largest_sums,
    linear_case,
    object_of,
    random_weights,
    whole_numbers,
)
from tests.cpu.model_jobs import ALL_FORMATS
from tests.cpu.row_cases import (
    argmax_case,
    elementwise_cases,
    embedding_case,
    exact_norm_quantize_case,
    int8_case,
    norm_case,
    quantize_sliced_case,
    rope_case,
)

pytest.importorskip("ziglang", reason="libraries are linked by it")

CHECK = Path(__file__).with_name("check.py")

# Rows, width, rows of x, threads.
SHAPES = ((1, 1, 1, 1), (150, 300, 3, 2), (64, 123, 1, 1), (70, 172, 2, 3))


def cases_of(target: str) -> list[Case]:
    """Everything that is compared on a target."""
    isa, rng = isa_of(target), np.random.default_rng(11)
    cases = [
        expand_case(isa, bits, rng, many=many)[0] for bits in (2, 3, 4) for many in (False, True)
    ]
    cases += [dot_case(isa, rng, whole=whole)[0] for whole in (False, True)]
    for form in map(Format.parse, FORMATS):
        ways = [{}, {"many": True}] + [{"tables": True}] * (form.bits in isa.lookup_bits)
        for way in ways:
            cases += [whole_numbers(form, rng, **way)]
            cases += [largest_sums(form, most=most, **way) for most in (False, True)]
        for rows, width, batch, threads in SHAPES:
            x = rng.normal(size=(batch, width)).astype(np.float32)
            weights = random_weights(form, rows, width, rng)
            cases += [linear_case(form, weights, x, threads=threads, **way) for way in ways]
    for form in (Format.parse("f16"), Format.parse("f32")):
        kernel = linear.float_linear_kernel(form)
        cases += [float_case(kernel, form, *shape) for shape in SHAPES]
    for cache_format in get_args(CacheFormat):
        cases += [attention_case(cache_format, shape)[0] for shape in ATTENTION_SHAPES]
    cases += [case for case, _ in code_cases(threads=2)]
    return cases + row_cases(isa.lanes)


def row_cases(lanes: int) -> list[Case]:
    """Kernels of whole rows, element by element, and of rows of a table."""
    cases = [case for case, _ in elementwise_cases(2)]
    for threads, private in ((1, False), (2, True)):
        cases += [
            norm_case(lanes, 2, 4, 18, threads=threads, private=private),
            rope_case(3, 2, 22, 9, threads=threads, private=private),
            int8_case(lanes, 3, 33, threads=threads, private=private),
            exact_norm_quantize_case(3, 70, 32, threads=threads, private=private),
            quantize_sliced_case(3, 300, 128, threads=threads),
            argmax_case(np.arange(150, dtype=np.float32) % 97, threads, lanes),
        ]
    return cases + [embedding_case(Format.parse(form), 70, 36, threads=2) for form in ALL_FORMATS]


@pytest.mark.parametrize("target", ARM)
def test_kernels_compiled_ahead_are_their_twins(
    arm64: Emulator, libraries: dict[str, Path], target: str, tmp_path: Path
) -> None:
    cases = cases_of(target)
    save(tmp_path / "cases.npz", cases)
    said = arm64.run(CHECK, libraries[target], tmp_path / "cases.npz", processor=PROCESSORS[target])
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
    said = arm64.run(
        CHECK, tmp_path / "kernels.code", tmp_path / "cases.npz", processor=PROCESSORS[target]
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
    words = ("run", bundle, "--target", "ref", "--raw", "-p", "Once", "--greedy", "--json")
    said = json.loads(arm64.run("-c", LUTRA, *words, "--max-tokens", 5).splitlines()[-1])
    assert len(said["token_ids"]) == 5
    assert said["target"] == "ref"
