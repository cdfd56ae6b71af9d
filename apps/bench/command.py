"""The verb `lutra bench`: reads the options, measures, prints."""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from apps.bench.compare import OURS, PEER, Opener, Plan, compare
from apps.bench.gguf_file import FORMATS
from apps.bench.llamacpp_side import FLASH_ATTENTION
from apps.bench.measure import LEAST_REPEATS
from apps.bench.peer import (
    PYTHON_VARIABLE,
    PeerModel,
    PeerOptions,
    default_python,
    open_peer,
    start_side,
)
from apps.bench.process import Child
from apps.bench.report import Run, load_average, print_report, report_values
from apps.options import add_model_options
from apps.output import print_json, print_note
from apps.progress import Bar
from cpu.threads import default_threads
from edge.backend import choose_target
from edge.bundle import Bundle
from edge.errors import PromptTooLong, UsageError
from edge.kvcache import default_format
from edge.target import Target

if TYPE_CHECKING:
    from apps.bench.ceilings import Ceilings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--prompt", type=int, default=256, metavar="N", help="prompt tokens (256)")
    parser.add_argument("--generate", type=int, default=64, metavar="N", help="tokens drawn (64)")
    parser.add_argument(
        "--repeats", type=int, default=LEAST_REPEATS, metavar="N", help="rounds, 5 or more (5)"
    )
    peer = parser.add_argument_group("peer")
    peer.add_argument("--peer", choices=(PEER,), help="run it in turns with the bundle")
    peer.add_argument(
        "--checkpoint", type=Path, metavar="SRC", help="what the bundle was converted from"
    )
    peer.add_argument(
        "--peer-format", default="Q4_0", choices=FORMATS, help="of its weights (Q4_0)"
    )
    peer.add_argument(
        "--peer-file", type=Path, metavar="GGUF", help="keep its file here, and use it again"
    )
    peer.add_argument(
        "--peer-python",
        default=default_python(),
        metavar="PYTHON",
        help=f"the Python that has llama_cpp (default: {PYTHON_VARIABLE}, else this one)",
    )
    peer.add_argument(
        "--peer-flash-attention",
        default="auto",
        choices=FLASH_ATTENTION,
        help="auto (llama.cpp's default), or what is faster for the phase that counts",
    )
    peer.add_argument(
        "--peer-any-build",
        action="store_true",
        help="take a peer that uses other instruction sets than the target",
    )


def run(args: argparse.Namespace) -> int:
    bundle = Bundle.open(args.bundle)
    choice = choose_target(args.target, bundle.manifest.artifacts)
    target = choice.target
    print_note(args, choice.note)
    plan, options = _read_plan(args, bundle), _read_peer(args)
    bar, load_before = Bar(quiet=args.quiet), load_average()
    with tempfile.TemporaryDirectory() as folder:
        openers = {OURS: _our_opener(args, plan)}
        peer = None
        if options is not None:
            peer = open_peer(options, target, Path(folder), plan.threads, bar)
            openers[PEER] = _peer_opener(options, peer, plan)
        figures = compare(plan, openers, _ceilings(target, plan.threads), bar.note)
        cache_format = args.kv or default_format(target)
        made = Run(args.bundle, bundle, cache_format, plan, figures, peer, load_before)
        print_report(made)
        if args.json:
            print_json(report_values(made))
    return 0


def _ceilings(target: Target, threads: int) -> Ceilings | None:
    """The ceilings' loops; None without llvmlite, or where no code is made for the processor."""
    try:
        from apps.bench.ceilings import make_ceilings
    except ImportError:
        return None
    return make_ceilings(target, threads)


def _read_plan(args: argparse.Namespace, bundle: Bundle) -> Plan:
    cores = len(os.sched_getaffinity(0))
    threads = default_threads() if args.threads is None else args.threads
    if not 1 <= threads <= cores:
        raise UsageError(f"--threads {threads}, this machine has {cores} cores", "use 1 to that")
    if args.repeats < LEAST_REPEATS:
        raise UsageError(
            f"--repeats {args.repeats}", f"use {LEAST_REPEATS} or more: timings are noisy"
        )
    if args.prompt < 1:
        raise UsageError(f"--prompt {args.prompt}", "use 1 or more")
    if args.generate < 2:
        raise UsageError(f"--generate {args.generate}", "use 2 or more")
    context = min(args.context or bundle.graph.context, bundle.graph.context)
    if args.prompt + args.generate > context:
        raise PromptTooLong(
            f"--prompt {args.prompt} and --generate {args.generate}, the context holds {context}",
            "use fewer tokens, or convert with a larger --context",
        )
    return Plan(args.prompt, args.generate, args.repeats, threads, bundle.graph.vocabulary)


def _our_opener(args: argparse.Namespace, plan: Plan) -> Opener:
    # `ref` multiplies on NumPy's own threads.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict.fromkeys(names, str(plan.threads))
    load = {
        "bundle": str(args.bundle),
        "target": args.target,
        "context": args.context,
        "cache_format": args.kv,
        "threads": plan.threads,
    }
    return Opener(partial(Child, "apps.bench.lutra_side", environment=environment), load)


def _read_peer(args: argparse.Namespace) -> PeerOptions | None:
    if args.peer is None:
        return None
    if args.checkpoint is None:
        raise UsageError("--peer without --checkpoint", "give what the bundle was converted from")
    return PeerOptions(
        checkpoint=args.checkpoint,
        form=args.peer_format,
        python=args.peer_python,
        file=args.peer_file,
        flash_attention=args.peer_flash_attention,
        any_build=args.peer_any_build,
    )


def _peer_opener(options: PeerOptions, model: PeerModel, plan: Plan) -> Opener:
    load = {
        "path": str(model.path),
        "threads": plan.threads,
        "context": plan.prompt + plan.generate,
        "flash_attention": options.flash_attention,
    }
    return Opener(partial(start_side, options.python), load)
