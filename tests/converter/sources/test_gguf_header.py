"""GGUF files that are damaged or made to do harm: refused by name, with little memory."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.convert import convert, prepare
from converter.plan import Formats
from converter.sources.tokenizer import read_tokenizer
from edge.errors import (
    BadWeights,
    LutraError,
    SourceNotFound,
    TruncatedSource,
    UnknownArchitecture,
    UnsupportedMath,
    UsageError,
)
from tests.checkpoints import make_checkpoint
from tests.converter.sources.test_gguf_tokenizer import byte_level
from tests.gguf_files import tokenizer_metadata, write_gguf

pytest.importorskip("gguf")

# What refusing a file may allocate. The largest of them claims 8 EiB.
MOST_BYTES = 8 << 20
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return number(len(value)) + value.encode()


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    source = make_checkpoint(tmp_path / "model", **SMALL)
    return write_gguf(source, tmp_path / "model.gguf", "Q4_0").read_bytes()


def tensor_info(whole: bytes, name: str) -> int:
    """Where a tensor's number of dimensions is."""
    return whole.index(text(name)) + len(text(name))


def key_value(whole: bytes, key: str) -> int:
    """Where a key's type is."""
    return whole.index(text(key)) + len(text(key))


def put(whole: bytes, place: int, value: bytes) -> bytes:
    return whole[:place] + value + whole[place + len(value) :]


Q, NORM = "blk.0.attn_q.weight", "blk.0.attn_norm.weight"
HEADS = "llama.attention.head_count"

