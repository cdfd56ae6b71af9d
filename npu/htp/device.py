"""Which Snapdragon this machine is."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from npu.htp.socs import SOCS

# Where Qualcomm's kernels say it, and the property in which Android does.
_MACHINE_FILE = Path("/sys/devices/soc0/machine")
_PROPERTY = "ro.soc.model"


def this_soc(machine_file: Path = _MACHINE_FILE) -> str | None:
    """The name of this machine's SoC, such as SM8650; None where it is none that is known."""
    return next((name for name in _named(machine_file) if name in SOCS), None)


def _named(machine_file: Path) -> Iterator[str]:
    if (getprop := shutil.which("getprop")) is not None:
        ran = subprocess.run(  # noqa: S603
            [getprop, _PROPERTY], capture_output=True, text=True, check=False
        )
        yield ran.stdout.strip().upper()
    with contextlib.suppress(OSError, UnicodeDecodeError):  # not there, or not for us to read
        yield machine_file.read_text(encoding="utf-8").strip().upper()
