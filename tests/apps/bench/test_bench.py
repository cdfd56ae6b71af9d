"""bench: what it measures in what order, what it prints, what it refuses; no test is of times."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.bench import ceilings, command, compare, measure
from apps.bench.compare import OPENINGS, CeilingFigures, Figures, SideFigures
from apps.bench.measure import Sample, Spread, alternate
from apps.bench.process import Child
from apps.bench.report import load_average, told_over
from apps.bench.work import work_of
from apps.progress import Bar
from edge.bundle import Bundle
from edge.errors import (
    LutraError,
    MissingDependency,
    OutputExists,
    PromptTooLong,
    UnknownTarget,
    UsageError,
)
from edge.kvcache import KVCache
from edge.planes import parts_of
from edge.target import this_machine
from tests.apps.bench.conftest import QUICK
from tests.apps.conftest import Lutra
from tests.checkpoints import make_checkpoint

FIGURES = {
    "prefill_tok_s",
    "decode_tok_s",
    "time_to_first_token_s",
    "peak_rss_bytes",
    "read_bandwidth_gb_s",
    "decode_ceiling_share",
}
ANOTHER = "aarch64" if this_machine().arch == "x86_64" else "x86_64"


# Measuring.


def test_probes_alternate_and_the_first_round_is_not_counted() -> None:
    taken: list[str] = []
    counts = {"a": 0, "b": 0}

    def probe(name: str) -> int:
        taken.append(name)
        counts[name] += 1
        return counts[name]

    rests: list[float] = []
    values = alternate({"a": lambda: probe("a"), "b": lambda: probe("b")}, 3, rests.append)
    assert taken == ["a", "b"] * 4
    assert values == {"a": [2, 3, 4], "b": [2, 3, 4]}
    assert rests == [measure.REST_S] * 8


def test_spread_is_the_median_and_the_range() -> None:
    assert Spread.of([5.0, 1.0, 100.0, 2.0, 3.0]) == Spread(3.0, 1.0, 100.0)


def test_rates_count_the_prompt_once_and_the_first_token_not_at_all() -> None:
    sample = Sample(prompt_tokens=100, generated_tokens=11, first_token_s=0.5, rest_s=2.0)
    assert sample.prefill_tok_s == 200
    assert sample.decode_tok_s == 5


def test_share_of_the_ceiling_is_the_median_of_the_rounds_own() -> None:
    sides = {"lutra": SideFigures([Sample(1, 2, 1.0, seconds) for seconds in (1.0, 0.5, 0.25)])}
    figures = Figures(CeilingFigures({}, [10.0, 40.0, 20.0], {"a": [1.0, 9.0, 2.0]}), sides)
    # 1, 2, 4 tokens a second of 5 GB each: 5/10, 10/40, 20/20
    assert figures.decode_share("lutra", 5e9) == 0.5
    assert figures.read_bandwidth_gb_s() == 20.0
    assert figures.ceilings is not None
    assert figures.ceilings.mac_rates() == {"a": 2.0}
    assert Figures(None, sides).decode_share("lutra", 5e9) is None


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_are_all_weights_but_one_row_of_an_embedding_apart(
    tied: bool, tmp_path: Path
) -> None:
    from converter.convert import convert

    source = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    convert(source, tmp_path / "model.lutra", weights="w4g64", embedding=None if tied else "f16")
    bundle = Bundle.open(tmp_path / "model.lutra")
    stored = sum(bundle.byte_count(tensor.name) for tensor in bundle.graph.tensors)
    work = work_of(bundle, "f16")
    table = parts_of(bundle.manifest.tensors["embed"].form, (300, 32))
    whole = sum(part.byte_count for part in table.values())
    assert work.weight_bytes == (stored if tied else stored - whole + whole // 300)
    assert work.kv_bytes(10) == 10 * KVCache(bundle.graph.caches, 64, "f16").bytes_per_token
    assert work.step_bytes(10) == work.weight_bytes + work.kv_bytes(10)
    layers = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 172)
    assert work.prefill_macs(7) == 7 * layers + 300 * 32


def test_a_window_bounds_what_attention_reads(tmp_path: Path) -> None:
    from converter.convert import convert

    source = make_checkpoint(tmp_path / "model", model_type="mistral", sliding_window=8)
    convert(source, tmp_path / "model.lutra", weights="w4g64")
    work = work_of(Bundle.open(tmp_path / "model.lutra"), "f32")
    assert work.kv_bytes(4) < work.kv_bytes(8) == work.kv_bytes(50)


# Ceilings.


def test_ceilings_are_read_by_every_thread(quick: None) -> None:
    pytest.importorskip("llvmlite")
    made = ceilings.make_ceilings(this_machine().target(), 2)
    if made is None:
        pytest.skip("no code for this machine")
    assert made.read_bandwidth_gb_s(2) > 0
    for rate in made.rates:
        assert made.mac_s(rate, 2) > 0


def test_reading_loops_read_every_byte(quick: None) -> None:
    pytest.importorskip("llvmlite")
    import numpy as np

    made = ceilings.make_ceilings(this_machine().target(), 1)
    if made is None:
        pytest.skip("no code for this machine")
    buffer, out = made.buffers[0], made.outs[0]
    buffer[:] = np.random.default_rng(0).integers(0, 256, buffer.size)
    sums = buffer.view(np.int64).reshape(-1, 8).sum(axis=0)
    for pattern in ceilings.PATTERNS:
        out[:] = 0
        made.time(pattern.name, 1, made.buffers, buffer.size)
        assert out[:64].view(np.int64).tolist() == sums.tolist(), pattern


def test_a_pattern_counts_by_all_its_turns_not_by_its_best_moment(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llvmlite")
    made = ceilings.make_ceilings(this_machine().target(), 1)
    if made is None:
        pytest.skip("no code for this machine")
    lucky, steady = ceilings.PATTERNS[:2]
    turns = {pattern.name: 0 for pattern in ceilings.PATTERNS}

    def timed(name: str, threads: int, data: object, count: int) -> float:
        turns[name] += 1
        if name == lucky.name:
            return 0.5 if turns[name] == 2 else 4.0
        return 2.0 if name == steady.name else 3.0

    monkeypatch.setattr(made, "time", timed)
    assert made.read_bandwidth_gb_s(1) == pytest.approx(made.buffers[0].size / 2.0 / 1e9)
    assert set(turns.values()) == {6}


def test_reading_is_measured_next_to_our_decode() -> None:
    samples = {name: lambda: None for name in (compare.OURS, compare.PEER)}
    machine: Any = SimpleNamespace(threads=1, rates=[])
    assert list(compare.with_ceilings(machine, samples)) == [
        compare.MULTIPLY,
        compare.OURS,
        compare.READ,
        compare.PEER,
    ]


def test_buffers_shrink_where_memory_is_short(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 1048576 kB\n")
    assert ceilings.buffer_bytes(1, meminfo) == 256 << 20
    assert ceilings.buffer_bytes(3, meminfo) == 85 << 20
    meminfo.write_text("MemAvailable: 99999999 kB\n")
    assert ceilings.buffer_bytes(2, meminfo) == ceilings.BUFFER_BYTES


# The verb.


def test_ceilings_are_told_first_and_once(lutra: Lutra, bundle: Path, quick: None) -> None:
    pytest.importorskip("llvmlite")
    lines = lutra("bench", bundle, *QUICK, "--quiet").out.splitlines()
    titles = [line.split(":")[0].split(",")[0] for line in lines]
    assert titles[:2] == ["read bandwidth", "read bandwidth during the rounds"]
    assert lines[0].startswith("read bandwidth, 1 thread: ")
    assert titles.index("dot_int8") < next(
        i for i, line in enumerate(lines) if line.startswith("read a token")
    )
    assert sum("read bandwidth, " in line for line in lines) == 1


def test_turns_are_counted_as_they_end(
    lutra: Lutra, bundle: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, int]] = []

    class Counter(Bar):
        def start(self, stage: str, total: int, unit: str) -> None:
            heard.append((stage, total))

        def advance(self, count: int) -> None:
            stage, left = heard[-1]
            heard[-1] = stage, left - count

        def finish(self) -> None:
            pass

    monkeypatch.setattr(command, "Bar", Counter)
    assert lutra("bench", bundle, *QUICK).code == 0
    assert dict(heard).keys() >= {"read bandwidth", "loading", "rounds", "opening"}
    assert {left for stage, left in heard if stage} == {0}


def test_json_has_every_figure(lutra: Lutra, bundle: Path, quick: None) -> None:
    ran = lutra("bench", bundle, *QUICK, "--quiet", "--json")
    assert ran.code == 0, ran.err
    values = ran.json
    assert values.keys() >= FIGURES
    over = (values["peak_rss_bytes"] - values["kv_bytes"]) / values["weights_bytes"] - 1
    assert values["memory_over_share"] == over > 0  # NumPy alone is more than so small a model
    assert values["kv_bytes"] > 0
    assert values["figures"] == "measured"
    assert (values["target"], values["threads"], values["peer"]) == ("ref", 1, None)
    assert (values["prompt_tokens"], values["generated_tokens"]) == (9, 3)
    assert len(values["samples"]) == values["repeats"] == 5
    rates = sorted(9 / sample["first_token_s"] for sample in values["samples"])
    assert values["prefill_tok_s"] == pytest.approx(rates[2])
    rates = sorted(2 / sample["rest_s"] for sample in values["samples"])
    assert values["decode_tok_s"] == pytest.approx(rates[2])
    assert values["spread"]["decode_tok_s"]["most"] == pytest.approx(rates[4])
    assert values["weight_bytes_per_token"] == work_of(Bundle.open(bundle), "f32").weight_bytes
    assert values["formats"] == {"w4g64": 16}
    assert "(measured)" in ran.out


@pytest.mark.parametrize(
    ("peak", "weights", "said"),
    [
        (221, 173, "44.00 MB over the weights' 173.00 MB and 4.00 MB of KV cache, +25 %"),
        (724, 793, "73.00 MB under the weights' 793.00 MB and 4.00 MB of KV cache, -9 %"),
        (34, 1, "29.00 MB over the weights' 1.00 MB and 4.00 MB of KV cache"),
    ],
)
def test_memory_is_told_as_a_share_of_weights_that_are_more(
    peak: int, weights: int, said: str
) -> None:
    counts = {"peak_rss_bytes": peak, "weights_bytes": weights, "kv_bytes": 4}
    assert told_over({name: count * 10**6 for name, count in counts.items()}) == said


@pytest.mark.parametrize(("load", "said"), [(0.1, False), (3.2, True), (None, False)])
def test_a_busy_machine_is_told_of(
    load: float | None,
    said: bool,
    lutra: Lutra,
    bundle: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "load_average", lambda: load)
    ran = lutra("bench", bundle, *QUICK, "--quiet", "--json")
    assert ("3.2 other programs were running" in ran.out) is said
    assert ran.json["machine"]["load_before"] == load


def test_load_average_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("1.25 0.5 0.1 1/83 18341\n")
    assert load_average(tmp_path / "loadavg") == 1.25
    assert load_average(tmp_path / "none") is None


def test_the_peer_runs_in_turns_on_the_same_checkpoint(
    lutra: Lutra,
    bundle: Path,
    checkpoint: Path,
    quick: None,
    faked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    ask = Child.ask

    def heard(child: Child, name: str, **arguments: object) -> dict[str, Any]:
        asked.extend([child.module] * (name == "generate"))
        return ask(child, name, **arguments)

    monkeypatch.setattr(Child, "ask", heard)
    pytest.importorskip("gguf")
    options = (
        "--peer",
        "llama.cpp",
        "--checkpoint",
        checkpoint,
        "--peer-format",
        "Q8_0",
        "--peer-flash-attention",
        "off",
    )
    ran = lutra("bench", bundle, *QUICK, *options, "--json")
    assert ran.code == 0, ran.err
    theirs = ran.json["peer"]
    assert theirs.keys() >= FIGURES
    assert theirs["prefill_tok_s"] == 9 / 0.5
    assert theirs["decode_tok_s"] == 8
    assert theirs["time_to_first_token_s"] == 0.5
    assert theirs["open_to_first_token_s"] == 0.75
    assert theirs["read_bandwidth_gb_s"] == ran.json["read_bandwidth_gb_s"]
    assert theirs["buffers"] == ["1 12 off"]
    # rows of 172 are no whole blocks of 32
    assert theirs["formats"] == {"Q8_0": 14, "F16": 2}
    assert ran.json["ratios"]["decode_tok_s"] == pytest.approx(ran.json["decode_tok_s"] / 8)
    assert asked == ["apps.bench.lutra_side", "tests.apps.bench.fake_side"] * (6 + OPENINGS)
    assert "lutra / llama.cpp: prefill" in ran.out


def test_the_peers_file_is_kept_and_checked(
    lutra: Lutra, bundle: Path, checkpoint: Path, tmp_path: Path, quick: None, faked: None
) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "peer.gguf"
    words = ("bench", bundle, *QUICK, "--peer", "llama.cpp", "--peer-file", file)
    assert lutra(*words, "--checkpoint", checkpoint, "--quiet").code == 0
    written = file.stat().st_mtime_ns
    assert lutra(*words, "--checkpoint", checkpoint, "--quiet").code == 0
    assert file.stat().st_mtime_ns == written
    ran = lutra(*words, "--checkpoint", checkpoint, "--peer-format", "F16")
    assert ran.code == OutputExists.exit_code
    assert "is Q4_0, not F16" in ran.err
    other = make_checkpoint(tmp_path / "other")
    assert lutra(*words, "--checkpoint", other).code == OutputExists.exit_code


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--repeats", 4), UsageError, "use 5 or more"),
        (("--prompt", 0), UsageError, "--prompt 0"),
        (("--generate", 1), UsageError, "--generate 1"),
        (("--threads", 0), UsageError, "--threads 0"),
        (("--threads", 10_000), UsageError, "cores"),
        (("--prompt", 60, "--generate", 5), PromptTooLong, "the context holds 64"),
        (("--prompt", 9, "--generate", 3, "--context", 11), PromptTooLong, "the context holds 11"),
        (("--prompt", 9, "--peer", "llama.cpp"), UsageError, "--checkpoint"),
        (("--peer-format", "Q4_0"), UsageError, "--peer-format without --peer"),
        (("--peer-any-build",), UsageError, "--peer-any-build without --peer"),
        (("--target", "npu:hvx-v67"), UsageError, "emulated"),
        (("--target", "cpu:riscv64"), UnknownTarget, "riscv64"),
        (("--target", f"cpu:{ANOTHER}"), UnknownTarget, f"is for {ANOTHER}, this machine is"),
        (("--prefill", "npu:ort"), UsageError, "unrecognized arguments: --prefill"),
    ],
)
def test_bench_refuses(
    options: tuple[object, ...],
    error: type[LutraError],
    message: str,
    lutra: Lutra,
    bundle: Path,
) -> None:
    ran = lutra("bench", bundle, "--prompt", 9, "--generate", 3, *options)
    assert ran.code == error.exit_code
    assert message in ran.err


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_hidden_layers": 3}, "has 3 layers, the bundle 2"),
        ({"intermediate_size": 96}, r"gate is (96, 32), the bundle's (172, 32)"),
    ],
)
def test_the_peer_runs_no_other_model(
    shape: dict[str, int], message: str, lutra: Lutra, bundle: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", **shape)
    ran = lutra("bench", bundle, *QUICK, "--peer", "llama.cpp", "--checkpoint", other)
    assert ran.code == UsageError.exit_code
    assert message in ran.err


def test_a_peer_that_is_not_installed_is_one_command_away(
    lutra: Lutra, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "python"  # this Python without its packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    options = ("--peer", "llama.cpp", "--checkpoint", checkpoint, "--peer-python", bare)
    ran = lutra("bench", bundle, *QUICK, *options, "--json")
    assert ran.code == MissingDependency.exit_code
    assert "python -m apps.bench.build_peer FOLDER" in ran.json["error"]["cure"]
