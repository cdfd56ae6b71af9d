from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge
from apps import cli
from edge import errors
from tests.apps.conftest import Lutra


def test_help_lists_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


def test_starting_imports_no_numpy() -> None:
    """So that help is quick, and Ctrl-C right after the start finds `main` running."""
    heavy = "assert not {'numpy', 'converter', 'edge.model'} & set(sys.modules)"
    for script in (
        "import apps.cli, sys",
        "import edge, sys",
        "import contextlib, sys; from apps.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])",
    ):
        run = subprocess.run(
            [sys.executable, "-c", f"{script}\n{heavy}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, ""), script


def test_edge_has_what_it_lists() -> None:
    assert all(getattr(edge, name) is not None for name in edge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edge.nothing  # type: ignore[attr-defined]  # noqa: B018


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
    assert cli.main(["frobnicate"]) == 2
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


@pytest.mark.parametrize("place", ["_prepare_streams", "_run"])
def test_interrupting_at_the_very_start(
    place: str, lutra: Lutra, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, place, interrupted)
    ran = lutra("inspect", "x")
    assert (ran.code, ran.err) == (130, "lutra inspect: interrupted\n")


def run_unread(*words: object, both: bool = False) -> subprocess.CompletedProcess[str]:
    """Run with an output that nobody reads, and with errors into the same where `both`."""
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-m", "apps.cli", *map(str, words)],
        stdout=write,
        stderr=write if both else subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    return run


@pytest.mark.parametrize(
    "words",
    [("inspect", "--tensors"), ("inspect", "--help"), ("run", "--raw", "-p", "x", "--quiet")],
)
def test_a_closed_pipe_is_quiet(words: tuple[str, ...], bundle: Path) -> None:
    run = run_unread(words[0], bundle, *words[1:])
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("both", [False, True])
def test_work_goes_on_when_nobody_reads_of_it(
    both: bool, checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.lutra"
    for options in ((), ("--overwrite", "--json")):
        run = run_unread("convert", checkpoint, out, *options, both=both)
        assert (run.returncode, run.stderr or "") == (0, "")
        assert cli.main(["verify", str(out), "--quiet"]) == 0
    taken = run_unread("convert", checkpoint, out, both=both)
    assert taken.returncode == errors.OutputExists.exit_code
    assert run_unread("synth", "tiny", tmp_path / "tiny", both=both).returncode == 0
    assert (tmp_path / "tiny" / "model.safetensors").is_file()
    (tmp_path / "text.txt").write_text("It was a dark and stormy night.")
    words = ("eval", bundle, "--text", tmp_path / "text.txt", "--target", "ref")
    assert run_unread(*words, both=both).returncode == 0
    (out / "tokenizer.json").write_bytes((out / "tokenizer.json").read_bytes()[::-1])
    altered = run_unread("verify", out, both=both)
    assert altered.returncode == errors.AlteredBundle.exit_code
    assert both or "tokenizer.json" in altered.stderr


def shell(command: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `lutra` is ours, with `words` as $1 and on."""
    function = f'lutra() {{ "{sys.executable}" -m apps.cli "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", function, "bash", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        'lutra inspect "$1" >&-',
        'lutra inspect "$1" >&- 2>&-',
        'lutra run "$1" --raw --max-tokens 1 <&-',
        'PYTHONIOENCODING=ascii lutra run "$1" --raw -p "é" --max-tokens 1',
    ],
)
def test_odd_standard_streams_are_no_bugs(command: str, bundle: Path) -> None:
    ran = shell(command, bundle)
    assert "rror" not in ran.stderr
    assert ran.returncode in (0, errors.BadTokens.exit_code)  # no tokens in an empty input


def test_a_warning_is_a_note_without_a_place_in_the_code(bundle: Path) -> None:
    words = 'lutra run "$1" --raw -p a --max-tokens 1'
    ran = shell(f"LUTRA_CACHE=/proc/none {words}", bundle)
    assert ran.returncode == 0
    note, _ = ran.stderr.splitlines()
    assert note.startswith("note: compiled code is not kept in /proc/none (No such file")


def test_output_that_has_no_room_is_an_error_without_a_traceback(bundle: Path) -> None:
    for words in ("--json", "--tensors"):
        ran = shell(f'lutra inspect "$1" {words} >/dev/full', bundle)
        assert ran.returncode == errors.LutraError.exit_code
        assert "No space left" in ran.stderr
        assert "Traceback" not in ran.stderr
    ran = shell('lutra inspect "$1.none" --json 2>&1 >/dev/full', bundle)
    assert ran.returncode == errors.BundleNotFound.exit_code
    assert "Traceback" not in ran.stdout


def test_what_the_system_refuses_is_no_bug_of_ours(lutra: Lutra, tmp_path: Path) -> None:
    for words in (("inspect", "x" * 300), ("synth", "x" * 300, tmp_path / "y")):
        ran = lutra(*words, "--json")
        assert ran.code == ran.json["error"]["exit_code"] == errors.LutraError.exit_code
        assert "File name too long" in ran.err


def test_too_little_memory_is_no_bug_of_ours(lutra: Lutra, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(path: object) -> None:
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr("apps.inspect.Bundle.open", large)
    ran = lutra("inspect", "x")
    assert ran.code == errors.LutraError.exit_code
    assert "out of memory (Unable to allocate 1 TiB)" in ran.err


@pytest.mark.parametrize("words", [("run",), ("run", "x", "--max-tokens", "y"), ("frobnicate",)])
def test_wrong_usage_is_json_too(words: tuple[str, ...], lutra: Lutra) -> None:
    ran = lutra(*words, "--json")
    assert ran.code == errors.UsageError.exit_code
    assert ran.json["error"]["kind"] == "UsageError"
    assert "usage: lutra" in ran.err


@pytest.mark.parametrize("words", [("--js",), ("--tens",), ("--graph", "--qui")])
def test_options_are_spelled_out(words: tuple[str, ...], lutra: Lutra, bundle: Path) -> None:
    ran = lutra("inspect", bundle, *words)
    assert ran.code == errors.UsageError.exit_code
    assert f"unrecognized arguments: {words[-1]}" in ran.err
    assert "see lutra inspect --help" in ran.err


def test_json_is_ascii(lutra: Lutra, bundle: Path) -> None:
    ran = lutra(
        "run", bundle, "--raw", "-p", "é", "--greedy", "--max-tokens", 1, "--json", "--stop", "日"
    )
    assert ran.code == 0
    assert ran.out.isascii()


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
