"""Writing to a disk that may be full or forbidden, and knowing that what was written is there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge.errors import NoSpace, OutputExists

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def check_space(folder: Path, needed: int) -> None:
    """Raise NoSpace where the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoSpace(
            f"{folder} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed",
            "free some space, choose another disk, or a smaller format",
        )


@contextlib.contextmanager
def disk_errors(out: Path, cure: str) -> Iterator[None]:
    """Turn a full disk into NoSpace with `cure`, and a forbidden place into OutputExists."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what = f"no room on the disk while writing {out} ({error.strerror})"
            raise NoSpace(what, cure) from error
        if error.errno in _FORBIDDEN:
            what = f"cannot write {error.filename or out}: {error.strerror}"
            raise OutputExists(what, "choose another place") from error
        raise


def sync_path(path: Path) -> None:
    """Make sure that a file or folder is on the disk, where the system can."""
    with contextlib.suppress(OSError):  # a folder cannot be synced everywhere
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(out: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises NoSpace or OutputExists.

    What is no plain file, such as a pipe or /dev/stdout, is written as it is.
    """
    with disk_errors(out, "free some space, or write to another disk"):
        if out.exists() and not out.is_file():
            out.write_text(text, encoding="utf-8")
            return
        out = Path(os.path.realpath(out))  # a link stays one
        partial = out.with_name(f"{out.name}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
