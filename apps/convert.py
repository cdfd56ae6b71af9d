"""Turn a checkpoint into a bundle.

SRC is a folder in the Hugging Face layout (config.json, safetensors), a GGUF file, or a name on the
hub. A checkpoint that is quantized already keeps its formats unless --weights names another. The
plan is printed before the work. An interrupted conversion goes on where it stopped when run again;
nothing is at OUT before it is whole.

--quality good finds the codes by GPTQ: it runs samples through the model, and lets each layer make
up for the rounding of those before. It takes far longer than fast (round to nearest), and halved
what quantization costs on the small model of the tests. best folds activation-aware scales in first
(--awq), takes four times the samples, and then learns codes, scales and norms of a small model (up
to 32 million parameters) from what the float one predicts: minutes, where good takes seconds. Small
models draw the samples themselves, others read a text that comes with lutra, or yours.

Formats: w<bits>g<group>[a] with 1, 2, 3, 4 or 8 bits, a group of 32, 64, 128 or c (a whole
channel), and a for asymmetric; ternary; f16; f32. 1 bit costs most of what a model can do that was
not trained for it, and all of it without --quality good.

examples:
  lutra convert ./Llama-3.2-1B llama.lutra
  lutra convert Qwen/Qwen2.5-0.5B-Instruct qwen.lutra --weights w2g64 --head w4g64
  lutra convert Llama-3.2-1B-Q4_0.gguf llama.lutra
  lutra convert ./model m.lutra --lora ./adapter --lora ./style:0.5
  lutra convert ./model m.lutra --targets cpu:aarch64-android,dotprod,i8mm
  lutra convert ./model m.lutra --weights w3g32 --quality good --calibration my.txt
  lutra convert ./model m.lutra --npu SM8650,SM8550 --chunk 256
  lutra convert ./model m.lutra --npu SM8650 --npu-form layers --quality good
  lutra convert ./model m.lutra --weights w4g32 --size 3.2bpw --quality best
  lutra convert ./model m.lutra --plan          show the plan, do nothing
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

from apps.output import megabytes, print_json, print_table
from apps.progress import Bar
from converter.convert import DEFAULT_CHUNK, Job, prepare
from converter.convert import run as run_job
from converter.npu import POSITIONS, NpuPlan, parse_names, plan_npu
from converter.plan import Formats
from converter.quality import Quality
from edge.errors import UsageError
from edge.npu import Form, Mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="checkpoint folder, GGUF file or hub name")
    parser.add_argument("out", metavar="OUT", type=Path, help="bundle to write, NAME.lutra")
    parser.add_argument(
        "--weights",
        metavar="FORMAT",
        help="linear weights (default: those of a quantized checkpoint, else w4g64)",
    )
    parser.add_argument(
        "--head",
        metavar="FORMAT",
        help="output head and tied embedding (default: as --weights, 4 bits at least)",
    )
    parser.add_argument(
        "--embedding", metavar="FORMAT", help="untied embedding (default: as --head)"
    )
    parser.add_argument(
        "--quality", default="fast", metavar="Q", help="fast (default), good or best: see above"
    )
    parser.add_argument(
        "--size",
        metavar="SIZE",
        help="mixed widths of 2, 3, 4 and 8 bits (and of 1 where 2 do not fit) for a size of all "
        "weights, such as 3.2bpw (bits a weight), 300MiB or 300MB: each tensor's is chosen by what "
        "rounding it changes",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="UTF-8 text to calibrate on"
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="most positions (default: the checkpoint's)"
    )
    parser.add_argument(
        "--chunk", type=int, default=DEFAULT_CHUNK, metavar="N", help="prefill chunk length (256)"
    )
    parser.add_argument(
        "--targets",
        action="append",
        default=[],
        metavar="TARGET",
        help="compile for this target too, such as cpu:aarch64-android,dotprod or npu:hvx-v75; "
        "may be repeated",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FOLDER[:SCALE]",
        help="merge this adapter (PEFT layout), SCALE times; may be repeated",
    )
    add_fold_options(parser)
    add_npu_options(parser)
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle at OUT")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")


def add_fold_options(parser: argparse.ArgumentParser) -> None:
    """Changes of basis that leave the model's text as it is."""
    group = parser.add_argument_group("for weights and activations with outliers")
    group.add_argument(
        "--rotate",
        action="store_true",
        help="fold Hadamard rotations into the weights, so that no channel stands out (QuaRot); an "
        "embedding that is also the head is stored twice then",
    )
    group.add_argument(
        "--awq",
        action="store_true",
        help="scale the channels of large activations up before rounding, by what samples say, and "
        "fold what undoes it into the weights before them (AWQ)",
    )


