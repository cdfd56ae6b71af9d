"""Code images: an object file made ready to run wherever it is mapped, and how one is mapped.

Kernels refer to nothing but their own constants, by distance, so once these are laid out behind the
code nothing is left to do at load: no linker, and no compiler, whose 40 MB and 0.1 s a process that
finds its code in the cache need not spend. A file is code, a JSON object of public functions and
their offsets, and a footer: the object's length, a SHA-256 of all before it, a magic word.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.digest import DIGEST_BYTES, sha256
from edge.errors import LutraError

_MAGIC = b"lutra-1\n"
_LENGTH = struct.Struct("<Q")
_SEAL_BYTES = DIGEST_BYTES + len(_MAGIC)
_FOOTER_BYTES = _LENGTH.size + _SEAL_BYTES

# ELF (System V ABI): sections that take memory, those that are written to; symbols and relocations.
_WRITTEN, _LOADED = 1, 2
_SYMBOLS, _RELOCATIONS, _EMPTY = 2, 4, 8
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_GLOBAL_FUNCTION = 0x12

# What a relocation makes of the word at `place`, for the address `value`.
_Patch = Callable[[int, int, int], int]


class BadImage(ValueError):
    """A file that is no whole image."""


def _distance(word: int, value: int, place: int) -> int:
    del word
    return (value - place) & 0xFFFFFFFF


def _page_distance(word: int, value: int, place: int) -> int:
    pages = (value >> 12) - (place >> 12)
    return word & 0x9F00001F | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _in_page(shift: int) -> _Patch:
    """The address within its page, in units of 2^shift bytes."""

    def patch(word: int, value: int, place: int) -> int:
        del place
        return word & 0xFFC003FF | (value & 0xFFF) >> shift << 10

    return patch


def _branch(word: int, value: int, place: int) -> int:
    return word & 0xFC000000 | (value - place) >> 2 & 0x3FFFFFF


# By ELF's number of the processor and of the relocation.
_PATCHES: dict[int, dict[int, _Patch]] = {
    62: {2: _distance, 4: _distance},  # x86-64: PC32, PLT32
    183: {  # AArch64: PREL32, ADR_PREL_PG_HI21, ADD_ABS_LO12_NC, LDST*_ABS_LO12_NC, *26
        261: _distance,
        275: _page_distance,
        277: _in_page(0),
        278: _in_page(0),
        284: _in_page(1),
        285: _in_page(2),
        286: _in_page(3),
        299: _in_page(4),
        282: _branch,
        283: _branch,
    },
}


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    target: int
    alignment: int


class _Object:
    """An object file, read as far as linking it takes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        (self.machine,) = struct.unpack_from("<H", content, 18)
        (start,) = struct.unpack_from("<Q", content, 40)
        size, count = struct.unpack_from("<HH", content, 58)
        self.sections = [self._section(start + i * size) for i in range(count)]
        (table,) = (section for section in self.sections if section.kind == _SYMBOLS)
        self._names = self.sections[table.link].offset
        self.symbols = list(_SYMBOL.iter_unpack(self.bytes_of(table)))

    def bytes_of(self, section: _Section) -> bytes:
        return self.content[section.offset : section.offset + section.size]

    def name(self, offset: int) -> str:
        start = self._names + offset
        return self.content[start : self.content.index(0, start)].decode()

    def _section(self, place: int) -> _Section:
        _, kind, flags, _, offset, size, link, target, alignment, _ = _SECTION.unpack_from(
            self.content, place
        )
        return _Section(kind, flags, offset, size, link, target, alignment)


def link_image(object_code: bytes) -> bytes:
    """An image of an object for any of the processors that code is made for.

    Raises LutraError where the object needs more than its own functions and constants.
    """
    source = _Object(object_code)
    code, places = bytearray(), {}
    for index, section in enumerate(source.sections):
        if section.flags & _LOADED and section.size:
            if section.flags & _WRITTEN or section.kind == _EMPTY:
                raise LutraError("machine code with variables of its own cannot be cached")
            code += bytes(-len(code) % max(section.alignment, 1))
            places[index] = len(code)
            code += source.bytes_of(section)
    for section in source.sections:
        if section.kind == _RELOCATIONS and section.target in places:
            _relocate(source, section, places, code)
    functions = {
        source.name(name): places[index] + value
        for name, info, _, index, value, _ in source.symbols
        if info == _GLOBAL_FUNCTION and index in places
    }
    return _with_footer(bytes(code), functions)


def _relocate(
    source: _Object, section: _Section, places: Mapping[int, int], code: bytearray
) -> None:
    """Put addresses into a section's code, as if the image began at 0: only distances count."""
    for offset, info, addend in _RELOCATION.iter_unpack(source.bytes_of(section)):
        name, _, _, index, value, _ = source.symbols[info >> 32]
        patch = _PATCHES.get(source.machine, {}).get(info & 0xFFFFFFFF)
        if index not in places or patch is None:
            kind = f"relocation {info & 0xFFFFFFFF} of processor {source.machine}"
            raise LutraError(f"machine code refers to {source.name(name)!r} by {kind}")
        place = places[section.target] + offset
        (word,) = struct.unpack_from("<I", code, place)
        struct.pack_into("<I", code, place, patch(word, places[index] + value + addend, place))


def _with_footer(code: bytes, functions: Mapping[str, int]) -> bytes:
    table = json.dumps(functions).encode()
    content = code + table + _LENGTH.pack(len(table))
    return content + sha256(content).digest() + _MAGIC


def _functions(content: bytes) -> dict[str, int]:
    """The public functions of an image. Raises BadImage."""
    body, digest = content[:-_SEAL_BYTES], content[-_SEAL_BYTES : -len(_MAGIC)]
    whole = len(content) >= _FOOTER_BYTES and content.endswith(_MAGIC)
    if not whole or sha256(body).digest() != digest:
        raise BadImage(f"{len(content)} bytes that are no whole code image")
    (length,) = _LENGTH.unpack(body[-_LENGTH.size :])
    functions: dict[str, int] = json.loads(body[-_LENGTH.size - length : -_LENGTH.size])
    return functions


class Image:
    """Machine code in this process. Functions live as long as this does."""

    def __init__(self, descriptor: int) -> None:
        """Map an open file. Raises BadImage, or OSError where the system lets no file there run."""
        size = os.fstat(descriptor).st_size
        if not size:
            raise BadImage("an empty file")
        self._functions = _functions(os.pread(descriptor, size, 0))
        allowed = mmap.PROT_READ | mmap.PROT_EXEC
        self._map = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=allowed)
        self._start = np.frombuffer(self._map, np.uint8).ctypes.data

    @staticmethod
    def open(path: Path) -> Image:
        """An image from a file. Raises FileNotFoundError or BadImage."""
        with path.open("rb") as file:
            try:
                return Image(file.fileno())
            except PermissionError:  # files of that disk may not run
                return Image.of(file.read())

    @staticmethod
    def of(content: bytes) -> Image:
        """An image that is in no file."""
        descriptor = os.memfd_create("lutra")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
            return Image(descriptor)
        finally:
            os.close(descriptor)

    def address(self, name: str) -> int:
        """Address of a public function. Raises KeyError."""
        return self._start + self._functions[name]

    def function(self, name: str, *arguments: Any) -> Callable[..., None]:
        """A public function for ctypes; it runs without the interpreter's lock."""
        return ctypes.CFUNCTYPE(None, *arguments)(self.address(name))
