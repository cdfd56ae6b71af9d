"""A Python that has NumPy alone, as a device does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Bare:
    """This machine's Python without its packages, but for those in `site`."""

    site: Path

    @staticmethod
    def in_folder(site: Path) -> Bare:
        packages = Path(np.__file__).parents[1]
        for name in ("numpy", "numpy.libs"):
            if (packages / name).is_dir():
                (site / name).symlink_to(packages / name)
        return Bare(site)

    def run(self, *words: object) -> str:
        """Run it, with this checkout on its path; returns what it printed."""
        command = [sys.executable, "-S", *map(str, words)]
        settings = {"PYTHONPATH": os.pathsep.join(map(str, (self.site, ROOT)))}
        settings["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout
