"""Memory of a step: blocks are never shared by what is alive, and scratch depends on shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge
from converter.convert import convert
from cpu.backend import BACKEND
from cpu.bands import TILES_EACH
from cpu.memory import Block, Memory, Pool
from cpu.program import VECTOR_ROWS, CpuProgram
from edge.generate import prefill
from edge.model import Model
from edge.planes import TILE
from edge.target import this_machine
from tests.checkpoints import make_checkpoint

TARGETS = [str(target) for target in BACKEND.targets(this_machine())]
native = pytest.mark.skipif(not TARGETS, reason="no code generator for this machine")


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "give", "barrier"]), st.integers(1, 5)), max_size=60
    )
)
def test_blocks_are_taken_again_behind_a_barrier_and_never_by_two(
    steps: list[tuple[str, int]],
) -> None:
    pool, barriers = Pool(Memory()), 0
    held: list[Block] = []
    given_at: dict[int, int] = {}
    for kind, size in steps:
        if kind == "barrier":
            barriers += 1
        elif kind == "give" and held:
            block = held.pop(size % len(held))
            given_at[block.address] = barriers
            pool.give(block, barriers)
        elif kind == "take":
            block = pool.take(100 * size, barriers)
            assert block.byte_count >= 100 * size
            assert block.address % 64 == 0
            assert given_at.get(block.address, -1) < barriers
            assert block.address not in [other.address for other in held]
            held.append(block)


def loaded(folder: Path, **changes: int) -> Model:
    name = "-".join(map(str, changes.values()))
    convert(make_checkpoint(folder / f"source{name}", **changes), folder / name, weights="w4g32")
    return edge.load(folder / name, threads=1)


def scratch(model: Model) -> int:
    """Bytes of all buffers after a prompt of the longest chunk and a token."""
    program, cache = model.program, model.session().cache
    assert isinstance(program, CpuProgram)
    prefill(program, cache, np.arange(program.chunks[-1]) % 300)
    prefill(program, cache, [1])
    return program.memory.byte_count


@native
def test_scratch_does_not_grow_with_layers(tmp_path: Path) -> None:
    """But for the norms' weights, which are copied."""
    two, six = (
        scratch(loaded(tmp_path, num_hidden_layers=n, max_position_embeddings=400)) for n in (2, 6)
    )
    assert 0 <= six - two < 4 * 2 * (4 * (32 + 64) + 200)


@native
def test_scratch_is_a_few_rows_of_each_width(tmp_path: Path) -> None:
    """Four values of the model's width, two bands, a quantized feed-forward's, and the logits.

    With a matrix unit six, and gate and up are of the feed-forward's width.
    """
    wide, inner, vocabulary = 256, 1024, 4096
    model = loaded(
        tmp_path,
        hidden_size=wide,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_position_embeddings=400,
    )
    program = model.program
    assert isinstance(program, CpuProgram)
    matrix_unit = program.chunks[-1] > VECTOR_ROWS
    count, made = (6, inner) if matrix_unit else (4, TILES_EACH * TILE)
    row = 4 * (count * (wide + 128) + 2 * (made + 128) + vocabulary + 128) + 3 * (inner + 128)
    # zeros for a bias, panels of a matrix unit
    fixed = 4 * vocabulary + 300_000
    assert scratch(model) < program.chunks[-1] * row + fixed


@native
def test_steps_of_fewer_rows_take_no_memory_for_values_of_their_own(tmp_path: Path) -> None:
    model = loaded(tmp_path, max_position_embeddings=400)
    program, cache = model.program, model.session().cache
    assert isinstance(program, CpuProgram)
    prefill(program, cache, np.arange(program.chunks[-1]) % 300)
    blocks = list(program.memory.blocks)
    for count in (1, 9):
        prefill(program, cache, np.arange(count))
    assert program.memory.blocks == blocks


RUNS = """
import sys, edge
from edge.generate import stream_tokens
from edge.sampler import Sampler
model = edge.load(sys.argv[1], threads=1)
session = model.session()
session.tokens.extend([1, 2, 3])
tokens = stream_tokens(
    model.program, session.cache, session.tokens, Sampler(edge.Sampling.greedy())
)
next(tokens), next(tokens)
print(*sys.modules)
"""

# Megabytes each that a step has no use for; what else a module drags in is mostly one of them.
NEEDLESS = {
    *("llvmlite.binding", "numba", "onnx", "onnxruntime", "tokenizers", "jinja2", "safetensors"),
    *("argparse", "rich", "importlib.metadata", "email", "zipfile", "socket", "numpy.random"),
    *("_hashlib", "tempfile", "concurrent.futures", "llvmlite.ir", "edge.schedule"),
    *("converter", "npu", "apps"),
}


@native
def test_drawing_tokens_imports_nothing_without_use(tmp_path: Path) -> None:
    loaded(tmp_path, max_position_embeddings=64)  # its code is in the cache from here on
    command = [sys.executable, "-c", RUNS, str(tmp_path / "64")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not NEEDLESS & set(made.stdout.split())


def zones(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is before and behind a buffer that begins on a line (see `Memory.address`)."""
    start = -array.ctypes.data % 64
    return array[:start], array[start + array.nbytes - 128 :]


@native
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_read_that_the_step_did_not_write(target: str, tmp_path: Path) -> None:
    """All values' memory is NaN before every step, as float32 and as float16, and so is what lies
    around each buffer, which no step changes.
    """
    source = make_checkpoint(
        tmp_path / "source", hidden_size=72, head_dim=20, max_position_embeddings=400
    )
    for form in ("w4g32", "w8gc", "f32"):
        convert(source, tmp_path / form, weights=form, head=form)
        model, poisoned = (edge.load(tmp_path / form, target=target) for _ in range(2))
        assert isinstance(poisoned.program, CpuProgram)
        caches = [m.session().cache for m in (model, poisoned)]
        for count in (1, 2, 9, 33, 300, 1, 1):
            ids = np.arange(count) % 300
            if count == 300:
                caches = [m.session().cache for m in (model, poisoned)]
            arrays = dict(poisoned.program.memory.arrays)
            for name, array in arrays.items():
                for zone in [array] if name.startswith("values/") else zones(array):
                    zone[:] = 0xFF
            expected, found = (
                prefill(m.program, cache, ids, all_logits=True)
                for m, cache in zip((model, poisoned), caches, strict=True)
            )
            assert np.array_equal(found, expected)
            for name, array in arrays.items():
                assert all((zone == 0xFF).all() for zone in zones(array)), name
