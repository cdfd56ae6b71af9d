"""The verb `lutra bench`: reads the options, measures, prints."""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from apps.bench.compare import OURS, PEER, Opener, Plan, compare, start_bandwidths, try_out
from apps.bench.gguf_file import FORMATS
from apps.bench.llamacpp_side import FLASH_ATTENTION
from apps.bench.measure import LEAST_REPEATS
from apps.bench.peer import (
    PYTHON_VARIABLE,
    PeerModel,
    PeerOptions,
    check_model,
    default_python,
    open_peer,
    start_side,
)
from apps.bench.process import Child
from apps.bench.report import Run, load_average, print_report, print_start, report_values
from apps.options import add_program_options
from apps.output import print_json, print_note
from apps.progress import Bar
from cpu.threads import default_threads
from edge.backend import Choice, target_for
from edge.bundle import Bundle
from edge.errors import PromptTooLong, UsageError
from edge.kvcache import default_format
from edge.target import Target

if TYPE_CHECKING:
    from apps.bench.ceilings import Ceilings


# Options that say what peer to run; without --peer they would say nothing.
_OF_THE_PEER = (
    "checkpoint",
    "peer_format",
    "peer_file",
    "peer_python",
    "peer_flash_attention",
    "peer_any_build",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_program_options(parser)
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
    peer.add_argument("--peer-format", choices=FORMATS, help="of its weights (Q4_0)")
    peer.add_argument(
        "--peer-file", type=Path, metavar="GGUF", help="keep its file here, and use it again"
    )
    peer.add_argument(
        "--peer-python",
        metavar="PYTHON",
        help=f"the Python that has llama_cpp (default: {PYTHON_VARIABLE}, else this one)",
    )
    peer.add_argument(
        "--peer-flash-attention",
        choices=FLASH_ATTENTION,
        help="llama.cpp's default, auto, or what is faster for the phase that counts (auto)",
    )
    peer.add_argument(
        "--peer-any-build",
        action="store_true",
        help="take a peer that uses other instruction sets than the target",
    )


def run(args: argparse.Namespace) -> int:
    bar = Bar(quiet=args.quiet)
    try:
        made = _measure(args, bar)
    finally:
        bar.finish()
    print_report(made)
    if args.json:
        print_json(report_values(made))
    return 0


def _measure(args: argparse.Namespace, bar: Bar) -> Run:
    """The benchmark; the read bandwidth is printed before the rest is measured."""
    bundle = Bundle.open(args.bundle)
    choice = _choose_target(args, bundle)
    print_note(args, choice.note)
    plan, options, load_before = _read_plan(args, bundle), _read_peer(args, bundle), load_average()
    with tempfile.TemporaryDirectory() as folder:
        openers = {OURS: _our_opener(args, plan)}
        try_out(openers[OURS])
        peer = None
        if options is not None:
            peer = open_peer(options, choice.target, Path(folder), plan.threads, bar)
            openers[PEER] = _peer_opener(options, peer, plan)
        ceilings = _ceilings(choice.target, plan.threads)
        start = start_bandwidths(ceilings, bar)
        bar.finish()
        print_start(start)
        figures = compare(plan, openers, ceilings, start, bar)
    cache_format = args.kv or default_format(choice.target)
    return Run(args.bundle, bundle, cache_format, plan, figures, peer, load_before)


def _choose_target(args: argparse.Namespace, bundle: Bundle) -> Choice:
    """What the bundle is to run on. Raises UnknownTarget, and UsageError for an emulated one."""
    choice = target_for(bundle, args.target)
    if choice.target.emulated:
        raise UsageError(
            f"{choice.target} is emulated: how fast an emulator is says nothing of the target",
            "use a target that this machine has; lutra doctor shows them",
        )
    return choice


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


def _read_peer(args: argparse.Namespace, bundle: Bundle) -> PeerOptions | None:
    if args.peer is None:
        if given := next((name for name in _OF_THE_PEER if getattr(args, name)), None):
            raise UsageError(f"--{given.replace('_', '-')} without --peer", f"add --peer {PEER}")
        return None
    if args.checkpoint is None:
        raise UsageError("--peer without --checkpoint", "give what the bundle was converted from")
    check_model(args.checkpoint, bundle.graph)
    return PeerOptions(
        checkpoint=args.checkpoint,
        form=args.peer_format or "Q4_0",
        python=args.peer_python or default_python(),
        file=args.peer_file,
        flash_attention=args.peer_flash_attention or "auto",
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
