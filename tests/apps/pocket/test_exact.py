"""Pocket does what its card says, from the bundle and requantized, on the held-out commands."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import edge
from apps.pocket.actions import ACTIONS
from apps.pocket.bundle import CHECKPOINT, CHUNK, FOLDER, encode_chat, find_bundle
from apps.pocket.dataset import examples, held_out_set
from apps.pocket.exact import answer_all, by_action, is_exact, share
from apps.pocket.tokenizer import EOS, render
from edge.errors import UsageError
from edge.generate import Record
from edge.model import Model
from edge.template import Message
from tests.apps.conftest import Lutra
from tests.npu.hvx.harness import require_emulator

EXAMPLES = 500

# What the committed checkpoint reaches in float.
FLOAT = 0.95

# Points that a format may lose against float.
WITHIN = {"w8gc": 0.01, "w4g64": 0.01, "w2g64": 0.03}


@pytest.fixture(scope="module")
def pocket() -> Model:
    return edge.load(FOLDER)


@pytest.fixture(scope="module")
def exact_float(tmp_path_factory: pytest.TempPathFactory) -> float:
    return exact_share(tmp_path_factory.mktemp("float"), "f32")


def exact_share(folder: Path, form: str) -> float:
    from converter.convert import convert

    convert(CHECKPOINT, folder / "out.lutra", weights=form, chunk=CHUNK)
    model = edge.load(folder / "out.lutra")
    return share(answer_all(model, held_out_set(EXAMPLES), lambda count: None))


def write(model: Model, command: str) -> str:
    records: list[Record] = list(
        model.stream(
            encode_chat(model, [Message("user", command)]),
            max_tokens=60,
            sampling=model.default_sampling,
        )
    )
    return "".join(record.text for record in records)


def ask(model: Model, command: str) -> dict[str, object]:
    values = json.loads(write(model, command))
    assert isinstance(values, dict)
    return values


def test_float_is_exact(exact_float: float) -> None:
    assert exact_float >= FLOAT


@pytest.mark.parametrize("form", WITHIN)
def test_a_format_loses_little(form: str, exact_float: float, tmp_path: Path) -> None:
    assert exact_share(tmp_path, form) >= exact_float - WITHIN[form]


def test_the_bundle_is_exact(pocket: Model, exact_float: float) -> None:
    answers = answer_all(pocket, held_out_set(EXAMPLES), lambda count: None)
    assert share(answers) >= exact_float - 0.01
    assert set(by_action(answers)) == set(ACTIONS)


def test_the_reference_gives_the_same_actions(pocket: Model) -> None:
    model = edge.load(FOLDER, target="ref")
    for example in held_out_set(24):
        prompt = model.tokenizer.encode_chat(render(example.command))
        action = model.tokenizer.encode_chat(example.action + EOS)
        best = model.logits([*prompt, *action[:-1]])[len(prompt) - 1 :].argmax(axis=-1)
        assert (best == action).all() == is_exact(pocket, example)


@pytest.fixture(scope="module")
def npu_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed bundle's weights with graphs for an NPU, calibrated on commands."""
    pytest.importorskip("onnxruntime", reason="the NPU extra is not installed")
    pytest.importorskip("onnx", reason="NPU graphs are made with onnx, which is not installed")
    from converter.convert import convert
    from converter.npu import plan_npu

    folder = tmp_path_factory.mktemp("npu")
    commands = itertools.islice(examples(2, "train"), 40)
    (folder / "commands.txt").write_text("\n".join(render(e.command) + e.action for e in commands))
    plan = plan_npu(["npu:ort"], CHUNK, text=folder / "commands.txt")
    convert(CHECKPOINT, folder / "npu.lutra", weights="w4g64", chunk=CHUNK, npu=plan)
    return folder / "npu.lutra"


def test_prompts_on_an_npu_give_the_same_actions(pocket: Model, npu_bundle: Path) -> None:
    model = edge.load(npu_bundle, prefill="npu:ort", decode="cpu")
    chosen = held_out_set(96)
    here, there = (answer_all(m, chosen, lambda count: None) for m in (pocket, model))
    assert share(there) >= share(here) - 0.03


def test_decoding_on_hexagon_gives_the_same_actions(pocket: Model) -> None:
    require_emulator()
    model = edge.load(FOLDER, target="npu:hvx-v67")
    for example in held_out_set(12):
        assert is_exact(model, example) == is_exact(pocket, example)


def test_exact_is_what_greedy_decoding_writes(pocket: Model) -> None:
    for example in held_out_set(24):
        written = write(pocket, example.command)
        assert (written == example.action) == is_exact(pocket, example)


def test_pocket_answers_in_capitals_and_with_a_name_never_seen(pocket: Model) -> None:
    alarm = ask(pocket, "Wake me at half past six on weekdays")
    assert alarm == {"action": "set_alarm", "time": "06:30", "repeat": "weekdays"}
    assert ask(pocket, "call Zubrelin") == {"action": "call", "to": "zubrelin"}
    assert ask(pocket, "write a poem about the sea")["action"] == "refuse"


def test_prompts_are_those_of_the_chat_template(pocket: Model) -> None:
    messages = [Message("user", " Call Anna "), Message("assistant", "x"), Message("user", "Stop")]
    assert encode_chat(pocket, messages) == pocket.encode_chat(messages)


def test_the_bundle_is_whole(lutra: Lutra) -> None:
    assert lutra("verify", "pocket", "--json").json["ok"]


def test_the_name_is_a_path_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_bundle("pocket") == FOLDER
    assert find_bundle("other.lutra") == Path("other.lutra")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()
    assert find_bundle("pocket") == Path("pocket")


def test_run_prints_the_action_alone(lutra: Lutra) -> None:
    ran = lutra("run", "pocket", "-p", "set a timer for ten minutes", "--quiet")
    assert json.loads(ran.out) == {"action": "set_timer", "duration": "10m"}


def test_chat_is_with_pocket(lutra: Lutra, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("call anna\nstop the music\n"))
    said = lutra("chat", "--json").json["messages"]
    assert [json.loads(said[i]["content"])["action"] for i in (1, 3)] == ["call", "pause_music"]


def test_eval_counts(lutra: Lutra) -> None:
    values = lutra("eval", "pocket", "--exact-match", "--commands", "48", "--json").json
    assert values["exact_match"] >= FLOAT - 0.1
    assert values["commands"] == 48
    assert values["measure"] == "measured"
    assert len(values["wrong"]) == round((1 - values["exact_match"]) * 48)


def test_eval_refuses_another_model(lutra: Lutra, bundle: Path) -> None:
    ran = lutra("eval", bundle, "--exact-match", "--json")
    assert ran.code == UsageError.exit_code
    assert "not pocket's" in ran.err


def test_eval_wants_a_text(lutra: Lutra, bundle: Path) -> None:
    assert "--exact-match" in lutra("eval", bundle).err
