"""The README's commands run as written. Those that set up an environment are run by .ci/run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

SETUP = ("make ", "pip ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    make_checkpoint(folder / "checkpoint", max_position_embeddings=256)
    (folder / "text.txt").write_text("It was a dark and stormy night. " * 10)
    return folder


def test_the_commands_run_in_order(workplace: Path) -> None:
    lines = [line for line in commands() if not line.startswith(SETUP)]
    assert len(lines) > 8
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in lines:
        run = subprocess.run(
            ["bash", "-euc", line],
            cwd=workplace,
            env=os.environ | {"MODEL": "checkpoint", "PATH": binaries},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"


def test_the_python_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.convert import convert

    if not (workplace / "model.lutra").exists():
        convert(workplace / "checkpoint", workplace / "model.lutra")
    monkeypatch.chdir(workplace)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_ci_runs_the_rest() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [line for line in commands() if line.startswith(SETUP) and line not in script] == []


def test_the_hops_name_real_functions() -> None:
    hops = re.findall(r"^\d\. (?:`(\S+\.py)` )?`([\w.]+)`", README, re.MULTILINE)
    assert 5 <= len(hops) <= 7
    path = ""
    for named, function in hops:
        path = named or path
        source = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {function.split('.')[-1]}(" in source, (path, function)
