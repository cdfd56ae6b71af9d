"""Plan a model on a phone's SoC: prefill, decoding, energy, memory. Every figure is modelled.

MODEL is a bundle, a checkpoint's folder, a config.json, or a preset of lutra synth; no weights are
read. Prefill runs 8-bit subgraphs on the NPU and attention, norms and outliers on the CPU, in order
and out of order. --validate prints the model beside published tables; docs/soc.md explains it.

examples:
  lutra plan model.lutra --soc SM8650 --prompt 1024
  lutra plan qwen1.5-1.8b --soc SM8750 --prompt 700 --generate 50 --plot
  lutra plan ./checkpoint --plot schedule.svg --trace schedule.json --json
  lutra plan --validate
  lutra plan --values --soc SM8650
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from apps.gantt import draw_bars, write_svg
from apps.output import megabytes, print_json, print_table
from apps.pocket.bundle import find_bundle
from apps.progress import Bar
from apps.synth import read_config
from converter.models import build_model
from converter.plan import Formats, make_plan
from converter.sources.open import open_source
from edge.bundle import Bundle
from edge.errors import UsageError
from edge.graph import Graph
from edge.jobs import CPU, NPU
from edge.manifest import FILE_NAME
from edge.npu import Mode, NpuRecord
from edge.schedule import IN_ORDER, Timeline
from edge.trace import Run, timeline_slices, write_trace
from npu.soc.model import WEIGHT_BITS, Chunking, subgraph_counts
from npu.soc.predict import Decode, Prefill, Step, plan_prefill
from npu.soc.socs import SOCS, Soc, find_soc, value_rows
from npu.soc.validate import ROW_COUNT, Row, median_error, report, validate
from npu.soc.work import ModelWork, graph_work

_KV_BYTES = 2  # of a value, as f16, the default of lutra run
_TERMINAL = Path("-")
_PROMPT = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="bundle, checkpoint, preset or pocket"
    )
    parser.add_argument("--soc", default="SM8650", help=f"{', '.join(SOCS)} (default: SM8650)")
    parser.add_argument(
        "--prompt", type=int, metavar="N", help="tokens (1024, or what the context has room for)"
    )
    parser.add_argument("--generate", type=int, default=128, metavar="N", help="tokens (128)")
    parser.add_argument(
        "--chunk", type=int, metavar="N", help="rows a chunk (default: the bundle's, else 256)"
    )
    parser.add_argument(
        "--prune-outliers",
        type=float,
        metavar="SHARE",
        help="share of layers whose outliers are not restored (default: the bundle's, else 0.85)",
    )
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        help="prefill with 8-bit projections on the NPU and the rest on the CPU (w8a8), or with "
        "whole layers on the NPU, 16-bit activations and weights of 8 or 4 bits (w8a16, w4a16) "
        "(default: w8a8, and what a bundle of whole layers has)",
    )
    parser.add_argument("--decode", choices=(CPU, NPU), default=CPU, help="where to decode (cpu)")
    parser.add_argument(
        "--weights", default="w4g64", help="weight format, where MODEL is no bundle (w4g64)"
    )
    parser.add_argument(
        "--plot",
        nargs="?",
        type=Path,
        const=_TERMINAL,
        metavar="FILE.svg",
        help="draw the schedule, in the terminal where no file is named",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="schedule for ui.perfetto.dev")
    parser.add_argument("--validate", action="store_true", help="compare with published tables")
    parser.add_argument("--values", action="store_true", help="print the SoC's values and sources")


@dataclass(frozen=True)
class Request:
    """What is planned: a model's work, and the bytes of weights that a token's step reads."""

    prompt: int
    work: ModelWork
    decode_weight_bytes: int
    head_bytes: int
    npu: NpuRecord | None


@dataclass(frozen=True)
class Plan:
    """What is shown: prefill, the head after it, and the middle step of decoding."""

    chunking: Chunking
    prefill: Prefill
    head: Decode
    decode: Step
    subgraphs: dict[str, int]
    memory: dict[str, int]

    @property
    def first_token_s(self) -> float:
        """Seconds to the first token: all layers of all chunks, then the head once."""
        return self.prefill.out_of_order.makespan_s + self.head.seconds

    @property
    def prefill_joules(self) -> float:
        return self.prefill.joules + self.head.joules


def run(args: argparse.Namespace) -> int:
    if args.validate:
        return _validate(args)
    soc = find_soc(args.soc)
    if args.values:
        print_table(value_rows(soc))
        if args.json:
            print_json({name: vars(value) for name, value in soc.values.items()})
        return 0
    plan = _plan(args, soc)
    _draw(args, plan)
    if args.json:
        print_json(_values(args, plan))
    else:
        _print(args, plan)
    return 0


def _plan(args: argparse.Namespace, soc: Soc) -> Plan:
    _check(args)
    request = _read(args)
    bar = Bar(quiet=args.quiet)
    bar.start("schedule", 100, "percent")
    chunking = _chunking(args, request.npu)
    prefill = plan_prefill(soc, request.work, request.prompt, chunking, bar.advance)
    bar.finish()
    kv_bytes = _KV_BYTES * request.work.kv_values
    context = request.prompt + args.generate / 2
    npu_bytes = request.work.weights * WEIGHT_BITS[chunking.mode] // 8
    head = Decode(soc, CPU, request.head_bytes)
    decode = Step((Decode(soc, args.decode, request.decode_weight_bytes + kv_bytes * context),))
    decode_bytes = request.decode_weight_bytes
    if args.decode == NPU and _has_layers(request.npu):  # its own weights, and the CPU's head
        decode = Step((Decode(soc, NPU, npu_bytes + kv_bytes * context), head))
        decode_bytes = npu_bytes + request.head_bytes
    counts = subgraph_counts(request.work, whole_layers=chunking.whole_layers)
    return Plan(
        chunking,
        prefill,
        head,
        decode,
        dict(zip(("shared", "total"), counts, strict=True)),
        {
            "npu_weight_bytes": npu_bytes,
            "decode_weight_bytes": decode_bytes,
            "kv_bytes": kv_bytes * (request.prompt + args.generate),
        },
    )


def _chunking(args: argparse.Namespace, npu: NpuRecord | None) -> Chunking:
    """As asked for; where nothing is, as the bundle's NPU program was made, else as llm.npu's."""
    made = Chunking(mode=args.mode or "w8a8")
    if npu is not None and args.mode is None and _has_layers(npu):
        made = Chunking(npu.rows, 1.0, npu.mode)
    elif npu is not None:
        pruned = npu.calibration.pruned if npu.mode == "w8a8" else 1.0  # 16 bits hold outliers
        made = replace(made, rows=npu.rows, pruned=pruned)
    if args.chunk is not None:
        made = replace(made, rows=args.chunk)
    return made if args.prune_outliers is None else replace(made, pruned=args.prune_outliers)


def _has_layers(npu: NpuRecord | None) -> bool:
    return npu is not None and npu.form == "layers"


def _check(args: argparse.Namespace) -> None:
    if args.model is None:
        raise UsageError("no model", "name a bundle, a checkpoint or a preset such as qwen1.5-1.8b")
    for name, least in (("prompt", 1), ("generate", 0), ("chunk", 1)):
        value = getattr(args, name)
        if value is not None and not least <= value <= 1 << 20:
            raise UsageError(f"--{name} {value}", f"use {least} to {1 << 20}")
    if args.prune_outliers is not None and not 0 <= args.prune_outliers <= 1:
        raise UsageError(f"--prune-outliers {args.prune_outliers}", "use a share from 0 to 1")


def _read(args: argparse.Namespace) -> Request:
    """The model's work, and its weights' bytes as stored or as they would be."""
    path, npu = find_bundle(args.model), None
    if (path / FILE_NAME).is_file():
        bundle = Bundle.open(path)
        npu = bundle.manifest.npu
        graph, sizes = (
            bundle.graph,
            {t.name: bundle.byte_count(t.name) for t in bundle.graph.tensors},
        )
    else:
        graph = build_model(_config(args.model)).graph
        planned = make_plan(graph, Formats.parse(args.weights)).tensors
        sizes = {p.tensor.name: p.byte_count for p in planned}
    context = npu.positions if npu is not None and _has_layers(npu) else graph.context
    prompt = args.prompt or max(1, min(_PROMPT, context - args.generate))
    if prompt + args.generate > context:
        raise UsageError(
            f"{prompt} + {args.generate} tokens, {args.model} holds {context}",
            "use fewer with --prompt and --generate",
        )
    return Request(prompt, graph_work(args.model, graph), *_step_bytes(graph, sizes), npu)


def _config(model: str) -> dict[str, Any]:
    """The config of a preset, a config.json alone, or a checkpoint without its weights."""
    path = Path(model)
    if path.suffix == ".gguf" or any(path.glob("*.gguf")) or any(path.glob("*.safetensors")):
        return open_source(path).config
    return read_config(str(path / "config.json") if path.is_dir() else model)


def _step_bytes(graph: Graph, sizes: dict[str, int]) -> tuple[int, int]:
    """Bytes that one token's step reads, and those of the head alone.

    An embedding that is no head does not count: a step reads one row of it.
    """
    step = sum(sizes[tensor.name] for tensor in graph.tensors if tensor.role != "embedding")
    head = sum(sizes[name] for op in graph.subgraphs[-1].ops for name in op.weights())
    return step, head


def _draw(args: argparse.Namespace, plan: Plan) -> None:
    prefill = plan.prefill
    runs = [("in order", prefill.in_order), ("out of order", prefill.out_of_order)]
    title = f"{args.model} on {prefill.soc.name}, {prefill.tokens} tokens"
    if args.trace is not None:
        named = [Run(f"{title}, {n}", "modelled", timeline_slices(t)) for n, t in runs]
        write_trace(args.trace, named)
    if args.plot == _TERMINAL:
        print("\n".join(draw_bars(runs, "modelled")))
        print()
    elif args.plot is not None:
        write_svg(args.plot, title, runs, "modelled")


def _values(args: argparse.Namespace, plan: Plan) -> dict[str, object]:
    prefill, decode = plan.prefill, plan.decode
    return {
        "figures": "modelled",
        "model": args.model,
        "soc": prefill.soc.name,
        "mode": plan.chunking.mode,
        "chunk": plan.chunking.rows,
        "pruned_outliers": plan.chunking.pruned,
        "prompt_tokens": prefill.tokens,
        "generated_tokens": args.generate,
        "prefill_tok_s": prefill.tokens / plan.first_token_s,
        "decode_tok_s": 1 / decode.seconds,
        "prefill_j_per_token": plan.prefill_joules / prefill.tokens,
        "decode_j_per_token": decode.joules,
        "first_token_s": plan.first_token_s,
        "lower_bound_s": prefill.lower_bound_s,
        "in_order": {
            "makespan_s": prefill.in_order.makespan_s,
            "bubble_share": prefill.in_order.bubble_share(),
        },
        "out_of_order": {
            "makespan_s": prefill.out_of_order.makespan_s,
            "bubble_share": prefill.out_of_order.bubble_share(),
            "rule": str(prefill.rule),
        },
        "subgraphs": plan.subgraphs,
        "memory": plan.memory,
    }


def _print(args: argparse.Namespace, plan: Plan) -> None:
    prefill, decode, soc = plan.prefill, plan.decode, plan.prefill.soc
    print(f"{args.model} on {soc.name} ({soc.product}), modelled:")
    print(_cut(plan.chunking))
    print()
    energy = plan.prefill_joules / prefill.tokens
    print_table(
        [
            ("", "tok/s", "mJ a token", "W", "seconds"),
            _rate("prefill", prefill.tokens / plan.first_token_s, energy, plan.first_token_s),
            _rate(f"decode on {args.decode}", 1 / decode.seconds, decode.joules, decode.seconds),
        ]
    )
    print()
    rows: list[tuple[str, ...]] = [("schedule", "seconds", "NPU waits", "over the bound")]
    rows.append(_schedule("in order", prefill.in_order, prefill.lower_bound_s))
    if prefill.rule != IN_ORDER:
        name = f"out of order, {prefill.rule}"
        rows.append(_schedule(name, prefill.out_of_order, prefill.lower_bound_s))
    print_table([*rows, ("lower bound", f"{prefill.lower_bound_s:.3f}", "", "")])
    if prefill.rule != IN_ORDER:
        saved = 1 - prefill.out_of_order.makespan_s / prefill.in_order.makespan_s
        print(f"out of order takes {saved:.0%} less time than in order")
    print()
    print_table(_memory_rows(plan))


def _cut(chunking: Chunking) -> str:
    words = f"chunks of {chunking.rows} tokens"
    if chunking.whole_layers:
        return f"{words}, whole layers on the NPU ({chunking.mode})"
    return f"{words}, outliers of {1 - chunking.pruned:.0%} of the layers restored by the CPU"


def _schedule(name: str, timeline: Timeline, bound_s: float) -> tuple[str, ...]:
    seconds = timeline.makespan_s
    over = f"{max(seconds / bound_s - 1, 0.0):.1%}" if bound_s else ""
    return name, f"{seconds:.3f}", f"{timeline.bubble_share():.1%}", over


def _rate(name: str, tok_s: float, joules: float, seconds: float) -> tuple[str, ...]:
    return name, f"{tok_s:.1f}", f"{1e3 * joules:.1f}", f"{joules * tok_s:.2f}", f"{seconds:.3f}"


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    memory, soc = plan.memory, plan.prefill.soc
    sessions = math.ceil(memory["npu_weight_bytes"] / soc.npu_address_bytes)
    space = megabytes(int(soc.npu_address_bytes))
    split = f", in {sessions} sessions of at most {space}" if sessions > 1 else ""
    return [
        ("NPU weights", megabytes(memory["npu_weight_bytes"]) + split),
        ("weights read in decode", megabytes(memory["decode_weight_bytes"])),
        ("KV cache, f16", megabytes(memory["kv_bytes"])),
        ("subgraphs that chunks share", "{shared} of {total}".format_map(plan.subgraphs)),
    ]


def _validate(args: argparse.Namespace) -> int:
    bar = Bar(quiet=args.quiet)
    bar.start("validate", ROW_COUNT, "rows")
    rows = validate(bar.advance)
    bar.finish()
    if args.json:
        print_json({"figures": "modelled", "rows": [_row(r) for r in rows], **_errors(rows)})
    else:
        print("\n".join(report(rows)))
    return 0


def _row(row: Row) -> dict[str, object]:
    return {**vars(row), "error": row.error}


def _errors(rows: list[Row]) -> dict[str, float]:
    held_out = [row for row in rows if not row.calibrated]
    return {
        "median_error": median_error(rows),
        "median_error_held_out": median_error(held_out),
    }
