"""What every source of weights offers, whatever its file format.

A source speaks the names of the Hugging Face layout: its config has the keys of a config.json, its
tensors the names of a checkpoint, its small files (tokenizer.json and so on) their names there. So
model files, tokenizer and plan know one layout alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import SourceChanged
from edge.formats import Format
from edge.planes import Quantized

# What holds a decoded tensor as good as exactly: an error of 1/256 of its group's largest weight.
NEAREST = Format.parse("w8g32")


@dataclass(frozen=True)
class Stored:
    """How a source stores a tensor.

    `kind` is the source's own word for it ("BF16", "Q4_K", "GPTQ"); `form` the format of a bundle
    that loses nothing of it, or as good as nothing, None for integers that none holds (`why_not`).
    With `codes`, `form` holds the source's own integers and scales exactly, and `Source.codes`
    reads them; where groups are out of order along the rows (act-order), with column i of them
    from column `order[i]`.
    """

    kind: str
    form: Format | None
    codes: bool = False
    why_not: str = ""
    order: NDArray[np.intp] | None = field(default=None, compare=False)


class Source(Protocol):
    """An open checkpoint. Headers are read; a tensor's rows are read when asked for."""

    @property
    def folder(self) -> Path:
        """The folder or file that it is in."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says, or would."""
        ...

    @property
    def name(self) -> str:
        """A name for people."""
        ...

    @property
    def tensor_names(self) -> frozenset[str]: ...

    @property
    def fingerprint(self) -> dict[str, list[int]]:
        """Size and modification time of every file of weights, as they are now."""
        ...

    @property
    def quantized(self) -> bool:
        """Whether there are weights that are no floats: their formats are kept by default."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, matrices as [out, in]. Raises MissingTensor."""
        ...

    def dtype(self, name: str) -> str:
        """Type of a tensor in the source's own word. Raises MissingTensor."""
        ...

    def stored(self, name: str) -> Stored | None:
        """How a matrix is stored; None for one that `rows` cannot read."""
        ...

    def rows(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        """Rows first..last of a tensor (its elements, for a vector) as float32."""
        ...

    def codes(self, name: str, first: int, last: int) -> Quantized:
        """Rows first..last as the source's own integers, for tensors stored as `codes`."""
        ...

    def shard_of(self, name: str) -> str:
        """Name of the file that holds a tensor."""
        ...

    def read_json(self, name: str) -> dict[str, Any]:
        """A small JSON file of the layout; empty where there is none."""
        ...

    def read_bytes(self, name: str) -> bytes | None:
        """A small file of the layout; None where there is none."""
        ...


def check_unchanged(source: Source, before: Mapping[str, list[int]]) -> None:
    """Compare the files of weights with an earlier fingerprint. Raises SourceChanged."""
    try:
        now = source.fingerprint
    except OSError as error:
        raise _changed(source, f"{error.filename} is gone") from error
    changed = [name for name, facts in now.items() if before.get(name) != facts]
    if changed:
        raise _changed(source, f"{', '.join(changed)} changed")


def _changed(source: Source, what: str) -> SourceChanged:
    return SourceChanged(
        f"{source.folder}: {what} while it was converted, so that the bundle may be of two models",
        "let nothing write there, and convert again",
    )


def describe(source: Source) -> str:
    """How many tensors of each type a source has, most first, such as "Q4_0 x 15, F32 x 5"."""
    counts: dict[str, int] = {}
    for name in source.tensor_names:
        kind = source.dtype(name)
        counts[kind] = counts.get(kind, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} x {count}" for kind, count in ordered)
