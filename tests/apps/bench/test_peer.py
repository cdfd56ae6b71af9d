"""The peer: how it is built, and that it computes the same model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from apps.bench import build_peer, peer
from apps.bench.build_peer import cmake_arguments
from apps.bench.peer import check_build
from apps.bench.process import Child
from edge.errors import LutraError, MissingDependency, OutputExists, UsageError
from edge.target import Target
from tests.apps.bench import fake_side
from tests.apps.bench.conftest import ALL, QUICK
from tests.apps.conftest import Lutra
from tests.checkpoints import make_checkpoint

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


def test_an_environment_is_there_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = True

    def run(*command: str, **_: str) -> None:
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
        elif fails:
            raise LutraError("pip ended with 1")

    monkeypatch.setattr(build_peer, "_run", run)
    with pytest.raises(LutraError, match="pip ended"):
        build_peer.build(tmp_path / "new", [], "true", "0")
    assert not (tmp_path / "new").exists()
    fails = False
    python = build_peer.build(tmp_path / "new", [], "true", "0")
    assert python.parent.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


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
