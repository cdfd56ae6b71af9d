"""The cache of compiled code on disk."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from edge.digest import DIGEST_BYTES, sha256

_ROOT = Path(__file__).resolve().parents[2]

# What kernels are made of: the packages whose sources decide what is compiled.
_SOURCES = ("cpu", "edge")


def cache_folder() -> Path:
    """Where compiled code is kept: LUTRA_CACHE, else the user's cache folder."""
    if named := os.environ.get("LUTRA_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lutra"


def key_of(facts: Sequence[str]) -> str:
    """A name for what is made from these facts alone."""
    return sha256("\0".join(facts).encode()).hexdigest()


@functools.cache
def sources_digest() -> str:
    """SHA-256 of this program's own sources, which takes less time than making code of them."""
    digest = sha256()
    for package in _SOURCES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class NotCached(UserWarning):
    """What was compiled, or tried out, could not be kept, and is done again next time."""


def keep(path: Path, content: bytes) -> None:
    """Write so that another process sees all of it or nothing.

    Warns with NotCached where the place is forbidden or full: nobody needs the cache to go on.
    """
    try:
        import tempfile  # with what it imports, half a megabyte

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_bytes(content)
            os.replace(whole, path)
    except OSError as error:
        warnings.warn(
            f"compiled code is not kept in {path.parent} ({error.strerror}), so it is made anew "
            "every time; LUTRA_CACHE names another folder",
            NotCached,
            stacklevel=1,  # so that it is said once, whoever writes
        )


def sealed(content: bytes) -> bytes:
    """Content with its SHA-256 behind it."""
    return content + sha256(content).digest()


def kept(path: Path) -> bytes | None:
    """What was kept there sealed; None where it is not, cannot be read or was altered since."""
    try:
        found = path.read_bytes()
    except OSError:
        return None
    content, digest = found[:-DIGEST_BYTES], found[-DIGEST_BYTES:]
    return content if sha256(content).digest() == digest else None
