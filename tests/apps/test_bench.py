"""bench: what it measures in what order, what it prints, what it refuses; no test is of times."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.bench import build_peer, ceilings, command, measure, peer
from apps.bench.build_peer import cmake_arguments
from apps.bench.compare import CeilingFigures, Figures, SideFigures
from apps.bench.measure import Sample, Spread, alternate
from apps.bench.peer import check_build
from apps.bench.process import Child
from apps.bench.report import load_average
from apps.bench.work import work_of
from apps.bench.worker import peak_rss_bytes
from edge.bundle import Bundle
from edge.errors import (
    LutraError,
    MissingDependency,
    OutputExists,
    PromptTooLong,
    UsageError,
)
from edge.kvcache import KVCache
from edge.planes import parts_of
from edge.target import Machine, Target, this_machine
from tests.apps import fake_side
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
QUICK = ("--target", "ref", "--threads", 1, "--prompt", 9, "--generate", 3)
ALL = Machine("x86_64", "linux", frozenset({"avx2", "avx512", "vnni", "amx"}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rests, buffers and loops as short as can be."""
    monkeypatch.setattr(measure, "REST_S", 0)
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_RATE_S", 1e-5)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that needs no llama.cpp, on a machine that has all that it was built for."""
    monkeypatch.setattr(peer, "SIDE", "tests.apps.fake_side")
    monkeypatch.setattr(peer, "this_machine", lambda: ALL)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


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


def test_buffers_shrink_where_memory_is_short(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 1048576 kB\n")
    assert ceilings.buffer_bytes(1, meminfo) == 256 << 20
    assert ceilings.buffer_bytes(3, meminfo) == 85 << 20
    meminfo.write_text("MemAvailable: 99999999 kB\n")
    assert ceilings.buffer_bytes(2, meminfo) == ceilings.BUFFER_BYTES


# Processes.


def test_a_childs_errors_are_raised_here(faked: None) -> None:
    with Child("tests.apps.fake_side") as child:
        with pytest.raises(PromptTooLong, match="what was found; what to do"):
            child.ask("refuse")
        with pytest.raises(LutraError, match="ZeroDivisionError: by zero"):
            child.ask("fail")
        assert child.ask("versions")["llama_cpp"] == "2"
        with pytest.raises(LutraError, match=r"code 7 while asked to die\n[\s\S]*the last words"):
            child.ask("die")


def test_a_python_that_is_not_there() -> None:
    with pytest.raises(MissingDependency, match="nowhere/python"):
        Child("tests.apps.fake_side", "nowhere/python")


def test_peak_memory_is_this_processs_own(faked: None) -> None:
    ballast = bytearray(200 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    assert peak_rss_bytes() > 200 << 20
    with Child("tests.apps.fake_side") as child:
        assert 1 << 20 < child.ask("memory")["peak_rss_bytes"] < 60 << 20


# The verb.


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
    lutra: Lutra, bundle: Path, checkpoint: Path, quick: None, faked: None
) -> None:
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
    notes = [line for line in ran.err.splitlines() if line.startswith("round")]
    assert [note.split(": ")[1] for note in notes if "ing" not in note] == [
        "lutra",
        "llama.cpp",
    ] * 6
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


# How the peer is built.


def test_the_peer_must_use_what_the_target_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "this_machine", lambda: ALL)
    whole = fake_side.SYSTEM_INFO
    check_build(whole, Target.parse("cpu:x86_64,avx512,vnni,amx"))
    check_build(whole, Target.parse("ref"))
    with pytest.raises(UsageError, match=r"uses amx, .*--target .cpu:x86_64,avx2,avx512,vnni."):
        check_build(whole, Target.parse("cpu:x86_64,avx512,vnni"))
    with pytest.raises(UsageError, match="lacks amx"):
        check_build(whole.replace("AMX_INT8 = 1", "AMX_INT8 = 0"), Target.parse("ref"))
    with pytest.raises(UsageError, match="lacks vnni"):
        check_build(whole.replace("AVX512_VNNI", "AVX_VNNI"), Target.parse("ref"))


