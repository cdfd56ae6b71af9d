"""`lutra synth`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.cli import main
from converter.presets import PRESETS
from edge.errors import OutputExists, SourceNotFound, UsageError


def test_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny"
    assert main(["synth", "tiny", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["parameters"] == 459_392
    assert (out / "model.safetensors").stat().st_size > 2 * 459_392


def test_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PRESETS["tiny"]))
    assert main(["synth", str(config), str(tmp_path / "out"), "--dtype", "f32", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 4 * 459_392


def test_seed_changes_the_weights(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        main(["synth", "tiny", str(tmp_path / seed), "--seed", seed, "--quiet"])
    first, second = (tmp_path / seed / "model.safetensors" for seed in ("0", "1"))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["gpt-5", "out"], SourceNotFound.exit_code),
        (["broken.json", "out"], SourceNotFound.exit_code),
        (["list.json", "out"], SourceNotFound.exit_code),
        (["tiny", "out", "--seed", "-1"], UsageError.exit_code),
        (["tiny", "taken"], OutputExists.exit_code),
    ],
)
def test_errors_have_their_codes(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("taken").mkdir()
    assert main(["synth", *words]) == code
    assert not Path("out").exists()