# What is wrong with the file, and what the error must be and say.
Damage = Callable[[bytes], bytes]
BROKEN: dict[str, tuple[Damage, type[LutraError], str]] = {
    "empty": (lambda b: b"", TruncatedSource, "0 bytes long"),
    "magic": (lambda b: b"GGML" + b[4:], TruncatedSource, "does not begin with GGUF"),
    "version": (lambda b: put(b, 4, b"\x01\0\0\0"), UnsupportedMath, "GGUF version 1, need 2 or 3"),
    "big-endian": (lambda b: put(b, 4, b"\0\0\0\x03"), UnsupportedMath, "big-endian"),
    "tensor count": (lambda b: put(b, 8, number(2**62)), TruncatedSource, "4611686018427387904 te"),
    "key count": (lambda b: put(b, 16, number(2**40)), TruncatedSource, "1099511627776 keys"),
    "key length": (lambda b: put(b, 24, number(2**63)), TruncatedSource, "a text of 922337203685"),
    "value type": (
        lambda b: put(b, key_value(b, HEADS), b"\x63\0\0\0"),
        TruncatedSource,
        "head_count' is of type 99",
    ),
    "array length": (
        lambda b: put(b, key_value(b, HEADS), b"\x09\0\0\0\x04\0\0\0" + number(2**60)),
        TruncatedSource,
        "takes 4611686018427387904 more",
    ),
    "texts": (
        lambda b: put(b, key_value(b, HEADS), b"\x09\0\0\0\x08\0\0\0" + number(2**60)),
        TruncatedSource,
        "is said to hold 1152921504606846976 texts",
    ),
    "nested array": (
        lambda b: put(b, key_value(b, HEADS), b"\x09\0\0\0\x09\0\0\0" + number(1)),
        TruncatedSource,
        "an array of type 9",
    ),
    "same key": (
        lambda b: b.replace(text("llama.attention.key_length"), text(HEADS), 1),
        TruncatedSource,
        "key 'llama.attention.head_count' is there twice",
    ),
    "same tensor": (
        lambda b: b.replace(text("blk.0.attn_k.weight"), text(Q), 1),
        TruncatedSource,
        "tensor 'blk.0.attn_q.weight' is there twice",
    ),
    "dimensions": (
        lambda b: put(b, tensor_info(b, Q), b"\x05\0\0\0"),
        TruncatedSource,
        "has 5 dimensions",
    ),
    "no dimension": (
        lambda b: put(b, tensor_info(b, Q) + 4, number(0)),
        TruncatedSource,
        r"attn_q.weight' is \[0, 32\]",
    ),
    "huge dimension": (
        lambda b: put(b, tensor_info(b, Q) + 4, number(2**62)),
        TruncatedSource,
        "attn_q.weight' is",
    ),
    "huge tensor": (
        lambda b: put(b, tensor_info(b, Q) + 4, number(2**30) * 2),
        TruncatedSource,
        "attn_q.weight.* ends at|overlap",
    ),
    "unknown type": (
        lambda b: put(b, tensor_info(b, Q) + 20, b"\x63\0\0\0"),
        TruncatedSource,
        "is of type 99, which there is not",
    ),
    "unread type": (
        lambda b: put(b, tensor_info(b, Q) + 20, b"\x28\0\0\0"),
        UnsupportedMath,
        "attn_q.weight is NVFP4, which is not read; give a file in one of F32, F16",
    ),
    "ragged blocks": (
        lambda b: put(b, tensor_info(b, Q) + 20, b"\x0c\0\0\0"),
        TruncatedSource,
        "rows of 32, no whole Q4_K blocks",
    ),
    "offset": (
        lambda b: put(b, tensor_info(b, Q) + 24, number(2**62)),
        TruncatedSource,
        "attn_q.weight' ends at 46116860184",
    ),
    "unaligned": (
        lambda b: put(b, tensor_info(b, Q) + 24, number(33)),
        TruncatedSource,
        "is at 33, no multiple of 32",
    ),
    "overlap": (
        lambda b: put(b, tensor_info(b, Q) + 24, number(0)),
        TruncatedSource,
        "overlap",
    ),
    "cut": (lambda b: b[:-100], TruncatedSource, "bytes long, and tensor '.*' ends at"),
    "cut header": (lambda b: b[:300], TruncatedSource, "300 bytes long"),
    "architecture": (
        lambda b: b.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1),
        UnknownArchitecture,
        "'mamba' is not one",
    ),
    "unread key": (
        lambda b: b.replace(b"llama.vocab_size", b"llama.logit_sizz", 1),
        UnsupportedMath,
        "llama.logit_sizz is 64: no math for this key",
    ),
    "layers": (
        lambda b: put(b, key_value(b, "llama.block_count") + 4, b"\xff\xff\xff\x7f"),
        UnsupportedMath,
        "block_count is 2147483647: need a whole number up to",
    ),
    "wide head": (
        lambda b: (
            put(b, key_value(b, "llama.attention.key_length") + 4, b"\0\0\0\x40")
            .replace(b"value_length", b"value_lengtx")
            .replace(b"dimension_count", b"dimension_counx")
        ),
        UnsupportedMath,
        "head_dim|no math",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused(case: str, whole: bytes, tmp_path: Path) -> None:
    damage, error, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    refuse(path, error, message)


def refuse(path: Path, error: type[LutraError], message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(error, match=message):
            convert(path, path.with_name("m.lutra"))
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert not path.with_name("m.lutra").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x08\0\0\0" + number(2**32), "a text of 4294967296 bytes"),
        (b"\x09\0\0\0\x00\0\0\0" + number(2**32), "takes 4294967296 more"),
        (b"\x09\0\0\0\x08\0\0\0" + number(2**28), "hold 268435456 texts"),
    ],
)
def test_what_a_long_file_would_have_is_refused_too(
    value: bytes, message: str, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(put(whole, key_value(whole, HEADS), value))
    os.truncate(path, 1 << 33)  # holes: the file takes no room
    refuse(path, TruncatedSource, message)


def test_a_scale_that_is_no_number(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes(whole[:-18] + b"\x00\x7e" + whole[-16:])  # the last block's scale
    with pytest.raises(BadWeights, match="has a scale that is no number"):
        convert(path, tmp_path / "m.lutra")


def test_an_alignment_that_is_none(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", **SMALL)
    for value in (3, 1 << 20):
        path = write_gguf(source, tmp_path / "model.gguf", metadata={"general.alignment": value})
        with pytest.raises(TruncatedSource, match=r"alignment is .*, need a power of two"):
            convert(path, tmp_path / "m.lutra")


def test_folders_with_gguf_files(whole: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(whole)
    assert convert(folder, tmp_path / "m.lutra").name == "a"
    with pytest.raises(UsageError, match="which is a file here"):
        prepare(folder / "a.gguf", Formats.parse(), revision="main")
    (folder / "b.gguf").write_bytes(whole)
    with pytest.raises(SourceNotFound, match=r"several GGUF files \(a.gguf, b.gguf\)"):
        prepare(folder, Formats.parse())


def read_all(path: Path) -> None:
    """All that a conversion reads of a file."""
    job = prepare(path, Formats.parse())
    read_tokenizer(job.checkpoint)
    for planned in job.plan.tensors:
        name = planned.tensor.name
        for _ in job.weights.codes(name) if planned.kept else job.weights.blocks(name):
            pass


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A folder to write in, and files with many types and both kinds of tokenizer."""
    folder = tmp_path_factory.mktemp("fuzz")
    source = byte_level(folder / "bytes", "qwen2")
    make_checkpoint(folder / "wide", **SMALL | {"hidden_size": 256, "intermediate_size": 256})
    files = [
        write_gguf(source, folder / "a.gguf", "Q8_0", metadata=tokenizer_metadata(source, "qwen2")),
        write_gguf(folder / "wide", folder / "b.gguf", "TQ1_0", top="Q5_0"),
    ]
    return folder, [file.read_bytes() for file in files]


@settings(max_examples=400)
@given(data=st.data())
def test_damage_anywhere_is_an_error_of_ours_or_none(
    data: st.DataObject, specimens: tuple[Path, list[bytes]]
) -> None:
    folder, files = specimens
    content = bytearray(data.draw(st.sampled_from(files)))
    header = 12_000
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(header, len(content)) - 9))
        change = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([number(2**63), number(2**31 - 1), number(0), b"\xff" * 8]),
            )
        )
        content[place : place + len(change)] = change
    end = data.draw(st.sampled_from([len(content), len(content), len(content) // 2]))
    path = folder / "damaged.gguf"
    path.write_bytes(bytes(content[:end]))
    with contextlib.suppress(LutraError):
        read_all(path)
