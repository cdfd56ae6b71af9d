"""Writing a bundle: into OUT.partial/, renamed to OUT when whole, resumable until then.

A journal in the partial folder names the plan by a key and every tensor that is on the disk; the
same plan goes on where it stopped, another starts again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge.bundle import Progress, file_sha256, silent
from edge.disk import check_space, disk_errors, sync_path
from edge.errors import OutputExists
from edge.formats import Format
from edge.manifest import FILE_NAME, WEIGHTS, FileRecord
from edge.planes import Part, StoredTensor, parts_of
from edge.tensorfile import TensorFile, TensorFileWriter

try:
    import fcntl
except ImportError:  # Windows: no lock; two conversions to one place are the user's to avoid
    fcntl = None  # type: ignore[assignment]

_JOURNAL, _LOCK = "journal.jsonl", "lock"

RESUME = "free some space and run the same command again; it goes on where it stopped"
# Manifest, tokenizer and journal: what a bundle takes beside its weights.
_MARGIN_BYTES = 32 << 20


class BundleWriter:
    """Writes one bundle. Use as a context manager, and call `finish` when all is written.

    Leaving without `finish` keeps what was done for the next run, never anything at `out`.
    """

    def __init__(
        self,
        out: Path,
        tensors: Mapping[str, tuple[Format, tuple[int, ...]]],
        key: str,
        *,
        beside_bytes: int = 0,
        overwrite: bool = False,
    ) -> None:
        """`beside_bytes` is the room that files beside the weights will take."""
        if out.name in ("", ".."):
            raise OutputExists(f"{str(out)!r} names no new folder", "give a name for the bundle")
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self._overwrite = overwrite
        self._files: list[str] = [WEIGHTS]
        self._tensors = tensors
        self.finished: dict[str, dict[str, float]] = {}
        with disk_errors(out, RESUME):
            self._refuse_existing()
            self._refuse_foreign()
        parts = {
            f"{name}.{part}": value
            for name, (form, shape) in tensors.items()
            for part, value in parts_of(form, shape).items()
        }
        with disk_errors(out, RESUME):
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.partial / _LOCK, out)
            try:
                self._open(parts, key, beside_bytes + _MARGIN_BYTES)
            except BaseException:
                self._abandon()
                raise

    def _open(self, parts: Mapping[str, Part], key: str, beside_bytes: int) -> None:
        journal = self.partial / _JOURNAL
        self.finished = _read_journal(journal, key)
        resume = bool(self.finished) and TensorFileWriter.begun(self.partial / WEIGHTS, parts)
        self._clear((_JOURNAL, WEIGHTS) if resume else ())
        weights_bytes = 0 if resume else sum(part.byte_count for part in parts.values())
        check_space(self.out.parent, weights_bytes + beside_bytes)
        if not resume:
            self.finished = {}
            journal.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        self._weights = TensorFileWriter(self.partial / WEIGHTS, parts, resume=resume)
        self._journal = journal.open("a", encoding="utf-8")

    def _clear(self, kept: Sequence[str]) -> None:
        """Remove what an earlier run left: every run makes all but the weights anew."""
        for path in self.partial.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (*kept, _LOCK):
                path.unlink()

    def _abandon(self) -> None:
        """Nothing could be started: leave nothing behind, unless an earlier run's work is there."""
        if not self.finished:
            shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._weights.close()
            self._journal.close()
        os.close(self._lock)

    def write(self, tensor: str, arrays: Mapping[str, NDArray[Any]], first: int = 0) -> None:
        """Write a tensor's packed arrays, from index `first` of their leading dimension on."""
        with disk_errors(self.out, RESUME):
            for part, values in arrays.items():
                self._weights.write(f"{tensor}.{part}", values, first)

    def done(self, tensor: str, record: Mapping[str, float]) -> None:
        """Say that a tensor is whole; `record` comes back in `finished` when resuming."""
        with disk_errors(self.out, RESUME):
            self._weights.sync()
            self._journal.write(json.dumps({"tensor": tensor, **record}) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self.finished[tensor] = dict(record)

    def read(self, tensor: str) -> StoredTensor:
        """A tensor that is whole, mapped from what was written."""
        form, shape = self._tensors[tensor]
        parts = {part: self._written.array(f"{tensor}.{part}") for part in parts_of(form, shape)}
        return StoredTensor(tensor, form, shape, parts)

    @cached_property
    def _written(self) -> TensorFile:
        return TensorFile(self.partial / WEIGHTS)

    def add_file(self, name: str, content: bytes) -> None:
        """Put a small file beside the weights."""
        with disk_errors(self.out, RESUME):
            (self.partial / name).write_bytes(content)
            sync_path(self.partial / name)
        self._files.append(name)

    def include(self, name: str) -> None:
        """Count a file that is in the partial folder as part of the bundle."""
        sync_path(self.partial / name)
        self._files.append(name)

    def records(self, progress: Progress = silent) -> dict[str, FileRecord]:
        """Size and SHA-256 of every file written, for the manifest."""
        with disk_errors(self.out, RESUME):
            self._weights.sync()
        paths = {name: self.partial / name for name in self._files}
        return {
            name: FileRecord(path.stat().st_size, file_sha256(path, progress))
            for name, path in paths.items()
        }

    def finish(self, manifest: str) -> None:
        """Write the manifest's text and put the bundle in its place."""
        self._refuse_existing()
        with disk_errors(self.out, RESUME):
            path = self.partial / FILE_NAME
            path.write_text(manifest, encoding="utf-8")
            sync_path(path)
            self._weights.close()
            self._journal.close()
            if self.out.exists():
                self._replace()
            else:
                self.partial.rename(self.out)
            for name in (_JOURNAL, _LOCK):  # not before: until then the work is resumable
                (self.out / name).unlink()
            sync_path(self.out.parent)

    def _replace(self) -> None:
        old = _free_name(self.out)
        self.out.rename(old)
        self.partial.rename(self.out)
        if old.is_symlink():  # the bundle that it leads to is left alone
            old.unlink()
        else:
            shutil.rmtree(old)

    def _refuse_existing(self) -> None:
        if not self.out.exists() and not self.out.is_symlink():
            return
        if not self._overwrite:
            raise OutputExists(
                f"{self.out} is already there", "choose another name, or add --overwrite"
            )
        if not (self.out / FILE_NAME).is_file():
            raise OutputExists(
                f"{self.out} is not a bundle, so --overwrite leaves it alone",
                "choose another name, or remove it yourself",
            )

    def _refuse_foreign(self) -> None:
        """What no conversion left is not ours to write into, or to remove."""
        if not self.partial.is_dir() or (self.partial / _JOURNAL).is_file():
            return
        if any(path.name != _LOCK for path in self.partial.iterdir()):
            raise OutputExists(
                f"{self.partial} has files that no conversion left there",
                "move them away, or choose another name",
            )


def _free_name(out: Path) -> Path:
    """A name beside `out` that nothing has, for what is about to be replaced."""
    names = (out.with_name(f"{out.name}.old{number or ''}") for number in itertools.count())
    return next(path for path in names if not path.exists() and not path.is_symlink())


def _read_journal(path: Path, key: str) -> dict[str, dict[str, float]]:
    """Tensors that an earlier run of the same plan finished; a line cut by a kill counts not."""
    if not path.is_file():
        return {}
    finished: dict[str, dict[str, float]] = {}
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            record = json.loads(line)
            if number == 0 and record["key"] != key:
                break
            if number > 0:
                finished[record.pop("tensor")] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            break
    return finished


def _lock(path: Path, out: Path) -> int:
    """Take the partial folder for this process; the system lets go of it when the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise OutputExists(
                f"another conversion is writing {out}", "wait for it, or choose another name"
            ) from error
    return descriptor
