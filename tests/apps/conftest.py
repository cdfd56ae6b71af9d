from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.cli import main
from tests.checkpoints import make_checkpoint


@dataclass(frozen=True)
class Ran:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of standard output."""
        values = json.loads(self.out.splitlines()[-1])
        assert isinstance(values, dict)
        return values


Lutra = Callable[..., Ran]


@pytest.fixture
def lutra(capsys: pytest.CaptureFixture[str]) -> Lutra:
    """Runs the command line in this process."""

    def run(*words: object) -> Ran:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("apps") / "tiny")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Path:
    from converter.convert import convert

    out = checkpoint.parent / "tiny.lutra"
    convert(checkpoint, out, weights="w4g64")
    return out


@pytest.fixture(scope="session")
def exact(checkpoint: Path) -> Path:
    from converter.convert import convert

    out = checkpoint.parent / "exact.lutra"
    convert(checkpoint, out, weights="f32")
    return out
