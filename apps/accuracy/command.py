"""`lutra eval --table`: one checkpoint in many forms, each measured against its float self."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from apps.accuracy.measure import Exact, Row, each, held_out
from apps.accuracy.peers import Peers, find_importance
from apps.accuracy.plot import draw
from apps.bench.peer import PYTHON_VARIABLE
from apps.output import print_json, print_table
from apps.progress import Bar
from converter.blas import suited_to
from converter.convert import Job, convert, prepare
from converter.plan import Formats
from converter.quality import Quality
from converter.samples import MOST_DRAWN, Samples, choose_samples, read_text
from converter.sources.tokenizer import read_tokenizer
from edge.backend import choose_target
from edge.disk import write_text
from edge.errors import UsageError
from edge.model import load
from edge.watch import Watcher

DEFAULT_FORMATS = "w8g64,w4g32,w3g32,w2g32"
DEFAULT_LENGTH = 256
DEFAULT_TOKENS = 4096

AWQ, ROTATE = "awq", "rotate"

_HEAD = ("format", "method", "target", "bytes", "bits", "KL", "same top token", "perplexity")


@dataclass(frozen=True)
class Entry:
    """One of our forms: weights, /head and @size where they are given, and how they are found."""

    name: str
    weights: str
    head: str | None
    size: str | None
    quality: str
    folds: tuple[str, ...] = ()

    @staticmethod
    def parse(name: str, method: str) -> Entry:
        """From WEIGHTS[/HEAD][@SIZE] and QUALITY[+awq][+rotate]. Raises as they do."""
        form, _, size = name.partition("@")
        weights, _, head = form.partition("/")
        quality, *folds = method.split("+")
        if unknown := set(folds) - {AWQ, ROTATE}:
            raise UsageError(f"method {method!r}: {min(unknown)}", f"use +{AWQ} or +{ROTATE}")
        Formats.parse(weights, head or None)
        Quality.parse(quality, None)
        return Entry(name, weights, head or None, size or None, quality, tuple(folds))

    @property
    def method(self) -> str:
        """The quality with what is folded in."""
        return "+".join((self.quality, *self.folds))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the table."""
    group = parser.add_argument_group("table of a checkpoint's forms (--table)")
    group.add_argument(
        "--table", action="store_true", help="BUNDLE is a checkpoint: measure many forms of it"
    )
    group.add_argument(
        "--formats",
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help=f"formats, each WEIGHTS[/HEAD][@SIZE] as w4g32@5bpw ({DEFAULT_FORMATS})",
    )
    group.add_argument(
        "--qualities",
        default="fast,good",
        metavar="LIST",
        help=f"methods, each QUALITY[+{AWQ}][+{ROTATE}] (fast,good)",
    )
    group.add_argument(
        "--targets",
        action="append",
        metavar="TARGET",
        help="a target to run on (ref); give it again for each further one",
    )
    group.add_argument(
        "--peer-formats", default="", metavar="LIST", help="llama.cpp's formats, as Q4_0,Q4_K_M"
    )
    group.add_argument(
        "--peer-python",
        metavar="FILE",
        help="a Python that has llama_cpp; without it, the gguf package makes what it can",
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw KL against size, as SVG")
    group.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def run_table(args: argparse.Namespace) -> int:
    """Measure and print; the last line of --json has every row."""
    entries, targets = list(_entries(args)), args.targets or ["ref"]
    for target in targets:
        choose_target(target)  # before forms that take minutes are made
    bar = Bar(quiet=args.quiet)
    source = Path(args.bundle)
    job = prepare(source, Formats.parse("f32"))
    with suited_to(job.model.graph), tempfile.TemporaryDirectory(prefix="lutra-eval-") as folder:
        samples = _samples(job, args.text, args.max_tokens or DEFAULT_TOKENS)
        exact = Exact(job.model, job.weights, samples)
        rows = list(_ours(entries, targets, source, exact, Path(folder), bar))
        if args.peer_formats:
            peers = Peers(
                source,
                Path(folder),
                job.model,
                str(job.checkpoint.config["model_type"]),
                args.peer_python or os.environ.get(PYTHON_VARIABLE),
                find_importance(job.model, job.weights, _calibration(job)),
            )
            rows += peers.rows(args.peer_formats.split(","), exact, bar)
    bar.finish()
    if args.plot:
        write_text(args.plot, draw(rows, f"{job.checkpoint.name}: KL against float"))
    _print(args, rows, samples)
    return 0


def _calibration(job: Job) -> Samples:
    """What our own conversions calibrate on."""
    record, tokenizer = read_tokenizer(job.checkpoint)
    return choose_samples(job.model, job.weights, record.bos_id, tokenizer)


def _samples(job: Job, text: Path | None, count: int) -> Samples:
    """The text given, else sequences drawn from a small model."""
    record, tokenizer = read_tokenizer(job.checkpoint)
    length = min(DEFAULT_LENGTH, job.model.graph.context)
    if text is not None:
        if tokenizer is None:
            raise UsageError("no tokenizer.json to read --text with", "leave --text out")
        return read_text(text, tokenizer, length, count)
    cure = "add --text FILE"
    if record.bos_id is None:
        raise UsageError("a model without a token to begin its own text with", cure)
    if job.model.graph.parameter_count > MOST_DRAWN:
        raise UsageError("a model too large to draw its own text from", cure)
    return held_out(job.model, job.weights, record.bos_id, length, count)


def _entries(args: argparse.Namespace) -> Iterator[Entry]:
    yield Entry.parse("f32", "fast")
    for quality in args.qualities.split(","):
        for name in args.formats.split(","):
            yield Entry.parse(name, quality)


def _ours(
    entries: Sequence[Entry],
    targets: Sequence[str],
    source: Path,
    exact: Exact,
    folder: Path,
    watcher: Watcher,
) -> Iterator[Row]:
    watcher.start("forms", len(entries), "forms")
    for entry in entries:
        out = folder / "form.lutra"
        convert(
            source,
            out,
            weights=entry.weights,
            head=entry.head,
            quality=entry.quality,
            size=entry.size,
            scaled=AWQ in entry.folds,
            rotated=ROTATE in entry.folds,
            overwrite=True,
        )
        for target in targets:
            yield _row(entry, out, target, exact)
        watcher.advance(1)


def _row(entry: Entry, path: Path, target: str, exact: Exact) -> Row:
    model = load(path, target=target, cache_format="f32")
    bundle = model.bundle
    stored = sum(bundle.byte_count(tensor.name) for tensor in bundle.graph.tensors)
    score = exact.score(each(model.logits, exact.samples.sequences))
    bits = 8 * stored / bundle.graph.parameter_count
    method = "self-noise" if entry.weights == "f32" else entry.method
    return Row(entry.name, method, str(model.program.target), stored, bits, score)


def lead(rows: Sequence[Row]) -> list[tuple[Row, Row | None]]:
    """Each of the peer's rows with our best that is no larger, on any target."""
    ours = [row for row in rows if not row.peer]
    pairs: list[tuple[Row, Row | None]] = []
    for peer in (row for row in rows if row.peer):
        fitting = [row for row in ours if row.byte_count <= peer.byte_count]
        pairs.append((peer, min(fitting, key=lambda row: row.score.kl, default=None)))
    return pairs


def _print(args: argparse.Namespace, rows: Sequence[Row], samples: Samples) -> None:
    if args.json:
        print_json(
            {
                "tokens": samples.count,
                "text": samples.origin,
                "rows": [asdict(row) for row in rows],
                "lead": [
                    {"peer": peer.name, "ours": ours and ours.name, "method": ours and ours.method}
                    | {"lower": ours is not None and ours.score.kl < peer.score.kl}
                    for peer, ours in lead(rows)
                ],
            }
        )
        return
    print(f"{samples.count} tokens, {samples.origin} (measured)")
    print()
    _show(args.markdown, [_HEAD, *map(_cells, rows)])
    if pairs := lead(rows):
        print()
        head = ("llama.cpp", "bytes", "KL", "ours, no larger", "bytes", "KL", "share")
        _show(args.markdown, [head, *(_pair(peer, ours) for peer, ours in pairs)])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.method,
        row.target,
        f"{row.byte_count:,}",
        f"{row.bits_per_weight:.2f}",
        f"{row.score.kl:.4g}",
        f"{100 * row.score.agreement:.1f} %",
        f"{row.score.perplexity:.3f}",
    )


def _pair(peer: Row, ours: Row | None) -> tuple[str, ...]:
    left = (peer.name.removeprefix("llama.cpp "), f"{peer.byte_count:,}", f"{peer.score.kl:.4g}")
    if ours is None:
        return (*left, "none", "", "", "")
    share = ours.score.kl / peer.score.kl
    right = f"{ours.byte_count:,}", f"{ours.score.kl:.4g}", f"{share:.2f}"
    return (*left, f"{ours.name} {ours.method}", *right)


def _show(markdown: bool, rows: Sequence[Sequence[str]]) -> None:
    if not markdown:
        print_table(rows)
        return
    for index, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if index == 0:
            print("| " + " | ".join("---" for _ in row) + " |")
