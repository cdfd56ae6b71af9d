"""What a checkpoint says about text, against AutoTokenizer of Transformers.

data/tokenizer.json holds Transformers' results; data/make_tokenizer.py made it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.sources.huggingface import open_checkpoint
from converter.sources.tokenizer import (
    TokenizerFiles,
    read_record,
    read_tokenizer,
    read_vocabulary,
    self_contained,
    special_tokens,
)
from edge.errors import SourceNotFound, TruncatedSource
from edge.tokenizer import Tokenizer
from tests.checkpoints import make_checkpoint

pytest.importorskip("tokenizers")

GOLDEN = json.loads((Path(__file__).parent / "data" / "tokenizer.json").read_text(encoding="utf-8"))


def files(**parts: Any) -> TokenizerFiles:
    empty: dict[str, Any] = {"model": {}, "generation": {}, "config": {}, "tokenizer": {}}
    return TokenizerFiles(**(empty | parts))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_ids_and_text_are_those_of_transformers(case: dict[str, Any]) -> None:
    model = {"model_type": case["model_type"]}
    whole = self_contained(files(model=model, config=case["config"], tokenizer=case["tokenizer"]))
    tokenizer = Tokenizer(json.dumps(whole).encode())
    expected = case["expected"]
    assert tokenizer.encode(GOLDEN["text"]) == expected["ids"]
    assert tokenizer.encode_chat(GOLDEN["text"]) == expected["plain_ids"]
    assert tokenizer.decode(expected["ids"]) == expected["decoded"]


def test_the_cases_are_decided_by_more_than_tokenizer_json() -> None:
    """Else the test above would hold for a function that returns its input."""
    differ = [
        case["name"]
        for case in GOLDEN["cases"]
        if Tokenizer(json.dumps(case["tokenizer"]).encode()).encode(GOLDEN["text"])
        != case["expected"]["ids"]
    ]
    assert {"llama", "llama legacy", "declared alone", "more specials"} <= set(differ)
    assert not {"file alone", "byte level", "llama class in phi3"} & set(differ)


def test_what_the_config_does_not_change_stays_as_it_is() -> None:
    case = GOLDEN["cases"][0]
    assert case["name"] == "file alone"
    given = files(model={"model_type": "llama"}, config=case["config"], tokenizer=case["tokenizer"])
    assert self_contained(given) == case["tokenizer"]


def test_a_token_of_the_vocabulary_keeps_its_id() -> None:
    config = {"added_tokens_decoder": {"99": {"content": "a"}, "9": {"content": "new"}}}
    whole = self_contained(files(config=config, tokenizer=TOKENS))
    ids = {token["content"]: token["id"] for token in whole["added_tokens"]}
    assert ids == {"a": 0, "<s>": 2, "<end>": 7, "new": 9}


TOKENS = {
    "model": {"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []},
    "added_tokens": [{"id": 2, "content": "<s>"}, {"id": 7, "content": "<end>"}],
}


def test_ends_are_all_that_any_file_names() -> None:
    record = read_record(
        files(
            tokenizer=TOKENS,
            generation={"eos_token_id": [7, 9]},
            model={"eos_token_id": 9, "bos_token_id": 4},
            config={"eos_token": {"__type": "AddedToken", "content": "</s>"}},
        )
    )
    assert record.eos_ids == (7, 9, 1)
    assert record.bos_id == 4


@pytest.mark.parametrize(
    ("generation", "model", "config", "eos_ids", "bos_id"),
    [
        ({}, {}, {}, (), None),
        ({"eos_token_id": 7}, {}, {}, (7,), None),
        ({"eos_token_id": None}, {"eos_token_id": [9]}, {}, (9,), None),
        ({"eos_token_id": -1}, {"eos_token_id": 3}, {"eos_token": "not there"}, (3,), None),
        ({}, {}, {"eos_token": "<end>", "bos_token": "<s>"}, (7,), 2),
        ({"bos_token_id": 5}, {"bos_token_id": 6}, {"bos_token": None}, (), 5),
        ({"bos_token_id": 5}, {}, {"bos_token": "<s>"}, (), 2),
    ],
)
def test_begin_and_ends(
    generation: dict[str, Any],
    model: dict[str, Any],
    config: dict[str, Any],
    eos_ids: tuple[int, ...],
    bos_id: int | None,
) -> None:
    record = read_record(files(tokenizer=TOKENS, generation=generation, model=model, config=config))
    assert (record.eos_ids, record.bos_id) == (eos_ids, bos_id)


@pytest.mark.parametrize("value", ["2", [2, "3"], 1.5, True, {"id": 2}])
def test_an_end_that_is_no_id(value: object) -> None:
    with pytest.raises(TruncatedSource, match="eos_token_id is "):
        read_record(files(generation={"eos_token_id": value}))


def test_special_tokens_are_those_with_text() -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "pad_token": None,
        "image_token": "<image>",
        "add_bos_token": True,
        "chat_template": "x",
    }
    expected = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
    assert special_tokens(config) == expected
    assert read_record(files(config=config)).special_tokens == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("one", "one"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "only", "template": "o"}], "o"),
        ({"default": "d", "rag": "r"}, "d"),
        ({"tool_use": "t", "rag": "r"}, None),
        ([], None),
    ],
)
def test_forms_of_the_chat_template(value: object, expected: str | None) -> None:
    assert read_record(files(config={"chat_template": value})).chat_template == expected


@pytest.mark.parametrize(
    "value",
    [
        5,
        True,
        [5],
        ["a"],
        [{}],
        [{"name": [1], "template": "x"}],
        [{"name": "default", "template": None}],
        {"a": 1},
        {"default": "d", "rag": ["r"]},
    ],
    ids=str,
)
def test_a_chat_template_of_another_form(value: object) -> None:
    with pytest.raises(TruncatedSource, match=r"tokenizer_config\.json: chat_template (is|holds) "):
        read_record(files(config={"chat_template": value}))


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("value", [5, "<s>", [5], [None], {"image": 5}, [{"content": 5}]], ids=str)
def test_special_tokens_of_another_form(key: str, value: object) -> None:
    with pytest.raises(TruncatedSource, match=f"tokenizer_config.json: {key} (is|holds) "):
        self_contained(files(config={key: value}, tokenizer=TOKENS))


def test_the_template_file_overrules_the_config() -> None:
    record = read_record(files(config={"chat_template": "old"}, template="new"))
    assert record.chat_template == "new"


def test_vocabulary_of_each_form() -> None:
    assert read_vocabulary({}) == {}
    assert read_vocabulary(TOKENS) == {"a": 0, "</s>": 1, "<s>": 2, "<end>": 7}
    unigram = {"model": {"vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": []}
    assert read_vocabulary(unigram) == {"<unk>": 0, "a": 1}


# Checkpoints on disk.


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def write(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def test_reads_a_checkpoint(checkpoint: Path) -> None:
    record, content = read_tokenizer(open_checkpoint(checkpoint))
    assert content is not None
    tokenizer = Tokenizer(content)
    assert tokenizer.decode(tokenizer.encode("Hello, world")) == "Hello, world"
    assert record.eos_ids == (0, 2)


def test_an_unchanged_file_is_taken_byte_for_byte(stories: Path) -> None:
    record, content = read_tokenizer(open_checkpoint(stories))
    assert content == (stories / "tokenizer.json").read_bytes()
    assert record.bos_id == 1
    assert record.eos_ids == (2,)
    assert record.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert record.chat_template is None


def test_a_checkpoint_without_a_tokenizer(checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    record, content = read_tokenizer(open_checkpoint(checkpoint))
    assert content is None
    assert record.eos_ids == (0, 2)


def test_special_tokens_map_counts_without_declared_tokens(checkpoint: Path) -> None:
    write(checkpoint, "tokenizer_config.json", {"eos_token": "a"})
    write(checkpoint, "special_tokens_map.json", {"eos_token": {"content": "b"}})
    assert read_tokenizer(open_checkpoint(checkpoint))[0].special_tokens == {"eos_token": "b"}
    write(checkpoint, "tokenizer_config.json", {"eos_token": "a", "added_tokens_decoder": {}})
    assert read_tokenizer(open_checkpoint(checkpoint))[0].special_tokens == {"eos_token": "a"}


def test_reads_the_template_file(checkpoint: Path) -> None:
    write(checkpoint, "chat_template.jinja", "{{ messages[0].content }} café")
    record, _ = read_tokenizer(open_checkpoint(checkpoint))
    assert record.chat_template == "{{ messages[0].content }} café"


def cut(folder: Path) -> None:
    write(folder, "tokenizer.json", (folder / "tokenizer.json").read_text()[:900])


def array(folder: Path) -> None:
    write(folder, "tokenizer.json", [])


def empty(folder: Path) -> None:
    write(folder, "tokenizer.json", {})


def text_ids(folder: Path) -> None:
    write(folder, "tokenizer.json", {"model": {"vocab": {"a": "0"}}, "added_tokens": []})


def no_vocabulary(folder: Path) -> None:
    write(folder, "tokenizer.json", {"model": {}, "added_tokens": []})


def wrong_tokens(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    write(folder, "tokenizer.json", whole | {"added_tokens": ["<s>"]})


def wrong_model(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    write(folder, "tokenizer.json", whole | {"pre_tokenizer": {"type": "Unheard"}})


def wrong_declared(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}})


def wrong_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut, "tokenizer.json"),
        (array, "tokenizer.json"),
        (empty, "tokenizer.json: an empty object"),
        (text_ids, "tokenizer.json: the id of token 'a' is '0'"),
        (no_vocabulary, "tokenizer.json"),
        (wrong_tokens, "tokenizer.json"),
        (wrong_model, "tokenizer.json"),
        (wrong_declared, "tokenizer_config.json"),
        (wrong_template, "chat_template.jinja"),
    ],
)
def test_damaged_files_are_named(
    checkpoint: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(checkpoint)
    with pytest.raises(TruncatedSource, match=named):
        read_tokenizer(open_checkpoint(checkpoint))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [pipe, broken_link, Path.mkdir])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_file_that_is_there_and_cannot_be_read(
    checkpoint: Path, make: Callable[[Path], None], name: str
) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    make(checkpoint / name)
    with pytest.raises(SourceNotFound, match=f"{name}: no file that can be read"):
        read_tokenizer(open_checkpoint(checkpoint))


def test_a_file_without_permission(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(checkpoint)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SourceNotFound, match=r"tokenizer_config\.json: Permission denied"):
        read_tokenizer(opened)
