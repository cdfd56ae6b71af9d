"""Options that several verbs share: which model, how to sample."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import edge
from apps.output import print_note
from apps.pocket.bundle import NAME, find_bundle
from apps.progress import Bar
from edge.kvcache import CacheFormat
from edge.model import DEFAULT_SAMPLING, TRANSFORMERS_SAMPLING, LesserTarget, Model
from edge.sampler import Sampling
from edge.watch import watched_by


def add_bundle(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """BUNDLE, as a path; it may be left out where there is a default."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=find_bundle,
        nargs="?" if default else None,
        default=default,
        help=f"folder that lutra convert made, or {NAME}, the small model that comes with lutra"
        + (f" (default: {default})" if default else ""),
    )


def add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """BUNDLE and how to load it, for `load_model`."""
    add_program_options(parser, default)
    parser.add_argument(
        "--prefill",
        default="auto",
        metavar="TARGET",
        help="what runs prompts: npu:htp-v75 (emulated on x86-64), npu:ort (ONNX Runtime standing "
        "in for an NPU), cpu, or auto (default): this machine's NPU where the bundle has its code",
    )
    parser.add_argument(
        "--decode",
        metavar="TARGET",
        help="what runs after the prompt, such as cpu (default: as --target)",
    )


def add_program_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """BUNDLE and how to load it where one program runs all of it, without an NPU beside it."""
    add_bundle(parser, default)
    parser.add_argument(
        "--target",
        default="auto",
        help="what to run on, such as ref; auto (default) is the best this machine runs",
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="most tokens to hold (default: the bundle's)"
    )
    parser.add_argument(
        "--kv",
        choices=get_args(CacheFormat),
        help="format of the KV cache (default: f16, and f32 with ref)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: the fast processors)"
    )


@contextmanager
def bar_of_loading(*, quiet: bool) -> Iterator[None]:
    """Shows what a load within it compiles, which the first one on a machine does."""
    bar = Bar(quiet=quiet, patience_s=0.3)
    try:
        with watched_by(bar):
            yield
    finally:
        bar.finish()


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def load_model(args: argparse.Namespace, other: Path | None = None) -> Model:
    """Load the model that the options name, or another one in the same way.

    A note says where it runs on less than was asked for.
    """
    quiet = args.quiet or args.json or not _is_terminal()
    with warnings.catch_warnings(), bar_of_loading(quiet=quiet):
        warnings.simplefilter("ignore", LesserTarget)
        model = edge.load(
            other or args.bundle,
            target=args.target,
            prefill=args.prefill,
            decode=args.decode,
            context=args.context,
            cache_format=args.kv,
            threads=args.threads,
        )
    print_note(args, model.note)
    return model


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How the next token is drawn; what is not given is the model's own default."""
    ours, theirs = DEFAULT_SAMPLING, TRANSFORMERS_SAMPLING
    group = parser.add_argument_group(
        "sampling (default: what the checkpoint's authors set, with Transformers' defaults, "
        f"temperature {theirs.temperature} and top-k {theirs.top_k}, for what they leave out; "
        f"where they set nothing, temperature {ours.temperature} and top-p {ours.top_p})"
    )
    group.add_argument("--greedy", action="store_true", help="always the likeliest token")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest; 0 is all")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest up to P in sum")
    group.add_argument("--min-p", type=float, metavar="P", help="keep those over P x the likeliest")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="1 is none")
    group.add_argument("--seed", type=int, metavar="N", help="draw the same tokens every time")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end there; may be repeated"
    )
    group.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="most tokens to make (256)"
    )


def read_sampling(args: argparse.Namespace, model: Model) -> Sampling:
    """The sampling that the options ask for."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.greedy:
        return replace(Sampling.greedy(), **given | {"temperature": 0.0})
    return replace(model.default_sampling, **given)
