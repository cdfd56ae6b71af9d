"""GGUF files in parts, as llama-gguf-split writes them: NAME-00001-of-00003.gguf and so on.

Every part is a whole GGUF file with some of the tensors; the first has the model's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from converter.sources.gguf_header import Header, read_header
from edge.errors import SourceNotFound, TruncatedSource, UnsupportedMath

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def whole_name(path: Path) -> str:
    """The name of a model in a file, without the number of a part."""
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.stem


def first_of(paths: Sequence[Path]) -> Path | None:
    """The first of files that are parts of one model; None where they are not."""
    matches = [_PART.fullmatch(path.name) for path in paths]
    wholes = {(match[1], match[3]) for match in matches if match}
    return min(paths) if len(wholes) == 1 and None not in matches else None


def read_parts(path: Path) -> tuple[tuple[Path, ...], Header]:
    """The files that belong to a file, itself among them, and what they hold together.

    Raises SourceNotFound for a part that is missing, UnsupportedMath for one whose name does not
    say which it is, TruncatedSource for files that do not belong together, and the errors of
    `read_header`.
    """
    header = read_header(path)
    count = _number(path, header, "split.count", 1)
    if count in (0, 1):
        return (path,), header
    paths = _paths(path, count)
    headers = [read_header(part) for part in paths]
    tensors = {name: entry for part in headers for name, entry in part.tensors.items()}
    for number, (part, found) in enumerate(zip(paths, headers, strict=True)):
        for key, needed in (("split.no", number), ("split.count", count)):
            if (says := _number(part, found, key, 0)) != needed:
                raise _mixed(part, f"its {key} is {says}, need {needed}")
    listed = sum(len(part.tensors) for part in headers)
    total = _number(paths[0], headers[0], "split.tensors.count", listed)
    if not len(tensors) == listed == total:
        raise _mixed(
            paths[0],
            f"the parts hold {listed} tensors, {len(tensors)} of different names, need {total}",
        )
    return paths, Header(headers[0].metadata, tensors)


def _number(path: Path, header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int):
        raise _mixed(path, f"its {key} is no whole number")
    return value


def _paths(path: Path, count: int) -> tuple[Path, ...]:
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise UnsupportedMath(
            f"{path}: one of {count} parts of a split file, by its metadata, and not by its name",
            "name the parts as llama-gguf-split does: NAME-00001-of-00003.gguf and so on",
        )
    suffix = path.suffix
    paths = tuple(
        path.with_name(f"{match[1]}-{number:05}-of-{match[3]}{suffix}")
        for number in range(1, int(match[3]) + 1)
    )
    missing = [part.name for part in islice((p for p in paths if not p.is_file()), 3)]
    if missing:
        raise SourceNotFound(
            f"{path}: one of {count} parts, and {', '.join(missing)} not there",
            "put all parts in one folder",
        )
    return paths


def _mixed(path: Path, found: str) -> TruncatedSource:
    return TruncatedSource(f"{path}: {found}", "copy or download all parts again")