def add_npu_options(parser: argparse.ArgumentParser) -> None:
    """What is made for NPUs."""
    group = parser.add_argument_group("NPU")
    group.add_argument(
        "--npu",
        action="append",
        default=[],
        metavar="SOCS",
        help="compile prefill for these SoCs (SM8650,SM8550), and keep its graphs for npu:ort, "
        "ONNX Runtime standing in for an NPU; may be repeated",
    )
    group.add_argument(
        "--npu-form",
        default="pieces",
        choices=get_args(Form),
        help="what is on the NPU: pieces, projections for prompts, with outliers on the CPU "
        "(default); or layers, all but embedding and head, which decode there too",
    )
    group.add_argument(
        "--npu-mode",
        choices=get_args(Mode),
        help="bits of weights and activations on the NPU (default w8a8; w4a16 for layers)",
    )
    group.add_argument(
        "--npu-positions",
        type=int,
        default=POSITIONS,
        metavar="N",
        help=f"most tokens that whole layers take, prompt and text together ({POSITIONS})",
    )
    group.add_argument(
        "--prune-outliers",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave the outliers of this share of layers, the least important, to the NPU (0)",
    )
    group.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="ALPHA",
        help="SmoothQuant's share of activation scale that goes to the weights (0)",
    )


def _quality(args: argparse.Namespace) -> Quality:
    """The quality asked for; a calibration text may be for the NPU's ranges alone."""
    for_npu = args.npu and args.quality == "fast"
    return Quality.parse(args.quality, None if for_npu else args.calibration)


def _npu_plan(args: argparse.Namespace) -> NpuPlan | None:
    return plan_npu(
        parse_names(args.npu),
        args.chunk,
        mode=args.npu_mode,
        pruned=args.prune_outliers,
        smoothing=args.smooth,
        text=args.calibration,
        form=args.npu_form,
        positions=args.npu_positions,
    )


def run(args: argparse.Namespace) -> int:
    for name in ("context", "chunk"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}", "use 1 or more")
    formats = Formats.parse(args.weights, args.head, args.embedding)
    bar = Bar(quiet=args.quiet)
    job = prepare(
        args.source,
        formats,
        context=args.context,
        chunk=args.chunk,
        revision=args.revision,
        targets=args.targets,
        lora=args.lora,
        quality=_quality(args),
        npu=_npu_plan(args),
        size=args.size,
        rotated=args.rotate,
        scaled=args.awq,
        watcher=bar,
    )
    bar.finish()
    if not args.quiet:
        _print_plan(job)
        if args.plan:
            print("\n".join(job.notes), end="\n" if job.notes else "")
    result = _plan_values(job)
    if not args.plan:
        result |= _convert(args, job)
    if args.json:
        print_json(result)
    return 0


def _print_plan(job: Job) -> None:
    graph = job.model.graph
    print(f"{job.checkpoint.name}: {job.checkpoint.config['model_type']}, context {graph.context}")
    print_table(job.plan.rows())
    trained = job.checkpoint.config.get("max_position_embeddings")
    if isinstance(trained, int) and graph.context > trained:
        print(f"note: the config is for {trained} positions; text beyond them gets worse unless")
        print("      its rope scaling was made for more")


def _plan_values(job: Job) -> dict[str, object]:
    return {
        "weights_bytes": job.plan.byte_count,
        "parameters": job.plan.parameter_count,
        "bits_per_weight": job.plan.bits_per_weight,
        "context": job.model.graph.context,
        "notes": list(job.notes),
    }


def _convert(args: argparse.Namespace, job: Job) -> dict[str, object]:
    began = time.monotonic()
    bar = Bar(quiet=args.quiet)
    manifest = run_job(job, args.out, overwrite=args.overwrite, watcher=bar)
    bar.finish()
    seconds = time.monotonic() - began
    size = sum(record.byte_count for record in manifest.files.values())
    if not args.quiet:
        print(f"wrote {args.out}: {megabytes(size)} in {seconds:.1f} s (measured)")
    return {"out": str(args.out), "bytes": size, "seconds": seconds}
