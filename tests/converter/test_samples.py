from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.calibrate import FloatTensors, Walk
from converter.convert import prepare
from converter.models.builder import Model
from converter.plan import Formats
from converter.samples import (
    DEFAULT_TEXT,
    _Lockstep,
    choose_samples,
    draw_samples,
    read_text,
)
from edge.errors import BadTokens, UsageError
from tests.checkpoints import make_checkpoint


def open_tiny(folder: Path, **changes: object) -> tuple[Model, FloatTensors]:
    job = prepare(make_checkpoint(folder, **changes), Formats.parse("f32"))
    return job.model, FloatTensors(job.weights)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "model_type": "gemma2",
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "head_dim": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "tie_word_embeddings": True,
        },
    ],
)
def test_sequences_in_lockstep_are_what_each_is_alone(
    changes: dict[str, object], tmp_path: Path
) -> None:
    model, tensors = open_tiny(tmp_path / "tiny", **changes)
    tokens = np.random.default_rng(0).integers(0, 300, (3, 20)).astype(np.int32)
    lockstep = _Lockstep(model.graph, tensors, 3, 20)
    together = np.stack([lockstep.run(tokens[:, i], i) for i in range(20)], axis=1)
    walk = Walk(model.graph, tensors, list(tokens))
    alone = [list(walk), walk.value(model.graph.last.out)][1]
    assert together.reshape(60, -1) == pytest.approx(alone, abs=1e-5)


def test_what_is_drawn_follows_the_seed(tmp_path: Path) -> None:
    model, tensors = open_tiny(tmp_path / "tiny")
    first, again = (draw_samples(model.graph, tensors, 1, 30, 2) for _ in range(2))
    other = draw_samples(model.graph, tensors, 1, 30, 2, seed=1)
    assert first.digest == again.digest != other.digest
    assert first.count == 60
    assert [sequence[0] for sequence in first.sequences] == [1, 1]
    assert len(set(first.sequences[0])) > 5


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    job = prepare(make_checkpoint(tmp_path / "tiny"), Formats.parse("f32"))
    with pytest.raises(BadTokens, match="token id 300 of bos_token_id, the vocabulary has 300"):
        choose_samples(job.model, job.weights, 300, None)
    large = (tmp_path / "tiny" / "tokenizer.json").read_bytes()
    small = make_checkpoint(tmp_path / "small", vocab_size=60)
    job = prepare(small, Formats.parse("f32"))
    with pytest.raises(BadTokens, match=r"of tokenizer\.json, the vocabulary has 60"):
        choose_samples(job.model, job.weights, None, large)


@pytest.fixture
def tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<s>"])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    return made.to_str().encode()


def test_a_text_is_cut_into_sequences(tokenizer: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcdefghij" * 5)
    samples = read_text(tmp_path / "t.txt", tokenizer, 11, 45)
    assert [len(sequence) for sequence in samples.sequences] == [11, 11, 11, 11, 6]
    assert {int(sequence[0]) for sequence in samples.sequences} == {256}
    assert samples.sequences[0][1:].tolist() == samples.sequences[1][1:].tolist()


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"too short"])
def test_a_text_that_is_none_is_refused(
    content: bytes | None, tokenizer: bytes, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"t\.txt"):
        read_text(tmp_path / "t.txt", tokenizer, 64, 1000)


def test_the_shipped_text_is_there(tokenizer: bytes) -> None:
    assert read_text(DEFAULT_TEXT, tokenizer, 256, 8192).count > 8192
