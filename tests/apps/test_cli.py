from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps import cli
from edge import errors
from tests.apps.conftest import Lutra


def test_help_lists_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"lutra {verb}" in text.split("example")[1]
    assert "--json" in text


def test_no_verb_and_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    with pytest.raises(SystemExit) as stop:
        cli.main(["frobnicate"])
    assert stop.value.code == 2
    assert "frobnicate" in capsys.readouterr().err


def test_errors_say_what_and_what_to_do_without_a_traceback(lutra: Lutra, tmp_path: Path) -> None:
    ran = lutra("inspect", tmp_path / "none.lutra")
    assert ran.code == errors.BundleNotFound.exit_code
    assert "no bundle at" in ran.err
    assert "to do: make one with lutra convert" in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_errors_as_json(lutra: Lutra, tmp_path: Path) -> None:
    ran = lutra("inspect", tmp_path / "none.lutra", "--json")
    assert ran.json["error"]["kind"] == "BundleNotFound"
    assert ran.json["error"]["exit_code"] == ran.code == 30


def test_debug_shows_the_traceback(lutra: Lutra, tmp_path: Path) -> None:
    assert "Traceback" in lutra("inspect", tmp_path / "none.lutra", "--debug").err


def test_a_bug_is_reported_as_one(lutra: Lutra, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("apps.inspect.Bundle.open", broken)
    ran = lutra("inspect", "x")
    assert ran.code == cli.INTERNAL_ERROR
    assert "internal error: ZeroDivisionError: oops" in ran.err
    assert "--debug" in ran.err


def test_interrupting_is_no_error_of_ours(lutra: Lutra, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apps.inspect.Bundle.open", interrupted)
    assert lutra("inspect", "x").code == 130


def test_a_closed_pipe_is_quiet(bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-m", "apps.cli", "inspect", str(bundle), "--tensors"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (run.returncode, run.stderr) == (0, "")


def test_exit_codes_are_distinct() -> None:
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.LutraError)
    ]
    codes = [error.exit_code for error in found]
    assert len(found) > 15
    assert len(set(codes)) == len(codes)
    assert cli.INTERNAL_ERROR not in codes


def test_the_documented_errors_are_the_real_ones() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.LutraError):
            assert f"| {value.exit_code} | `{name}` |" in text, name
