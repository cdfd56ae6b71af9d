"""A loaded model: what Python programs and the command line talk to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from edge.backend import (
    PROMPT_BACKENDS,
    Choice,
    Program,
    WholeProgram,
    backend_for,
    choose_prompt_target,
    prompt_backend_for,
    target_for,
)
from edge.bundle import Bundle
from edge.errors import BadTemplate, BadTokens, MissingDependency, UsageError
from edge.generate import (
    Ending,
    Record,
    join_text,
    prefill,
    stream_records,
    stream_tokens,
)
from edge.kvcache import CacheFormat, KVCache, default_format
from edge.manifest import TOKENIZER, GenerationDefaults
from edge.pair import Pair
from edge.sampler import Sampler, Sampling
from edge.target import Target
from edge.text import TextStream
from edge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edge.schedule import Timeline
    from edge.template import ChatTemplate, Message

# Where neither the user nor the checkpoint says anything.
DEFAULT_SAMPLING = Sampling(temperature=0.8, top_p=0.95)

# What a checkpoint that sets some values means by those that it leaves out.
TRANSFORMERS_SAMPLING = Sampling(temperature=1.0, top_k=50)


class LesserTarget(UserWarning):
    """A model runs on less than the target that was asked for."""


@dataclass
class Session:
    """A conversation in progress: its cache, and the tokens that were run or drawn.

    What a new prompt shares with it is not run again. `model` is the one that may use it; `turn`
    counts the prompts.
    """

    cache: KVCache
    tokens: list[int] = field(default_factory=list)
    model: Model | None = field(default=None, repr=False)
    turn: int = 0

    def reuse(self, prompt: Sequence[int]) -> None:
        """Make `prompt` the session's tokens, keeping what the cache holds of its beginning.

        At least the last token is run again, since its logits are what comes next. A stream of an
        earlier prompt cannot go on.
        """
        self.turn += 1
        held = self.tokens[: self.cache.length]
        shared = 0
        while shared < min(len(held), len(prompt) - 1) and held[shared] == prompt[shared]:
            shared += 1
        self.cache.rewind(shared)
        self.tokens = list(prompt)

    def guard(self, drawn: Iterator[int]) -> Iterator[int]:
        """`drawn` for as long as the prompt is this one; then its next step raises UsageError."""
        return self._steps(drawn, self.turn)

    def _steps(self, drawn: Iterator[int], turn: int) -> Iterator[int]:
        while True:
            if self.turn != turn:
                raise UsageError(
                    "another stream was started on this session, which ended this one",
                    "finish a stream before the next, or give each a session of its own",
                )
            token = next(drawn, None)
            if token is None:
                return
            yield token


class Model:
    """A bundle loaded on a target. Make one with `edge.load`."""

    def __init__(
        self,
        bundle: Bundle,
        program: Program,
        context: int,
        cache_format: CacheFormat,
        note: str = "",
    ) -> None:
        self.bundle = bundle
        self.program = program
        self.context = context
        self.cache_format = cache_format
        # why it runs on less than what was asked for
        self.note = note

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Logits float32 [tokens, vocabulary] after each of the tokens, from an empty context.

        Raises BadTokens for ids outside the vocabulary, PromptTooLong for more than the context.
        """
        ids = self._checked(token_ids)
        return prefill(self.program, self.session().cache, ids, all_logits=True)

    def session(self) -> Session:
        """An empty conversation."""
        cache = KVCache(self.bundle.graph.caches, self.context, self.cache_format)
        return Session(cache, model=self)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        session: Session | None = None,
    ) -> Iterator[Record]:
        """Continue `prompt`, text or token ids, one record a token.

        Without `sampling`, `default_sampling`. Without a tokenizer, records have tokens and no
        text. Ends at an end token, a stop string, `max_tokens`, or a full context; the last record
        says which. A session takes one stream at a time: the next one ends the one before. Raises
        PromptTooLong, BadTokens, or UsageError for `max_tokens`, stop strings or a session that
        make no sense.
        """
        if max_tokens is not None and not _is_count(max_tokens):
            raise UsageError(f"max_tokens is {max_tokens!r}", "use 1 or more")
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        tokens = [int(token) for token in self._checked(ids)]
        session = session or self.session()
        if session.model not in (None, self):
            raise UsageError(
                "the session is another model's", "make one with this model's session()"
            )
        session.reuse(tokens)
        reused = session.cache.length
        session.cache.require(len(tokens) - reused)
        sampler = Sampler(sampling or self.default_sampling)
        ending = Ending(self._eos_ids, stop, max_tokens)
        drawn = stream_tokens(self.program, session.cache, session.tokens, sampler)
        text = TextStream(self._decoder(ending), tokens)
        return stream_records(session.guard(drawn), len(tokens), text, ending, reused_tokens=reused)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """The continuation of `prompt` as one string; see `stream`."""
        return join_text(self.stream(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop))

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the model expects around it."""
        return self.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers. Raises BadTemplate."""
        return self.tokenizer.encode_chat(self.chat_template.render(messages))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer. Raises BadTokens where it has none, or MissingDependency."""
        content = self.bundle.tokenizer_json
        if content is None:
            raise BadTokens(
                f"{self.bundle.folder} has no tokenizer: its checkpoint had no tokenizer.json",
                "give token ids, or add tokenizer.json to the checkpoint and convert again",
            )
        return Tokenizer(content, self.bundle.folder / TOKENIZER)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The bundle's chat template. Raises BadTemplate where it has none."""
        record = self.bundle.manifest.tokenizer
        if record.chat_template is None:
            raise BadTemplate(
                f"{self.bundle.folder} has no chat template: it is a base model",
                "use lutra run with a plain prompt",
            )
        from edge.template import ChatTemplate  # base models and token ids do without

        return ChatTemplate(record.chat_template, record.special_tokens)

    @cached_property
    def default_sampling(self) -> Sampling:
        """What the checkpoint's authors set, or DEFAULT_SAMPLING where they set nothing."""
        return with_defaults(DEFAULT_SAMPLING, self.bundle.manifest.generation)

    @property
    def place(self) -> str:
        """What it runs on, in words."""
        return self.program.place if isinstance(self.program, Pair) else str(self.program.target)

    @property
    def prefill_emulated(self) -> bool:
        """Whether prompts run in emulation, so that their rate means nothing."""
        return isinstance(self.program, Pair) and self.program.prompt.emulated

    @property
    def decode_emulated(self) -> bool:
        """Whether decoding runs in emulation, so that its rate means nothing."""
        if isinstance(self.program, Pair):
            return self.program.decode_emulated
        return self.program.target.emulated

    @property
    def emulated(self) -> bool:
        """Whether any of it runs in emulation."""
        return self.prefill_emulated or self.decode_emulated

    @property
    def prefill_timeline(self) -> Timeline | None:
        """When the jobs of the last prompt ran on the NPU and beside it; None without an NPU."""
        return self.program.prompt.timeline if isinstance(self.program, Pair) else None

    @property
    def _eos_ids(self) -> frozenset[int]:
        return frozenset(self.bundle.manifest.tokenizer.eos_ids)

    def _decoder(self, ending: Ending) -> Callable[[list[int]], str]:
        """What turns ids into text; where there is no tokenizer, tokens go without text."""
        try:
            return self.tokenizer.decode
        except (BadTokens, MissingDependency) as error:
            if ending.stop:
                raise UsageError(f"stop strings need text: {error.what}", error.cure) from error
            return _no_text

    def _checked(self, token_ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int32]:
        try:
            ids = np.asarray(token_ids)
        except ValueError as error:
            raise BadTokens(f"token ids: {error}", "give a list of whole numbers") from error
        vocabulary = self.bundle.graph.vocabulary
        if not ids.size:
            raise BadTokens("no tokens", "give a prompt, or token ids")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise BadTokens(
                f"token ids of shape {list(ids.shape)}, {ids.dtype}", "give a list of whole numbers"
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise BadTokens(
                f"token id {bad}, the vocabulary has {vocabulary}",
                "check that the tokens were made by this model's tokenizer",
            )
        return ids.astype(np.int32)


def _is_count(value: object) -> bool:
    """Whether it is a whole number from 1 on. A fraction would be taken, and mean nothing."""
    return isinstance(value, Integral) and int(value) >= 1


def _no_text(ids: list[int]) -> str:
    del ids
    return ""


def load(
    path: str | Path,
    *,
    target: str = "auto",
    prefill: str = "auto",
    decode: str | None = None,
    context: int | None = None,
    cache_format: CacheFormat | None = None,
    threads: int | None = None,
) -> Model:
    """Open a bundle and make it ready to run.

    `target` is a target's text form, or "auto" for the best that this machine runs; where the
    machine lacks some of it, the next one down is used, and a warning says why. `prefill` may be an
    NPU target, which then runs prompts, beside `decode` (`target`, unless given), which runs what
    comes after; "auto" is the machine's NPU, where the bundle has a program for it and no other
    target is asked for; "cpu" is none. `decode` may be an NPU target where the bundle has whole
    layers for it. `context` takes less than the bundle's context, to save
    memory. `cache_format` None is what suits the target (`edge.kvcache.default_format`). `threads`
    None is as many as there are fast processors. Raises the errors of `Bundle.open`, UnknownTarget
    where nothing here runs the target, NpuUnavailable, NpuRefused or NpuCrashed where the NPU that
    was asked for does not, UsageError for a context or a number of threads out of range.
    """
    if threads is not None and not _is_count(threads):
        raise UsageError(f"{threads!r} threads", "use 1 or more, or leave it to the machine")
    if cache_format is not None and cache_format not in get_args(CacheFormat):
        raise UsageError(f"KV cache format {cache_format!r}", f"use one of {get_args(CacheFormat)}")
    bundle = Bundle.open(path)
    asked = target if decode is None else decode
    prompt = _prompt_target(bundle, prefill, target)
    chosen = _decode_target(bundle, asked)
    limit = _most_positions(bundle, chosen.target)
    if context is not None and not (_is_count(context) and context <= limit):
        raise UsageError(
            f"context {context!r}, {path} was converted for up to {limit}",
            f"use 1 to {limit}, or convert again for a longer one",
        )
    program = _load_program(bundle, chosen.target, prompt, threads)
    if chosen.note:
        warnings.warn(chosen.note, LesserTarget, stacklevel=2)
    form = cache_format or default_format(chosen.target)
    return Model(bundle, program, context or limit, form, chosen.note)


def _decode_target(bundle: Bundle, asked: str) -> Choice:
    """What decodes: an NPU as it was asked for, or else what this machine runs of it."""
    if asked.startswith("npu:") and (npu := Target.parse(asked)).unit in PROMPT_BACKENDS:
        return Choice(npu)
    return target_for(bundle, "auto" if asked == "cpu" else asked)


def _most_positions(bundle: Bundle, decode: Target) -> int:
    """The longest context: on an NPU, its graphs' keys and values have a fixed number of places."""
    npu = bundle.manifest.npu
    if decode.unit in PROMPT_BACKENDS and npu is not None and npu.positions:
        return npu.positions
    return bundle.graph.context


def _load_program(
    bundle: Bundle, decode: Target, prompt: Target | None, threads: int | None
) -> Program:
    """What decodes, beside what runs prompts where that is another."""
    if decode.unit in PROMPT_BACKENDS:
        program: Program = prompt_backend_for(decode).load_whole(bundle, decode)
    else:
        program = backend_for(decode).load(bundle, decode, threads)
    if isinstance(program, WholeProgram) and prompt in (None, decode):
        return Pair(program, program)
    if prompt is None:
        return program
    return Pair(prompt_backend_for(prompt).load(bundle, prompt, threads), program)


def _prompt_target(bundle: Bundle, prefill: str, target: str) -> Target | None:
    """The NPU that runs prompts; None where what decodes runs them too."""
    if prefill == "auto":
        return choose_prompt_target(bundle) if target == "auto" else None
    return None if prefill == "cpu" else Target.parse(prefill)


def with_defaults(base: Sampling, defaults: GenerationDefaults) -> Sampling:
    """What a checkpoint sets, over Transformers' own defaults; `base` where it sets nothing."""
    chosen = {name: value for name, value in vars(defaults).items() if value is not None}
    return replace(TRANSFORMERS_SAMPLING, **chosen) if chosen else base
