"""The cache of compiled code on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

# What kernels are made of: the packages whose sources decide what is compiled.
_SOURCES = ("cpu", "edge")


def cache_folder() -> Path:
    """Where compiled code is kept: LUTRA_CACHE, else the user's cache folder."""
    if "LUTRA_CACHE" in os.environ:
        return Path(os.environ["LUTRA_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lutra"


def key_of(facts: Sequence[str]) -> str:
    """A name for what is made from these facts alone."""
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


@functools.cache
def sources_digest() -> str:
    """SHA-256 of this program's own sources, which takes less time than making code of them."""
    digest = hashlib.sha256()
    for package in _SOURCES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write so that another process sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
