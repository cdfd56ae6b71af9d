"""What the command line and the benchmark show of an NPU's prefill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge
from apps.bench import prefill
from apps.cli import main
from edge.jobs import CPU, NPU
from tests.npu.htp.conftest import MakeBundle


def test_run_traces_every_job_of_the_prompt(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle, out = make_bundle("llama", "npu:ort"), tmp_path / "trace.json"
    tokens = " ".join(["1 2 3"] * 15)  # two chunks of 32
    words = ["--tokens", tokens, "--greedy", "--max-tokens", "3", "--json"]
    targets = ["--prefill", "npu:ort", "--decode", "ref"]
    assert main(["run", str(bundle), *words, *targets, "--trace", str(out)]) == 0
    trace = json.loads(out.read_text())
    assert trace["otherData"] == {"times": "measured"}
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    jobs = [event for event in slices if event["cat"] in {CPU, NPU}]
    model = edge.load(bundle, prefill="npu:ort", decode="ref")
    assert model.prefill_timeline is None
    model.logits([int(token) for token in tokens.split()])
    assert model.prefill_timeline is not None
    expected = sorted((job.processor, job.name) for job in model.prefill_timeline.jobs)
    assert sorted((event["cat"], event["name"]) for event in jobs) == expected
    assert len({event["tid"] for event in slices}) == 3
    whole = next(event for event in slices if event["name"] == "prefill")
    assert all(event["ts"] + event["dur"] <= whole["ts"] + whole["dur"] for event in jobs)


def test_a_prompt_without_an_npu_has_no_timeline(make_bundle: MakeBundle) -> None:
    model = edge.load(make_bundle("llama", "npu:ort"), target="ref")
    model.logits([1, 2, 3])
    assert model.prefill_timeline is None


def test_prefill_is_measured_all_ways(
    make_bundle: MakeBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    bundle, out = make_bundle("llama", "npu:ort", weights="w4g32"), tmp_path / "trace.json"
    options = ["--chunks", "2", "--rounds", "1", "--trace", str(out), "--json", "--quiet"]
    assert prefill.main([str(bundle), *options]) == 0
    shown = capsys.readouterr().out
    values = json.loads(shown.splitlines()[-1])
    assert "2 chunks of 32" in shown
    assert (values["figures"], values["tokens"]) == ("measured", 64)
    ways = values["ways"]
    assert {"out of order", "in order", "CPU alone, 1 thread"} <= set(ways)
    for name in ("out of order", "in order"):
        assert ways[name]["seconds"] >= max(ways[name]["npu_s"], ways[name]["cpu_s"]) > 0
    names = {e["args"]["name"] for e in json.loads(out.read_text())["traceEvents"] if "ts" not in e}
    assert {"out of order (measured)", "in order (measured)"} <= names


def test_chunks_that_do_not_fit_are_refused(
    make_bundle: MakeBundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    bundle = make_bundle("llama", "npu:ort", weights="w4g32")
    assert prefill.main([str(bundle), "--chunks", "1000", "--quiet"]) == 2
    assert "chunks of 32 tokens, the context is" in capsys.readouterr().err


def test_plan_takes_chunks_and_pruned_layers_from_the_bundle(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle("llama", "npu:ort", weights="w4g32")
    words = ["plan", str(bundle), "--prompt", "64", "--generate", "0", "--json", "--quiet"]

    def planned(*more: str) -> tuple[int, float]:
        assert main([*words, *more]) == 0
        values = json.loads(capsys.readouterr().out.splitlines()[-1])
        return values["chunk"], values["pruned_outliers"]

    assert planned() == (32, 0.0)
    assert planned("--chunk", "64", "--prune-outliers", "0.5") == (64, 0.5)