def test_builds_name_every_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_peer, "this_machine", lambda: ALL)
    whole = cmake_arguments(ALL.target(), "flags: avx512vbmi avx512_bf16")
    for name in ("GGML_AMX_INT8", "GGML_AVX512_VNNI", "GGML_AVX512_BF16", "GGML_AVX2"):
        assert f"-D{name}=ON" in whole
    assert "-DGGML_NATIVE=OFF" in whole
    less = cmake_arguments(Target.parse("cpu:x86_64,avx512,vnni"), "flags: avx512vbmi")
    assert {"-DGGML_AMX_INT8=OFF", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_BF16=OFF"} <= set(less)
    least = cmake_arguments(Target.parse("cpu:x86_64,avx2"), "flags: avx512vbmi avx512_bf16")
    assert {"-DGGML_AVX512=OFF", "-DGGML_AVX512_VBMI=OFF", "-DGGML_AVX2=ON"} <= set(least)
    with pytest.raises(UsageError, match="aarch64"):
        cmake_arguments(Target.parse("cpu:aarch64,dotprod"), "")


def test_a_tuned_build_uses_no_more_than_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_peer, "this_machine", lambda: ALL)
    assert "-DCMAKE_C_FLAGS=-march=native" in cmake_arguments(ALL.target(), "", tune=True)
    less = cmake_arguments(Target.parse("cpu:x86_64,avx512,vnni"), "", tune=True)
    flags = "-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    assert f"-DCMAKE_CXX_FLAGS={flags}" in less
    with pytest.raises(UsageError, match="no more than amx"):
        cmake_arguments(Target.parse("cpu:x86_64,avx2"), "", tune=True)


def test_build_refuses_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutputExists):
        build_peer.build(tmp_path, [], "clang-19", "0")
    with pytest.raises(MissingDependency, match="no such-clang here"):
        build_peer.build(tmp_path / "new", [], "such-clang", "0")
    assert not (tmp_path / "new").exists()


# The peer itself, where there is one.


@pytest.fixture(scope="session")
def peer_python() -> str:
    """A Python that has llama_cpp: the one that LUTRA_PEER_PYTHON names."""
    if peer.PYTHON_VARIABLE not in os.environ:
        pytest.skip(f"no llama.cpp; set {peer.PYTHON_VARIABLE} to a Python that has it")
    return os.environ[peer.PYTHON_VARIABLE]


MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "tie_word_embeddings": True},
    "llama-scaled": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16},
}


@pytest.mark.parametrize(("form", "bound"), [("F16", 0.005), ("Q8_0", 0.05)])
@pytest.mark.parametrize("name", MODELS)
def test_llamacpp_computes_the_same_model(
    name: str, form: str, bound: float, peer_python: str, tmp_path: Path
) -> None:
    import numpy as np

    import edge
    from apps.bench.gguf_file import write_gguf
    from converter.convert import convert

    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
    source = make_checkpoint(tmp_path / "model", **shape, **MODELS[name])
    convert(source, tmp_path / "model.lutra", weights="f32")
    tokens = np.random.default_rng(1).integers(0, 300, 40).tolist()
    ours = edge.load(tmp_path / "model.lutra", target="ref").logits(tokens)
    write_gguf(source, tmp_path / "model.gguf", form)
    with Child("apps.bench.llamacpp_side", peer_python) as child:
        child.ask(
            "load", path=str(tmp_path / "model.gguf"), threads=1, context=64, flash_attention="auto"
        )
        theirs = np.array(child.ask("logits", tokens=tokens)["logits"])
        drawn = child.ask("generate", prompt=tokens, count=3)["tokens"]
    assert np.square(theirs - ours).mean() ** 0.5 < bound * ours.std()
    if form == "F16":
        assert drawn[0] == int(ours[-1].argmax())
    assert len(drawn) == 3


def test_bench_with_llamacpp(lutra: Lutra, tmp_path: Path, quick: None, peer_python: str) -> None:
    from converter.convert import convert

    source = make_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=512)
    convert(source, tmp_path / "model.lutra", weights="w4g64")
    words = ("bench", tmp_path / "model.lutra", *QUICK, "--peer", "llama.cpp")
    options = ("--peer-python", peer_python, "--checkpoint", source, "--peer-format", "Q2_K")
    ran = lutra(*words, *options, "--peer-any-build", "--json")
    assert ran.code == 0, ran.err
    theirs = ran.json["peer"]
    assert theirs["formats"] == {"Q2_K": 16}
    assert theirs["prefill_tok_s"] > 0
    assert json.dumps(theirs["buffers"]).count("model buffer") >= 1
