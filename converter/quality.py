"""How much work a conversion puts into its quantization: fast, good or best."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from converter.calibrated import Method
from converter.quantize.gptq import Effort
from converter.refine import Refinement
from converter.samples import Wanted
from edge.errors import UsageError

# fast rounds to nearest and needs no samples.
METHODS = {
    "fast": None,
    "good": Method(),
    "best": Method(
        Effort(rounds=12, sweeps=6),
        samples=Wanted(count=32768),
        scaled=True,
        refinement=Refinement(),
    ),
}


@dataclass(frozen=True)
class Quality:
    """One of METHODS, and a text to calibrate on where the default one will not do."""

    name: str = "fast"
    text: Path | None = None

    @staticmethod
    def parse(name: str, text: Path | None = None) -> Quality:
        """Check a name and that the text can be read. Raises UsageError."""
        if name not in METHODS:
            raise UsageError(f"quality {name!r}", f"use one of {', '.join(METHODS)}")
        if text is not None and METHODS[name] is None:
            raise UsageError(
                f"a calibration text with quality {name}, which uses none", "add --quality good"
            )
        if text is not None and not text.is_file():
            raise UsageError(f"calibration text {text}: no such file", "give a UTF-8 text file")
        return Quality(name, text)

    @property
    def method(self) -> Method | None:
        """How to quantize by calibration; None to round to nearest."""
        return METHODS[self.name]

    @property
    def key(self) -> list[str]:
        """What tells two of them apart, the text's contents included."""
        text = b"" if self.text is None else self.text.read_bytes()
        return [self.name, hashlib.sha256(text).hexdigest()]


FAST = Quality()
