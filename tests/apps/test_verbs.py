"""convert, run, chat, inspect, verify, eval, doctor: what they print and return."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

import edge
from apps import eval as evaluation
from apps.eval import windows
from edge.errors import (
    AlteredBundle,
    BadTemplate,
    BadTokens,
    OutputExists,
    PromptTooLong,
    UnknownFormat,
    UnknownTarget,
    UsageError,
)
from tests.apps.conftest import Lutra
from tests.checkpoints import make_checkpoint, rewrite_weights
from tests.gguf_files import write_gguf


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It was a dark and stormy night; the rain fell in torrents. " * 4)
    return path


# convert


def test_convert_prints_the_plan_then_what_it_wrote(
    lutra: Lutra, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.lutra"
    ran = lutra("convert", checkpoint, out, "--weights", "w2g64", "--head", "w8gc", "--json")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == "tiny: llama, context 64"
    assert any("layers.*.q (x2)" in line and "w2g64" in line for line in lines)
    assert ran.json["bytes"] == sum(
        p.stat().st_size for p in out.iterdir() if p.name != "manifest.json"
    )
    assert 2 < ran.json["bits_per_weight"] < 16


def test_plan_alone_writes_nothing(lutra: Lutra, checkpoint: Path, tmp_path: Path) -> None:
    ran = lutra("convert", checkpoint, tmp_path / "m.lutra", "--plan", "--json")
    assert ran.code == 0
    assert ran.json["parameters"] > 0
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses(lutra: Lutra, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.lutra"
    for option in ("--weights", "--head", "--embedding"):
        for form in ("q4", ""):
            assert lutra("convert", checkpoint, out, option, form).code == UnknownFormat.exit_code
    ran = lutra("convert", checkpoint, out, "--revision", "main")
    assert ran.code == UsageError.exit_code
    assert "revision 'main' of" in ran.err
    assert lutra("convert", checkpoint, out, "--context", "0").code == UsageError.exit_code
    assert not out.exists()
    assert lutra("convert", checkpoint, out, "--quiet").out == ""
    ran = lutra("convert", checkpoint, out)
    assert ran.code == OutputExists.exit_code
    assert "--overwrite" in ran.err
    assert lutra("convert", checkpoint, out, "--overwrite").code == 0


def test_a_template_that_does_not_compile_is_noted(
    lutra: Lutra, bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    source, out = make_checkpoint(tmp_path / "tiny"), tmp_path / "m.lutra"
    (source / "chat_template.jinja").write_text("{% if x %}")
    ran = lutra("convert", source, out)
    assert ran.code == 0
    assert "note: the chat template is not Jinja2: line 1" in ran.err
    assert "lutra chat will not work with this bundle, lutra run --raw will" in ran.err
    assert lutra("run", out, "--raw", "-p", "x", "--greedy", "--max-tokens", 1).code == 0
    ran = lutra("run", out, "-p", "x", "--max-tokens", 1)
    assert ran.code == BadTemplate.exit_code
    assert "lutra run --raw with a plain prompt" in ran.err


# run


def test_run_json_has_what_scripts_read(lutra: Lutra, bundle: Path) -> None:
    words = ("run", bundle, "--raw", "-p", "hello", "--greedy", "--max-tokens", 5, "--json")
    ran = lutra(*words)
    values = ran.json
    assert len(values["token_ids"]) == 5
    assert values["finish_reason"] == "length"
    assert values["prefill_tok_s"] > 0
    assert values["decode_tok_s"] > 0
    assert values["rates"] == "measured"
    model = edge.load(bundle)
    assert values["text"] == model.tokenizer.decode(values["token_ids"])
    assert lutra(*words).json["token_ids"] == values["token_ids"]


def test_run_writes_a_trace(lutra: Lutra, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    words = ("--tokens", "1 2", "--greedy", "--max-tokens", 4)
    assert lutra("run", bundle, *words, "--trace", out).code == 0
    events = json.loads(out.read_text())["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names[0] == "prefill"
    assert all(name.startswith("decode") for name in names[1:])


def test_run_prints_the_prompt_with_its_continuation(lutra: Lutra, bundle: Path) -> None:
    words = ("--raw", "-p", "hello", "--greedy", "--max-tokens", 5, "--target", "ref")
    ran = lutra("run", bundle, *words)
    model = edge.load(bundle, target="ref")
    whole = model.generate("hello", max_tokens=5, sampling=edge.Sampling.greedy())
    assert ran.out == f"hello{whole}\n"
    assert "(measured); ended by length" in ran.err
    assert "[ref: 5 prompt tokens" in ran.err


def test_run_takes_prompts_from_files_pipes_and_ids(
    lutra: Lutra, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--raw", "--greedy", "--max-tokens", 3, "--json")
    expected = lutra("run", bundle, "-p", "hello", *options).json["token_ids"]
    (tmp_path / "prompt.txt").write_text("hello")
    ran = lutra("run", bundle, "--prompt-file", tmp_path / "prompt.txt", *options)
    assert ran.json["token_ids"] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    assert lutra("run", bundle, *options).json["token_ids"] == expected
    ids = " ".join(map(str, edge.load(bundle).encode("hello")))
    assert lutra("run", bundle, "--tokens", ids, *options).json["token_ids"] == expected


def test_run_uses_the_chat_template_unless_raw(lutra: Lutra, bundle: Path) -> None:
    options = ("-p", "hello", "--greedy", "--max-tokens", 1, "--json")
    raw = lutra("run", bundle, "--raw", *options).json["prompt_tokens"]
    chat = lutra("run", bundle, *options).json["prompt_tokens"]
    system = lutra("run", bundle, "--system", "be brief", *options).json["prompt_tokens"]
    assert raw < chat < system


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--prompt-file", "nowhere.txt"), UsageError, "nowhere.txt"),
        (("--tokens", "1 x"), UsageError, "whole numbers"),
        (("--tokens", ""), UsageError, "whole numbers"),
        (("--tokens", "1 400"), BadTokens, "token id 400, the vocabulary has 300"),
        (("--raw", "-p", "x" * 70), PromptTooLong, "the context holds 64"),
        (("-p", "x", "--context", "65"), UsageError, "converted for up to 64"),
        (("-p", "x", "--target", "cpu:z80"), UnknownTarget, "z80"),
        (("-p", "x", "--temperature", "-1"), UsageError, "temperature"),
        (("-p", "x", "--raw", "--system", "s"), UsageError, "chat template"),
        (("-p", "x", "--max-tokens", "0"), UsageError, "max_tokens is 0"),
    ],
)
def test_run_refuses(
    options: tuple[str, ...], error: type[edge.LutraError], message: str, lutra: Lutra, bundle: Path
) -> None:
    ran = lutra("run", bundle, *options)
    assert ran.code == error.exit_code
    assert message in ran.err


def test_greedy_keeps_a_repetition_penalty_that_is_asked_for(lutra: Lutra, bundle: Path) -> None:
    words = ("run", bundle, "--raw", "-p", "hello", "--max-tokens", 12, "--json")
    penalty = ("--repetition-penalty", 5)
    expected = lutra(*words, "--temperature", 0, *penalty).json["token_ids"]
    assert lutra(*words, "--greedy", "--temperature", 2, *penalty).json["token_ids"] == expected
    assert lutra(*words, "--greedy").json["token_ids"] != expected


def test_input_that_is_no_text(lutra: Lutra, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piped() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(b"hi\n\xff\xfe\n/reset\nyou?\n"), encoding="utf-8")

    monkeypatch.setattr("sys.stdin", piped())
    ran = lutra("run", bundle, "--raw")
    assert ran.code == UsageError.exit_code
    assert "standard input" in ran.err
    monkeypatch.setattr("sys.stdin", piped())
    messages = lutra("chat", bundle, "--greedy", "--max-tokens", 2, "--json").json["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["you?"]


# chat


def chat(
    lutra: Lutra, monkeypatch: pytest.MonkeyPatch, bundle: Path, *lines: str
) -> list[dict[str, str]]:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ran = lutra("chat", bundle, "--greedy", "--max-tokens", 4, "--target", "ref", "--json")
    assert ran.code == 0, ran.err
    messages: list[dict[str, str]] = ran.json["messages"]
    return messages


def test_chat_remembers_until_reset(
    lutra: Lutra, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = chat(lutra, monkeypatch, bundle, "hi", "", "you?")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    model = edge.load(bundle, target="ref")
    history = [edge.Message(**m) for m in messages[:-1]]
    answer = "".join(
        r.text
        for r in model.stream(
            model.encode_chat(history), max_tokens=4, sampling=edge.Sampling.greedy()
        )
    )
    assert messages[-1]["content"] == answer
    after_reset = chat(lutra, monkeypatch, bundle, "hi", "/reset", "you?", "/exit", "never")
    assert [m["content"] for m in after_reset if m["role"] == "user"] == ["you?"]


def test_chat_says_when_the_conversation_is_too_long(
    lutra: Lutra, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 100 + "\nhi\n"))
    ran = lutra("chat", bundle, "--greedy", "--max-tokens", 4, "--json")
    assert "too long" in ran.err
    assert [m["content"] for m in ran.json["messages"] if m["role"] == "user"] == ["hi"]


# inspect, verify, doctor


def test_inspect_json(lutra: Lutra, bundle: Path) -> None:
    values = lutra("inspect", bundle, "--json").json
    assert values["parameters"] == sum(
        math.prod(t["shape"]) for name, t in values["tensors"].items() if name != "rope"
    )
    stored = sum(t["bytes"] for t in values["tensors"].values())
    assert values["bits_per_weight"] == pytest.approx(8 * stored / values["parameters"])
    assert values["bytes"] == sum(f["byte_count"] for f in values["files"].values())
    assert {g["name"]: g["rows"] for g in values["graphs"]} == {"decode": 1, "prefill": 256}
    assert values["formats"]["w4g64"]["tensors"] == 16


def test_inspect_for_people(lutra: Lutra, bundle: Path) -> None:
    ran = lutra("inspect", bundle, "--tensors", "--graph")
    assert "w4g64" in ran.out
    assert "layers.1.down" in ran.out
    assert "layers.0.attention:" in ran.out


def test_inspect_a_checkpoint(lutra: Lutra, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "Q8_0")
    values = lutra("inspect", path, "--json").json
    assert values["source"] == "Q8_0 x 14, F32 x 7"
    assert values["kept"] == 14
    assert values["tensors"]["model.norm.weight"] == {"shape": [32], "type": "F32"}
    ran = lutra("inspect", checkpoint, "--tensors", "--graph")
    assert "model.layers.1.mlp.down_proj.weight" in ran.out
    assert "w4g64" in ran.out
    assert "layers.0.attention:" in ran.out


def test_convert_a_gguf_file(lutra: Lutra, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "Q8_0")
    ran = lutra("convert", path, tmp_path / "m.lutra", "--weights", "w4g64", "--plan")
    assert "in Q8_0 are quantized anew, to w4g64" in ran.out
    ran = lutra("convert", path, tmp_path / "m.lutra", "--json")
    assert ran.json["notes"] == []
    assert "w8g32" in ran.out
    assert lutra("inspect", tmp_path / "m.lutra", "--json").json["source"] == "Q8_0 x 14, F32 x 7"


def test_convert_with_an_adapter(lutra: Lutra, checkpoint: Path, tmp_path: Path) -> None:
    ran = lutra("convert", checkpoint, tmp_path / "m.lutra", "--lora", tmp_path / "none")
    assert ran.code == 10
    assert "no adapter_config.json\n  to do: give the folder of a PEFT adapter" in ran.err


def test_verify_passes_and_finds_a_changed_byte(lutra: Lutra, bundle: Path, tmp_path: Path) -> None:
    import shutil

    assert lutra("verify", bundle, "--json").json["ok"] is True
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.lutra"))
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-1] ^= 128
    (copy / "weights.safetensors").write_bytes(data)
    ran = lutra("verify", copy)
    assert ran.code == AlteredBundle.exit_code
    assert "weights.safetensors" in ran.err


def test_doctor_runs_what_it_can_and_says_why_not(lutra: Lutra) -> None:
    ran = lutra("doctor", "--json")
    assert ran.code == 0
    findings = {f["target"]: f for f in ran.json["targets"]}
    assert findings["ref"]["passed"]
    assert all(f["passed"] or f["detail"] for f in findings.values())
    assert ran.json["packages"]["numpy"] == np.__version__
    assert "PASS" in lutra("doctor").out


# eval


def test_windows_predict_every_token_once() -> None:
    ids = list(range(10, 31))
    with_bos = list(windows([1, *ids], 8, 1))
    assert [w[0] for w in with_bos] == [1, 1, 1]
    assert np.concatenate([w[1:] for w in with_bos]).tolist() == ids
    without = list(windows(ids, 8, 1))
    assert np.concatenate([w[1:] for w in without]).tolist() == ids[1:]
    assert [w[0] for w in without] == [10, 17, 24]
    assert all(len(w) <= 8 for w in with_bos + without)


def test_eval_is_the_likelihood_of_the_text(lutra: Lutra, exact: Path, text: Path) -> None:
    words = ("--text", text, "--max-tokens", 40, "--target", "ref", "--json")
    values = lutra("eval", exact, *words).json
    model = edge.load(exact, target="ref")
    ids = model.encode(text.read_text())[:40]
    logits = model.logits(ids).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nll = -np.mean([log_probs[i, ids[i + 1]] for i in range(39)])
    assert values["nll"] == pytest.approx(nll, rel=1e-6)
    assert values["tokens"] == 39
    assert values["perplexity"] == pytest.approx(math.exp(values["nll"]))
    assert values["kl"] is None


def test_kl_is_zero_to_itself_and_grows_with_fewer_bits(
    lutra: Lutra, exact: Path, bundle: Path, text: Path
) -> None:
    same = lutra("eval", exact, "--text", text, "--against", exact, "--json").json
    assert same["kl"] == pytest.approx(0, abs=1e-9)
    coarse = lutra("eval", bundle, "--text", text, "--against", exact, "--json").json
    assert coarse["kl"] > 1e-3


def test_scoring_in_pieces_changes_nothing(
    lutra: Lutra, exact: Path, bundle: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", bundle, "--text", text, "--against", exact, "--target", "ref", "--json")
    whole = lutra(*words).json
    monkeypatch.setattr(evaluation, "_ROWS", 5)
    pieces = lutra(*words).json
    assert pieces["tokens"] == whole["tokens"]
    assert pieces["nll"] == pytest.approx(whole["nll"], rel=1e-5)
    assert pieces["kl"] == pytest.approx(whole["kl"], rel=1e-3)


def test_eval_refuses(lutra: Lutra, bundle: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    for words, message in [
        (("--text", tmp_path / "none.txt"), "none.txt"),
        (("--text", tmp_path / "empty.txt"), "give a longer text"),
        (("--text", tmp_path / "binary.txt"), "UTF-8"),
        (("--text", text, "--max-tokens", 1), "--max-tokens 1"),
        (("--text", text, "--context", 1), "a context of 1"),
    ]:
        ran = lutra("eval", bundle, *words)
        assert ran.code == UsageError.exit_code
        assert message in ran.err


def test_eval_of_a_broken_model_says_so(lutra: Lutra, text: Path, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "broken")
    head = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
    rewrite_weights(source, lm_head__weight=head * np.float32(1e6))
    lutra("convert", source, tmp_path / "broken.lutra", "--weights", "f32", "--quiet")
    ran = lutra("eval", tmp_path / "broken.lutra", "--text", text, "--json")
    assert ran.code == BadTokens.exit_code
    assert "nats a token" in ran.json["error"]["what"]


def test_bundles_of_different_models_are_not_compared(
    lutra: Lutra, bundle: Path, text: Path, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "other", vocab_size=320)
    assert lutra("convert", tmp_path / "other", tmp_path / "other.lutra", "--quiet").code == 0
    ran = lutra("eval", bundle, "--text", text, "--against", tmp_path / "other.lutra")
    assert ran.code == UsageError.exit_code
    assert "same checkpoint" in ran.err


def test_quantization_of_a_trained_model_costs_little_at_8_bits_and_more_at_4(
    lutra: Lutra, stories: Path, tmp_path: Path
) -> None:
    story, ref = tmp_path / "story.txt", ("--target", "ref", "--json")
    for form in ("f32", "w8gc", "w4g32"):
        lutra("convert", stories, tmp_path / form, "--weights", form, "--quiet")
    words = ("-p", "Once upon a time", "--greedy", "--max-tokens", 200, *ref)
    story.write_text("Once upon a time" + lutra("run", tmp_path / "f32", *words).json["text"])
    values = {
        form: lutra(
            "eval", tmp_path / form, "--text", story, "--against", tmp_path / "f32", *ref
        ).json
        for form in ("f32", "w8gc", "w4g32")
    }
    assert values["w8gc"]["kl"] < 2e-3
    assert values["w4g32"]["kl"] < 0.3
    assert values["f32"]["perplexity"] < values["w4g32"]["perplexity"] < 4
    out = lutra("run", tmp_path / "w4g32", *words).json["text"]
    assert out.startswith(", there was a little girl named Lily. She loved to play outside in the")
    assert json.dumps(out)
