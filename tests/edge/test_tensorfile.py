from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from edge.errors import TruncatedBundle, TruncatedSource
from edge.planes import Part
from edge.tensorfile import TensorFile, TensorFileWriter, to_bfloat16, to_float32

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "odd": np.arange(15, dtype=np.float32).reshape(3, 5),
    "planes": np.arange(256, dtype=np.uint8).reshape(4, 64),
    "narrow": np.arange(7, dtype=np.float16),
    "last": np.arange(3, dtype=np.uint8),
}


def write(path: Path) -> None:
    parts = {name: Part(str(a.dtype), a.shape) for name, a in ARRAYS.items()}
    writer = TensorFileWriter(path, parts)
    for name, array in ARRAYS.items():
        for row in reversed(range(len(array))):
            writer.write(name, array[row : row + 1], row)
    writer.close()


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == ARRAYS.keys()
    assert all(np.array_equal(loaded[name], array) for name, array in ARRAYS.items())


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert all(np.array_equal(file.array(name), array) for name, array in ARRAYS.items())


def test_a_file_that_is_cut_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path)
    for error in (TruncatedSource, TruncatedBundle):
        write(path)
        file = TensorFile(path, error)
        os.truncate(path, file.entries["odd"].start + 21)
        assert file.read("odd", 0, 1).tolist() == [[0, 1, 2, 3, 4]]
        for first in (1, 2):
            with pytest.raises(error, match=r"x\.safetensors: ends in tensor odd"):
                file.read("odd", first, first + 1)


def test_whole_lines_are_aligned_and_others_for_their_type(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors")
    entries = TensorFile(tmp_path / "x.safetensors").entries
    assert entries["planes"].start % 64 == 0
    assert entries["odd"].start % 4 == 0
    assert entries["narrow"].start % 2 == 0


def test_resuming_keeps_what_was_written(tmp_path: Path) -> None:
    path, parts = tmp_path / "x.safetensors", {"a": Part("uint8", (64,)), "b": Part("uint8", (64,))}
    first = TensorFileWriter(path, parts)
    first.write("a", np.full(64, 1, np.uint8))
    first.close()
    second = TensorFileWriter(path, parts, resume=True)
    second.write("b", np.full(64, 2, np.uint8))
    second.close()
    assert TensorFile(path).array("a").sum() == 64
    assert TensorFile(path).array("b").sum() == 128


@given(hnp.arrays(np.uint16, 20))
def test_bfloat16_values_survive(bits: Any) -> None:
    values = to_float32(bits, "BF16")
    finite = np.isfinite(values)
    assert np.array_equal(to_bfloat16(values)[finite], bits[finite])


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_bfloat16_rounds_to_nearest(value: float) -> None:
    exact = np.array([value], np.float32)
    rounded = to_float32(to_bfloat16(exact), "BF16")
    assert abs(rounded - exact)[0] <= abs(exact)[0] * 2**-8 + 1e-38


def header(fields: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


MALFORMED = {
    "empty": b"",
    "short": b"\x01\x02",
    "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
    "header past the end": (100).to_bytes(8, "little") + b"{}",
    "not JSON": (2).to_bytes(8, "little") + b"{]",
    "not an object": (2).to_bytes(8, "little") + b"[]",
    "deep": (5000).to_bytes(8, "little") + b"[" * 5000,
    "cut": header({"a": entry("F32", [4], 0, 16)}, b"\0" * 15),
    "trailing": header({"a": entry("F32", [4], 0, 16)}, b"\0" * 17),
    "wrong size": header({"a": entry("F32", [5], 0, 16)}, b"\0" * 16),
    "unknown dtype": header({"a": entry("F8_E4M3", [16], 0, 16)}, b"\0" * 16),
    "negative": header({"a": entry("F32", [-4], 0, 16)}, b"\0" * 16),
    "overlap": header({"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 4, 12)}, b"\0" * 12),
    "hole": header({"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 9, 17)}, b"\0" * 17),
    "no offsets": header({"a": {"dtype": "U8", "shape": [1]}}, b"\0"),
    "text shape": header({"a": {"dtype": "U8", "shape": "ab", "data_offsets": [0, 1]}}, b"\0"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[case])
    with pytest.raises(TruncatedSource, match=r"bad\.safetensors"):
        TensorFile(path)
    with pytest.raises(TruncatedBundle):
        TensorFile(path, TruncatedBundle)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with pytest.raises(TruncatedSource):
            TensorFile(Path(file.name))
