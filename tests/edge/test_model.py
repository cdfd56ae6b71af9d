from __future__ import annotations

import sys
from dataclasses import fields
from itertools import islice
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import edge
from converter.convert import convert
from edge.errors import (
    BadTemplate,
    BadTokens,
    MissingDependency,
    PromptTooLong,
    UnknownTarget,
    UsageError,
)
from edge.manifest import GenerationDefaults
from edge.model import DEFAULT_SAMPLING, Model, Session, with_defaults
from edge.reference import WeightCache, memory_budget
from edge.sampler import Sampling
from tests.checkpoints import make_checkpoint

GREEDY = Sampling.greedy()
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    convert(make_checkpoint(folder / "tiny"), folder / "m.lutra", weights="f32")
    return folder / "m.lutra"


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return edge.load(path, target="ref")


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_logits_are_float32_rows_of_the_vocabulary(model: Model) -> None:
    logits = model.logits(PROMPT)
    assert logits.dtype == np.float32
    assert logits.shape == (len(PROMPT), 300)


def test_chunks_single_tokens_and_the_whole_agree(model: Model) -> None:
    whole = model.logits(PROMPT)
    for size in (1, 7, 16):
        cache = model.session().cache
        pieces = [
            edge.generate.prefill(model.program, cache, PROMPT[i : i + size], all_logits=True)
            for i in range(0, len(PROMPT), size)
        ]
        assert relative(np.concatenate(pieces), whole) < 1e-5


def test_a_long_run_of_single_steps_stays_with_the_whole(model: Model) -> None:
    ids = np.random.default_rng(0).integers(0, 300, 64)
    cache = model.session().cache
    steps = [edge.generate.prefill(model.program, cache, [i]) for i in ids]
    assert relative(np.concatenate(steps), model.logits(ids)) < 1e-5


def test_generating_is_drawing_from_the_logits(model: Model) -> None:
    records = list(model.stream(PROMPT, max_tokens=5, sampling=GREEDY))
    ids = list(PROMPT)
    for record in records:
        assert record.token == model.logits(ids)[-1].argmax()
        ids.append(record.token)
    assert records[-1].finish_reason == "length"


def test_a_seed_makes_the_same_text(model: Model) -> None:
    sampling = Sampling(temperature=1.0, seed=7)
    first = model.generate(PROMPT, max_tokens=20, sampling=sampling)
    assert first == model.generate(PROMPT, max_tokens=20, sampling=sampling)
    assert first != model.generate(PROMPT, max_tokens=20, sampling=Sampling(seed=8))


