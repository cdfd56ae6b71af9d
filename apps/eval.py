"""Measure what a bundle predicts of a text: perplexity, and the distance to another bundle.

The text is cut into windows of the context; every token of a window is predicted from those before
it. With --against, the same windows run through another bundle of the same model (usually f32), and
the mean KL divergence of its predictions to this bundle's says what quantization costs.

With --table, a checkpoint is converted to many formats, by each of the methods, and every form is
measured against the float model: what each format costs, next to its size, and next to llama.cpp's.
A small model draws the text itself.

With --exact-match, pocket's own test instead: the share of held-out commands whose action is right
to the letter.

examples:
  lutra eval model.lutra --text book.txt
  lutra eval w4.lutra --text book.txt --against f32.lutra --json
  lutra eval ./checkpoint --table --formats w4g32,w2g32 --qualities fast,good,best --plot kl.svg
  lutra eval pocket --exact-match --json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.accuracy import command as accuracy
from apps.options import add_model_options, load_model
from apps.output import print_json
from apps.pocket import exact
from apps.pocket.bundle import find_bundle
from apps.progress import Bar
from edge.errors import BadTokens, UsageError
from edge.generate import prefill
from edge.model import Model

# Over this a perplexity is no number, and the model is broken.
_MOST_NATS = 700.0

# Rows scored at once: logits of a 150k vocabulary take 150 MB.
_ROWS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text")
    parser.add_argument(
        "--against", metavar="BUNDLE", type=find_bundle, help="bundle to take KL divergence to"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="use the first N tokens alone")
    accuracy.add_arguments(parser)
    parser.add_argument(
        "--exact-match",
        action="store_true",
        help="count the held-out commands that pocket turns into exactly the right action",
    )
    parser.add_argument(
        "--commands", type=int, default=500, metavar="N", help="how many of those (500)"
    )


@dataclass
class Score:
    """Sums over predicted tokens, in nats."""

    tokens: int = 0
    nll_sum: float = 0.0
    kl_sum: float = 0.0

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)

    @property
    def kl(self) -> float:
        """Mean KL divergence of the other model's predictions to this one's."""
        return self.kl_sum / self.tokens


def run(args: argparse.Namespace) -> int:
    if args.table:
        return accuracy.run_table(args)
    if args.exact_match:
        return exact.run(args)
    model = load_model(args)
    other = _load_other(args, model)
    ids = _read_tokens(args, model)
    bar = Bar(quiet=args.quiet)
    bar.start("eval", len(ids), "tokens")
    score = evaluate(model, ids, other, bar)
    bar.finish()
    _check_finite(args, score)
    values = {
        "perplexity": score.perplexity,
        "nll": score.nll,
        "kl": score.kl if other is not None else None,
        "tokens": score.tokens,
        "context": model.context,
        "target": model.place,
        "note": model.note,
    }
    if args.json:
        print_json(values)
    else:
        _print(args, score, other is not None)
    return 0


def evaluate(model: Model, ids: list[int], other: Model | None, bar: Bar) -> Score:
    """Score `ids` under `model`, window by window."""
    score = Score()
    for window in windows(ids, model.context, model.bundle.manifest.tokenizer.bos_id):
        ours = _logits(model, window)
        theirs = _logits(other, window) if other is not None else None
        for first, logits in ours:
            log_probs = log_softmax(logits)
            targets = window[first + 1 : first + 1 + len(logits)]
            rows = np.arange(len(targets))
            score.tokens += len(targets)
            score.nll_sum -= float(log_probs[rows, targets].sum())
            if theirs is not None:
                _, reference = next(theirs)
                divergence = kl_divergence(log_softmax(reference), log_probs)
                score.kl_sum += float(divergence[: len(targets)].sum())
            bar.advance(len(targets))
    return score


def windows(ids: list[int], context: int, bos_id: int | None) -> Iterator[NDArray[np.int32]]:
    """Cut tokens into windows of at most `context` that predict every token but the first.

    A window opens with BOS where the tokens do, else with the last token of the window before.
    """
    opening, text = ids[0], ids[1:]
    for start in range(0, len(text), context - 1):
        body = text[start : start + context - 1]
        yield np.array([opening, *body], np.int32)
        opening = bos_id if ids[0] == bos_id else body[-1]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normed: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normed


def kl_divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p || q) in nats of every row of log probabilities."""
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


def _logits(model: Model, window: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Logits of a window's tokens but the last, as (first token, [rows, vocabulary])."""
    cache = model.session().cache
    for first in range(0, len(window) - 1, _ROWS):
        rows = window[first : min(first + _ROWS, len(window) - 1)]
        yield first, prefill(model.program, cache, rows, all_logits=True)


def _load_other(args: argparse.Namespace, model: Model) -> Model | None:
    if args.against is None:
        return None
    other = load_model(args, args.against)
    if other.bundle.tokenizer_json != model.bundle.tokenizer_json:
        raise UsageError(
            f"{args.against} has another tokenizer than {args.bundle}",
            "compare bundles converted from the same checkpoint",
        )
    if other.bundle.graph.vocabulary != model.bundle.graph.vocabulary:
        raise UsageError(
            f"{args.against} has {other.bundle.graph.vocabulary} tokens, "
            f"{args.bundle} has {model.bundle.graph.vocabulary}",
            "compare bundles converted from the same checkpoint",
        )
    if other.context < model.context:
        raise UsageError(
            f"{args.against} holds {other.context} tokens, {args.bundle} {model.context}",
            f"add --context {other.context}",
        )
    return other


def _read_tokens(args: argparse.Namespace, model: Model) -> list[int]:
    if args.text is None:
        raise UsageError(
            "no text", "add --text FILE, --exact-match for pocket, or --table for a checkpoint"
        )
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UsageError(f"--max-tokens {args.max_tokens}", "use 2 or more")
    if model.context < 2:
        raise UsageError(f"a context of {model.context}", "use 2 or more")
    try:
        text = args.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {args.text}: {error}", "give a UTF-8 text file") from error
    ids = model.encode(text)[: args.max_tokens]
    if len(ids) < 2:
        raise UsageError(f"--text {args.text}: {len(ids)} tokens", "give a longer text")
    return ids


def _check_finite(args: argparse.Namespace, score: Score) -> None:
    """Raises BadTokens where the model's predictions are no numbers, or worse than any text is."""
    if not score.nll < _MOST_NATS or not math.isfinite(score.kl):
        raise BadTokens(
            f"{args.bundle}: predictions of {score.nll:.3g} nats a token",
            "check the bundle with lutra verify, or convert again with more bits",
        )


def _print(args: argparse.Namespace, score: Score, compared: bool) -> None:
    print(f"{args.bundle}: perplexity {score.perplexity:.4f} (measured, {score.tokens} tokens)")
    if compared:
        print(f"KL divergence from {args.against}: {score.kl:.6f} nats a token (measured)")
