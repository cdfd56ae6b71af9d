"""What a model is calibrated on: token sequences, from a text or drawn from the model itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Tensors, Tokens
from converter.models.builder import Model
from converter.weights import Weights
from edge.errors import BadTokens, UsageError
from edge.graph import Attention, Graph
from edge.kvcache import KVCache
from edge.planes import StoredTensor
from edge.reference import FUNCTIONS, Step, Values, softmax
from edge.tokenizer import Tokenizer

DEFAULT_TEXT = Path(__file__).parent / "data" / "calibration.txt"

# The largest model that draws its own samples, which takes seconds a million parameters.
MOST_DRAWN = 32_000_000

_SEED = 20


@dataclass(frozen=True)
class Wanted:
    """How much to calibrate on: tokens in all, in sequences of a length."""

    count: int = 8192
    length: int = 256


WANTED = Wanted()

# For three runs a tensor: 504 runs of a model with 24 layers.
PROBE = Wanted(count=1024, length=128)


@dataclass(frozen=True)
class Samples:
    """Sequences to calibrate on, and where they come from, in words."""

    sequences: tuple[Tokens, ...]
    origin: str

    @property
    def count(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def digest(self) -> str:
        """A hash of the tokens."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            digest.update(np.asarray(sequence, np.int32).tobytes() + b".")
        return digest.hexdigest()


def read_text(path: Path, tokenizer: bytes, length: int, count: int) -> Samples:
    """The first `count` tokens of a UTF-8 text, cut into sequences of `length`.

    Each begins with what the tokenizer puts before a text. Raises UsageError for a file that
    cannot be read or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"calibration text {path}: {error}", "give a UTF-8 text file") from error
    encoder = Tokenizer(tokenizer)
    opening, body = _opening(encoder), encoder.encode(text, special=False)[:count]
    step = length - len(opening)
    if step < 1 or len(body) < 16:
        raise UsageError(
            f"calibration text {path}: {len(body)} tokens for sequences of {length}",
            "give a longer text, or a longer --context",
        )
    cut = (opening + body[first : first + step] for first in range(0, len(body), step))
    return Samples(tuple(np.array(tokens, np.int32) for tokens in cut), f"text {path.name}")


def _opening(encoder: Tokenizer) -> list[int]:
    """Special tokens before a text, such as BOS."""
    bare, whole = encoder.encode("a", special=False), encoder.encode("a")
    return whole[: max(whole.index(bare[0]), 0)] if bare and bare[0] in whole else []


def draw_samples(
    graph: Graph, tensors: Tensors, start: int, length: int, number: int, seed: int = _SEED
) -> Samples:
    """Draw `number` sequences of `length` tokens from the model at temperature 1, behind `start`.

    For small models: all weights are in memory, and every token is a step of the whole graph.
    """
    random = np.random.default_rng(seed)
    lockstep = _Lockstep(graph, tensors, number, length)
    tokens = np.full((number, length), start, np.int32)
    for position in range(length - 1):
        logits = lockstep.run(tokens[:, position], position)
        noise = random.gumbel(size=logits.shape)
        tokens[:, position + 1] = np.argmax(logits + noise, axis=1)
    return Samples(tuple(tokens), f"drawn from the model, {number} of {length} tokens")


@dataclass
class _Position(Step):
    """A step in which every row is a sequence of its own, all at one position."""

    position: int = 0

    @property
    def positions(self) -> NDArray[np.float32]:
        return np.full(len(self.tokens), self.position, np.float32)


class _Lockstep:
    """Several sequences that advance together, a token each a step."""

    def __init__(self, graph: Graph, tensors: Tensors, number: int, length: int) -> None:
        self._graph = graph
        self._tensors = KeptTensors(graph, tensors)
        self._keys, self._values = (
            [np.zeros((number, c.kv_heads, length, c.head_dim), np.float32) for c in graph.caches]
            for _ in range(2)
        )

    def run(self, tokens: Tokens, position: int) -> Values:
        """Logits [sequences, vocabulary] after one more token of each."""
        count = len(tokens)
        step = _Position(tokens, count, count, KVCache((), 1), {}, position)
        for op in self._graph.ops():
            if isinstance(op, Attention):
                step.values[op.out] = self._attend(op, step, position)
            else:
                step.values[op.out] = FUNCTIONS[type(op)](op, step, self._tensors)
        return step.values[self._graph.last.out]

    def _attend(self, op: Attention, step: Step, position: int) -> Values:
        cache = self._graph.caches[op.cache]
        shape = (-1, cache.kv_heads, cache.head_dim)
        keys, values = self._keys[op.cache], self._values[op.cache]
        keys[:, :, position] = step.values[op.key].reshape(shape)
        values[:, :, position] = step.values[op.value].reshape(shape)
        first = 0 if op.window is None else max(position + 1 - op.window, 0)
        seen = slice(first, position + 1)
        query = step.values[op.query].reshape(len(step.tokens), cache.kv_heads, -1, cache.head_dim)
        scores = query @ keys[:, :, seen].transpose(0, 1, 3, 2) * np.float32(op.scale)
        if op.softcap is not None:
            scores = np.float32(op.softcap) * np.tanh(scores / np.float32(op.softcap))
        attended: Values = softmax(scores) @ values[:, :, seen]
        return attended.reshape(len(step.tokens), -1)


class KeptTensors:
    """All tensors of a graph, read once."""

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        self._stored = {tensor.name: tensors.stored(tensor.name) for tensor in graph.tensors}

    def dense(self, name: str) -> Values:
        return self._stored[name].parts["values"]

    def stored(self, name: str) -> StoredTensor:
        return self._stored[name]


def choose_samples(
    model: Model,
    weights: Weights,
    start: int | None,
    tokenizer: bytes | None,
    text: Path | None = None,
    wanted: Wanted = WANTED,
) -> Samples:
    """Samples from `text`; without one, drawn from a small model, else from the shipped text.

    `start` is the token that texts begin with, `tokenizer` a tokenizer.json. Raises UsageError
    where a text is needed and there is no tokenizer for it, BadTokens where its tokens are not the
    model's.
    """
    graph = model.graph
    length = min(wanted.length, graph.context)
    if text is None and start is not None and graph.parameter_count <= MOST_DRAWN:
        _require_known(graph, start, "bos_token_id")
        number = max(wanted.count // length, 1)
        return draw_samples(graph, FloatTensors(weights), start, length, number)
    if tokenizer is None:
        raise UsageError(
            "no tokenizer.json to read a calibration text with",
            "add it to the checkpoint, or use --quality fast",
        )
    samples = read_text(text or DEFAULT_TEXT, tokenizer, length, wanted.count)
    largest = max(int(sequence.max()) for sequence in samples.sequences)
    _require_known(graph, largest, "tokenizer.json")
    return samples


def _require_known(graph: Graph, token: int, origin: str) -> None:
    if not 0 <= token < graph.vocabulary:
        raise BadTokens(
            f"token id {token} of {origin}, the vocabulary has {graph.vocabulary}",
            "check that config, tokenizer and weights belong together",
        )
