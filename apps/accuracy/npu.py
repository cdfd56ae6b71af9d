"""What an NPU program costs in accuracy, mode by mode, with and without outliers.

Every mode of a checkpoint is converted and its prefill measured against the float model, on text
that the float model draws with a seed of its own. Then outlier channels are planted in the
checkpoint, which leaves its float logits as they are (converter/plant.py), and all is measured
again. "not restored" is W8A8 with ranges that hold the outliers, and nothing left to the CPU.

examples:
  python -m apps.accuracy.npu ./model
  python -m apps.accuracy.npu ./model --prefill npu:htp-v75 --tokens 512 --markdown
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from apps.accuracy.measure import Exact, each, held_out
from apps.output import print_json, print_table
from apps.progress import Bar
from converter.convert import convert, prepare
from converter.npu import plan_npu
from converter.plan import Formats
from converter.plant import Planting, plant
from converter.ranges import Choices
from converter.sources.tokenizer import read_tokenizer
from edge.errors import UsageError
from edge.model import load
from edge.npu import Form
from edge.pair import Pair
from edge.tool import finish
from edge.watch import Watcher
from npu.htp.program import HtpProgram


@dataclass(frozen=True)
class Setting:
    """How a program is made: its ranges, its form, and how its weights are found.

    `rotated` weights have rotations folded in (converter/rotate.py).
    """

    choices: Choices
    form: Form = "pieces"
    quality: str = "fast"
    rotated: bool = False


# Settings by what they are called in the table.
MODES = {
    "w8a8, not restored": Setting(Choices("w8a8", pruned=1.0)),
    "w8a8, not restored, rotated": Setting(Choices("w8a8", pruned=1.0), rotated=True),
    "w8a8, 85 % of layers pruned": Setting(Choices("w8a8", pruned=0.85)),
    "w8a8, outliers restored": Setting(Choices("w8a8")),
    "w8a16": Setting(Choices("w8a16")),
    "w4a16 blocks": Setting(Choices("w4a16")),
    "w4a16 blocks, good": Setting(Choices("w4a16"), quality="good"),
    "layers, w8a16": Setting(Choices("w8a16"), "layers"),
    "layers, w4a16 blocks": Setting(Choices("w4a16"), "layers"),
    "layers, w4a16 blocks, good": Setting(Choices("w4a16"), "layers", "good"),
}

_HEAD = ("model", "mode", "KL", "same top token", "perplexity", "against float", "CPU's share")


@dataclass(frozen=True)
class Row:
    """One mode of one model. `loss` is the growth of perplexity over the float model's.

    `cpu_share` is the multiply-adds for outliers over all others of the prefill's projections.
    """

    model: str
    mode: str
    kl: float
    agreement: float
    perplexity: float
    loss: float
    cpu_share: float


def measure(
    checkpoint: Path, folder: Path, prefill: str, tokens: int, planting: Planting, watcher: Watcher
) -> Iterator[Row]:
    """All modes of a checkpoint, as it is and with outliers planted."""
    job = prepare(checkpoint, Formats.parse("f32"))
    record, _ = read_tokenizer(job.checkpoint)
    if record.bos_id is None:
        raise UsageError(f"{checkpoint} has no token to begin a text with", "use another model")
    length = min(256, job.model.graph.context)
    exact = Exact(
        job.model, job.weights, held_out(job.model, job.weights, record.bos_id, length, tokens)
    )
    plant(job.checkpoint, job.model, folder / "planted", planting)
    watcher.start("modes", 2 * len(MODES), "modes")
    for name, source in (("as it is", checkpoint), ("outliers planted", folder / "planted")):
        yield _float_row(name, source, exact)
        for mode, setting in MODES.items():
            yield _row(name, mode, source, folder, prefill, setting, exact)
            watcher.advance(1)


def _float_row(name: str, source: Path, exact: Exact) -> Row:
    job = prepare(source, Formats.parse("f32"))
    score = exact.score(Exact(job.model, job.weights, exact.samples).logits)
    return Row(name, "float", score.kl, score.agreement, score.perplexity, 0.0, 0.0)


def _row(
    name: str,
    mode: str,
    source: Path,
    folder: Path,
    prefill: str,
    setting: Setting,
    exact: Exact,
) -> Row:
    out = folder / "bundle.lutra"
    choices = setting.choices
    plan = plan_npu(
        [prefill],
        32,
        mode=choices.mode,
        pruned=choices.pruned,
        smoothing=choices.smoothing,
        form=setting.form,
    )
    convert(
        source,
        out,
        weights="f32",
        chunk=32,
        quality=setting.quality,
        npu=plan,
        rotated=setting.rotated,
        overwrite=True,
    )
    model = load(out, target="ref", prefill=prefill, cache_format="f32")
    score = exact.score(each(model.logits, exact.samples.sequences))
    assert isinstance(model.program, Pair)
    program = model.program.prompt
    share = program.tally.outlier_share if isinstance(program, HtpProgram) else 0.0
    loss = score.perplexity / exact.score(exact.logits).perplexity - 1
    return Row(name, mode, score.kl, score.agreement, score.perplexity, loss, share)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        "python -m apps.accuracy.npu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a small model")
    parser.add_argument("--prefill", default="npu:ort", metavar="TARGET", help="(npu:ort)")
    parser.add_argument(
        "--tokens", type=int, default=2048, metavar="N", help="to measure on (2048)"
    )
    parser.add_argument("--channels", type=int, default=1, metavar="N", help="planted a norm (1)")
    parser.add_argument("--share", type=float, default=0.5, help="of the norms (0.5)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    planting = Planting(args.channels, args.share)
    bar = Bar(quiet=args.json)
    with tempfile.TemporaryDirectory(prefix="lutra-npu-") as folder:
        rows = list(
            measure(args.checkpoint, Path(folder), args.prefill, args.tokens, planting, bar)
        )
    bar.finish()
    if args.json:
        print_json({"rows": [asdict(row) for row in rows], "prefill": args.prefill})
    elif args.markdown:
        for cells in (_HEAD, ("---",) * len(_HEAD), *map(_cells, rows)):
            print(f"| {' | '.join(cells)} |")
    else:
        print_table([_HEAD, *map(_cells, rows)])
    return 0


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        row.mode,
        f"{row.kl:.5f}",
        f"{100 * row.agreement:.1f} %",
        f"{row.perplexity:.4f}",
        f"{100 * row.loss:+.2f} %",
        f"{100 * row.cpu_share:.2f} %",
    )


if __name__ == "__main__":
    finish("npu", main)
