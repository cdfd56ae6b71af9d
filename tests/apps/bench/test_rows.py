"""Rows of the benchmarks' table: what is made for them, in what order, and how they print."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apps.bench import rows
from apps.bench.gguf_file import FORMATS
from apps.bench.rows import ROWS, Row, Run, line, main, table
from apps.cli import main as lutra
from edge.errors import LutraError, UsageError
from edge.target import Target

ROW = Row("tiny", "w4g64", "Q4_0")
TARGET = "cpu:x86_64,avx512,vnni,amx"

VALUES: dict[str, Any] = {
    "prefill_tok_s": 721.4,
    "decode_tok_s": 24.8,
    "prefill_ceiling_shares": {"dot_int8": 1.5, "amx_int8": 0.12, "amx_bf16": 0.24},
    "read_bandwidth_gb_s": 34.2,
    "decode_ceiling_share": 0.64,
    "peer": {"prefill_tok_s": 269.1, "decode_tok_s": 20.8},
    "ratios": {"prefill_tok_s": 2.68, "decode_tok_s": 1.192},
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The steps that were run; each makes the last path that it names, and a benchmark prints."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command[1:])
        if "bench" in command:
            return subprocess.CompletedProcess(command, 0, f"a note\n{json.dumps(VALUES)}\n")
        if "w8g64" in command:
            return subprocess.CompletedProcess(command, 1, "")
        Path(next(word for word in reversed(command) if "/" in word)).mkdir()
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(rows.subprocess, "run", run)
    return seen


def test_a_row_is_made_in_order_and_what_is_there_is_used_again(
    made: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "new"), "--rows", "tiny:w4g64:Q4_0", "--target", TARGET]
    main(words)
    verbs = [step[2] if step[1] == "apps.cli" else step[1] for step in made]
    assert verbs == ["apps.bench.build_peer", "synth", "convert", "bench", "bench"]
    assert [step[-2] for step in made[-2:]] == ["auto", "off"]
    said = capsys.readouterr().out
    for setting in ("auto", "off"):
        assert f"| tiny | w4g64 | Q4_0 | {setting} | 721 / 269 | 2.68 x | 24 % of amx_bf" in said
    assert said.rstrip().endswith("all measured")
    made.clear()
    main(words)
    assert not made
    assert capsys.readouterr().out == said
    main([*words[:-1], "cpu:x86_64,avx2"])
    verbs = [step[2] if step[1] == "apps.cli" else step[1] for step in made]
    assert verbs == ["apps.bench.build_peer", "bench", "bench"]  # what depends on the target


def test_the_words_are_those_of_the_verbs(
    made: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step's options are known: the verb goes on to what is not there."""
    main([str(tmp_path), "--rows", "tiny:w4g64:Q4_0", "--target", TARGET])
    bench = made[-1]
    assert lutra(bench[2:]) != 0
    assert "unrecognized" not in capsys.readouterr().err


def test_a_step_that_fails_is_named(made: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(LutraError, match=r"convert .*w8g64.* ended with 1"):
        main([str(tmp_path), "--rows", "tiny:w8g64:Q4_0", "--target", TARGET])


def test_rows_are_read_or_refused() -> None:
    assert {Row.parse(text).theirs for text in ROWS.split(",")} <= set(FORMATS)
    for text in ("tiny", "tiny:w4g64", "tiny:w4g64:", "tiny:w4g64:Q4_0:x", ":w4g64:Q4_0"):
        with pytest.raises(UsageError, match="row"):
            Row.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small:w4g64:Q4_0", "'small'; use one of .*tiny"),
        ("tiny:w4g64:Q9", "'Q9'; use one of .*Q4_0"),
        ("tiny:w9:Q4_0", "'w9'"),
    ],
)
def test_what_no_step_would_take_is_refused_before_the_first(
    text: str, message: str, made: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(LutraError, match=message):
        main([str(tmp_path / "new"), "--rows", f"tiny:w4g64:Q4_0,{text}", "--target", TARGET])
    assert not made
    assert not (tmp_path / "new").exists()


def test_figures_without_ceilings_have_none() -> None:
    values = VALUES | {"prefill_ceiling_shares": {}, "decode_ceiling_share": None}
    cells = line(ROW, Run(Target.parse(TARGET), "auto"), values)
    assert cells[6::3] == ("-", "-")
    assert table([cells]).count("\n") == 2