def test_a_session_runs_only_what_is_new(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session()
    drawn = [r.token for r in model.stream(PROMPT, max_tokens=4, sampling=GREEDY, session=session)]
    counts: list[int] = []
    run = type(model.program).run

    def counting(self, tokens, count, cache, logit_rows):  # type: ignore[no-untyped-def]
        counts.append(count)
        return run(self, tokens, count, cache, logit_rows)

    monkeypatch.setattr(type(model.program), "run", counting)
    longer = [*PROMPT, *drawn[:3], 42]
    again = list(model.stream(longer, max_tokens=2, sampling=GREEDY, session=session))
    assert counts[0] == 1  # the 42; the rest is held
    monkeypatch.undo()
    fresh = list(model.stream(longer, max_tokens=2, sampling=GREEDY))
    assert [r.token for r in again] == [r.token for r in fresh]
    changed = [PROMPT[0], 77, *PROMPT[2:]]
    once = [r.token for r in model.stream(changed, max_tokens=3, sampling=GREEDY, session=session)]
    assert once == [r.token for r in model.stream(changed, max_tokens=3, sampling=GREEDY)]


def test_a_second_stream_on_a_session_ends_the_first(model: Model) -> None:
    session = model.session()
    first = model.stream(PROMPT, sampling=GREEDY, session=session)
    next(first)
    second = model.stream([1, 2, 3], max_tokens=5, sampling=GREEDY, session=session)
    begun = [next(second).token]
    with pytest.raises(UsageError, match="ended this one; finish a stream before the next"):
        next(first)
    drawn = begun + [record.token for record in second]
    fresh = model.stream([1, 2, 3], max_tokens=5, sampling=GREEDY)
    assert drawn == [record.token for record in fresh]


def test_a_prompt_that_is_refused_ends_the_stream_before_it_too(model: Model) -> None:
    session = model.session()
    first = model.stream(PROMPT, sampling=GREEDY, session=session)
    next(first)
    with pytest.raises(PromptTooLong):
        model.stream([1] * 65, session=session)
    with pytest.raises(UsageError, match="another stream"):
        next(first)


def test_a_session_belongs_to_its_model(path: Path, model: Model) -> None:
    other = edge.load(path, target="ref")
    with pytest.raises(UsageError, match="another model's; make one with"):
        model.stream(PROMPT, session=other.session())
    own = Session(model.session().cache)  # made by hand: the caller knows
    assert len(list(model.stream(PROMPT, max_tokens=2, sampling=GREEDY, session=own))) == 2


def test_the_rate_of_a_prefill_counts_what_was_run(model: Model) -> None:
    session = model.session()
    (first,) = model.stream(PROMPT, max_tokens=1, sampling=GREEDY, session=session)
    assert (first.prompt_tokens, first.reused_tokens) == (20, 0)
    (second,) = model.stream([*PROMPT, 1, 2], max_tokens=1, sampling=GREEDY, session=session)
    assert (second.prompt_tokens, second.reused_tokens) == (22, 20)
    assert second.prefill_tok_s == pytest.approx(2 / second.prefill_s)


@settings(max_examples=20)
@given(st.data())
def test_a_session_never_drifts_from_a_fresh_start(model: Model, data: st.DataObject) -> None:
    """Prompts that go on, go back or start again; ends by length, stop string, context, or early.

    Errors leave the session usable.
    """
    session = model.session()
    tokens = st.lists(st.integers(3, 299), min_size=1, max_size=30)
    for _ in range(4):
        kept = data.draw(st.integers(0, len(session.tokens)))
        prompt = session.tokens[:kept] + data.draw(tokens)
        sampling = Sampling(temperature=1.2, repetition_penalty=1.1, seed=data.draw(st.integers(0)))
        stop = data.draw(st.sampled_from([(), ("e",), ("a", "of")]))
        limit = data.draw(st.sampled_from([1, 3, None]))
        steps = data.draw(st.sampled_from([1, 2, None]))

        def run(
            held: edge.Session | None,
            prompt: list[int] = prompt,
            sampling: Sampling = sampling,
            stop: tuple[str, ...] = stop,
            limit: int | None = limit,
            steps: int | None = steps,
        ) -> list[tuple[str, int | None, str | None]] | str:
            try:
                records = model.stream(
                    prompt, max_tokens=limit, sampling=sampling, stop=stop, session=held
                )
            except PromptTooLong as error:
                return error.what
            return [(r.text, r.token, r.finish_reason) for r in islice(records, steps)]

        found, expected = run(session), run(None)
        if isinstance(found, str):  # its counts are of what was to be run
            assert isinstance(expected, str)
        else:
            assert found == expected
        assert session.cache.length <= len(session.tokens)


def test_f16_cache_is_close_and_not_the_same(path: Path, model: Model) -> None:
    half = edge.load(path, target="ref", cache_format="f16").logits(PROMPT)
    assert 0 < relative(half, model.logits(PROMPT)) < 1e-2


def test_bad_tokens(model: Model) -> None:
    for ids, message in [
        ([300], "token id 300"),
        ([-1], "token id -1"),
        ([], "no tokens"),
        ([[1]], "shape"),
        ([[1], [1, 2]], "whole numbers"),
        ([1.5], "float64"),
    ]:
        with pytest.raises(BadTokens, match=message):
            model.logits(ids)  # type: ignore[arg-type]


def test_prompts_longer_than_the_context(path: Path, model: Model) -> None:
    with pytest.raises(PromptTooLong, match="65 tokens, the context holds 64"):
        model.logits([1] * 65)
    with pytest.raises(PromptTooLong, match="65 tokens"):
        model.stream([1] * 65)
    small = edge.load(path, context=8)
    with pytest.raises(PromptTooLong, match="the context holds 8"):
        small.generate([1] * 9)
    assert len(list(small.stream([1] * 6, sampling=GREEDY))) == 4  # 3 tokens, then "context"


def test_wrong_settings(path: Path, model: Model) -> None:
    with pytest.raises(UsageError, match=r"context 65, .* up to 64"):
        edge.load(path, context=65)
    with pytest.raises(UsageError, match="max_tokens is 0"):
        model.stream(PROMPT, max_tokens=0)
    with pytest.raises(UsageError, match="stop strings 'END'; give a list"):
        model.stream(PROMPT, stop="END")
    with pytest.raises(UsageError, match="KV cache format 'f8'"):
        edge.load(path, cache_format="f8")  # type: ignore[arg-type]
    for wrong in ({"context": 5.5}, {"threads": 1.5}):
        with pytest.raises(UsageError, match=r"\.5"):
            edge.load(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"max_tokens is 2\.5"):
        model.stream(PROMPT, max_tokens=2.5)  # type: ignore[arg-type]
    with pytest.raises(UnknownTarget, match="npu:hvx-v73 is a phone's"):
        edge.load(path, target="npu:hvx-v73")


def test_text_goes_in_and_out(model: Model) -> None:
    text = model.generate("hello", max_tokens=8, sampling=GREEDY)
    ids = [r.token for r in model.stream("hello", max_tokens=8, sampling=GREEDY)]
    assert text == model.tokenizer.decode([i for i in ids if i is not None])


def test_a_base_model_has_no_chat_template(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (source / name).unlink(missing_ok=True)
    convert(source, tmp_path / "m.lutra")
    with pytest.raises(BadTemplate, match="base model"):
        edge.load(tmp_path / "m.lutra").encode_chat([edge.Message("user", "hello")])


def test_a_checkpoint_without_a_tokenizer_runs_on_ids(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny")
    (source / "tokenizer.json").unlink()
    convert(source, tmp_path / "m.lutra")
    model = edge.load(tmp_path / "m.lutra")
    assert model.logits([1, 2]).shape == (2, 300)
    records = list(model.stream([1, 2], max_tokens=3, sampling=GREEDY))
    assert [r.text for r in records] == ["", "", ""]
    assert all(r.token is not None for r in records)
    with pytest.raises(BadTokens, match="has no tokenizer"):
        model.generate("hello")
    with pytest.raises(UsageError, match="stop strings need text"):
        model.stream([1, 2], stop=["x"])


def test_without_the_tokenizers_package_ids_still_run(
    model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    bare = edge.load(path, target="ref")
    ids = [r.token for r in bare.stream(PROMPT, max_tokens=3, sampling=GREEDY)]
    assert ids == [r.token for r in model.stream(PROMPT, max_tokens=3, sampling=GREEDY)]
    with pytest.raises(MissingDependency, match="pip install tokenizers"):
        bare.encode("hello")


def test_the_checkpoints_sampling_defaults_are_used() -> None:
    base = Sampling(temperature=0.8, top_p=0.95)
    defaults = GenerationDefaults(temperature=0.3, top_k=20)
    assert with_defaults(base, defaults) == Sampling(temperature=0.3, top_k=20)
    assert with_defaults(base, GenerationDefaults()) == base


def test_what_the_checkpoint_leaves_out_is_transformers_default() -> None:
    theirs = Sampling(temperature=1.0, top_k=50, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    for field in fields(GenerationDefaults):
        value = {field.name: getattr(theirs, field.name)}
        found = with_defaults(DEFAULT_SAMPLING, GenerationDefaults(**value))
        assert found == theirs


def test_weights_over_the_memory_budget_are_dequantized_each_time(model: Model) -> None:
    cache = WeightCache(model.bundle, budget_bytes=0)
    assert cache.dense("layers.0.q") is not cache.dense("layers.0.q")
    assert np.array_equal(cache.dense("layers.0.q"), WeightCache(model.bundle).dense("layers.0.q"))
    kept = WeightCache(model.bundle, budget_bytes=1 << 20)
    assert kept.dense("layers.0.q") is kept.dense("layers.0.q")


def test_memory_that_the_system_does_not_tell_is_2_gib(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert memory_budget(meminfo) == 2 << 30
    for text in (b"", b"MemFree: 1 kB\n", b"MemAvailable:\n", b"MemAvailable: x kB\n", b"\xff:"):
        meminfo.write_bytes(text)
        assert memory_budget(meminfo) == 2 << 30
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    assert memory_budget(meminfo) == 4096
    assert memory_budget(tmp_path) == 2 << 30  # exists, and cannot be read


def test_a_trained_model_tells_its_story(stories: Path, tmp_path: Path) -> None:
    expected = (
        ", there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
    for form in ("f32", "w8gc"):
        convert(stories, tmp_path / form, weights=form)
        model = edge.load(tmp_path / form, target="ref")
        text = model.generate("Once upon a time", max_tokens=40, sampling=GREEDY)
        assert text.startswith(expected)
