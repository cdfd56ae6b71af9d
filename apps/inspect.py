"""Show what is in a bundle, or in a checkpoint: sizes, formats, graphs. Reads no weights.

Of a checkpoint (a folder or a GGUF file), how its tensors are stored and what a conversion would
make of them.

examples:
  lutra inspect model.lutra
  lutra inspect model.gguf
  lutra inspect model.lutra --tensors
  lutra inspect model.lutra --graph
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from apps.output import megabytes, print_json, print_table
from apps.pocket.bundle import NAME, find_bundle
from edge.bundle import Bundle
from edge.manifest import FILE_NAME as MANIFEST

if TYPE_CHECKING:
    from converter.convert import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=find_bundle,
        help=f"folder that lutra convert made, {NAME}, or a checkpoint",
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--graph", action="store_true", help="print the decode graph, op by op")


def run(args: argparse.Namespace) -> int:
    path = Path(args.bundle)
    if path.is_file() or _is_checkpoint(path):
        return _inspect_source(path, args)
    bundle = Bundle.open(path)
    if args.json:
        print_json(_values(bundle))
        return 0
    _print_summary(bundle)
    if args.tensors:
        print()
        print_table(
            [("tensor", "shape", "format", "size", "relative RMS error"), *_tensor_rows(bundle)]
        )
    if args.graph:
        print()
        print(bundle.graph)
    return 0


def _is_checkpoint(path: Path) -> bool:
    if (path / MANIFEST).is_file():
        return False
    named = any((path / name).is_file() for name in ("config.json", "model.safetensors"))
    return named or any(path.glob("*.gguf"))


def _inspect_source(path: Path, args: argparse.Namespace) -> int:
    """What a checkpoint has; the converter is needed for it, and is not on a device."""
    from converter.convert import prepare
    from converter.plan import Formats

    job = prepare(path, Formats.parse())
    if args.json:
        print_json(_source_values(job))
        return 0
    source, graph = job.checkpoint, job.model.graph
    values = _source_values(job)
    print_table(
        [
            ("model", f"{source.name} ({values['model_type']}), not converted"),
            ("weights", f"{graph.parameter_count:,}"),
            ("tensors", values["source"]),
            ("context", f"{graph.context} tokens, vocabulary {graph.vocabulary}"),
        ]
    )
    print("\nlutra convert would make of it:\n")
    print_table(job.plan.rows())
    for note in job.notes:
        print(note)
    if args.tensors:
        print()
        names = sorted(source.tensor_names)
        rows = [(n, "x".join(map(str, source.shape(n))), source.dtype(n)) for n in names]
        print_table([("tensor", "shape", "type"), *rows])
    if args.graph:
        print()
        print(graph)
    return 0


def _source_values(job: Job) -> dict[str, object]:
    from converter.sources.source import describe

    source, graph = job.checkpoint, job.model.graph
    return {
        "name": source.name,
        "model_type": str(source.config["model_type"]),
        "source": describe(source),
        "parameters": graph.parameter_count,
        "context": graph.context,
        "vocabulary": graph.vocabulary,
        "layers": len(graph.caches),
        "kept": sum(planned.kept for planned in job.plan.tensors),
        "notes": list(job.notes),
        "tensors": {
            name: {"shape": list(source.shape(name)), "type": source.dtype(name)}
            for name in sorted(source.tensor_names)
        },
    }


def _print_summary(bundle: Bundle) -> None:
    manifest, values = bundle.manifest, _values(bundle)
    graph = manifest.graph
    print_table(
        [
            ("model", f"{manifest.name} ({manifest.model_type}), by lutra {manifest.lutra}"),
            ("weights", f"{values['parameters']:,} at {values['bits_per_weight']:.2f} bits"),
            ("size", megabytes(bundle_bytes(bundle))),
            ("context", f"{graph.context} tokens, vocabulary {graph.vocabulary}"),
            ("converted from", manifest.source or "?"),
            ("layers", f"{len(graph.caches)}, {sum(1 for _ in graph.ops())} ops"),
            ("chat template", "yes" if manifest.tokenizer.chat_template else "no"),
        ]
    )
    print()
    print_table([("format", "tensors", "weights", "size"), *_format_rows(bundle)])
    print()
    print_table(
        [("graph", "rows", "logit rows")]
        + [(size.name, size.rows, size.logit_rows) for size in manifest.graph_sizes]
    )
    print()
    print_table(
        [("file", "size"), *((n, megabytes(r.byte_count)) for n, r in manifest.files.items())]
    )
    if manifest.artifacts:
        print()
        print_table([("compiled for", "file"), *((a.target, a.path) for a in manifest.artifacts)])


def _format_rows(bundle: Bundle) -> list[tuple[str, int, str, str]]:
    tensors, weights, sizes = Counter[str](), Counter[str](), Counter[str]()
    for tensor in bundle.graph.tensors:
        form = str(bundle.manifest.tensors[tensor.name].form)
        tensors[form] += 1
        weights[form] += math.prod(tensor.shape)
        sizes[form] += bundle.byte_count(tensor.name)
    return [(f, tensors[f], f"{weights[f]:,}", megabytes(sizes[f])) for f in sorted(tensors)]


def _tensor_rows(bundle: Bundle) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for tensor in bundle.graph.tensors:
        record = bundle.manifest.tensors[tensor.name]
        shape = "x".join(map(str, tensor.shape))
        size = megabytes(bundle.byte_count(tensor.name))
        rows.append(
            (tensor.name, shape, str(record.form), size, f"{record.relative_rms_error:.4f}")
        )
    return rows


def bundle_bytes(bundle: Bundle) -> int:
    """Bytes of all files that the manifest lists."""
    return sum(record.byte_count for record in bundle.manifest.files.values())


def _values(bundle: Bundle) -> dict[str, object]:
    manifest, graph = bundle.manifest, bundle.graph
    parameters = graph.parameter_count
    stored = sum(bundle.byte_count(tensor.name) for tensor in graph.tensors)
    return {
        "name": manifest.name,
        "model_type": manifest.model_type,
        "lutra": manifest.lutra,
        "source": manifest.source,
        "parameters": parameters,
        "bits_per_weight": 8 * stored / parameters,
        "bytes": bundle_bytes(bundle),
        "context": graph.context,
        "vocabulary": graph.vocabulary,
        "layers": len(graph.caches),
        "formats": {form: {"tensors": count} for form, count, *_ in _format_rows(bundle)},
        "graphs": [vars(size) for size in manifest.graph_sizes],
        "files": {name: vars(record) for name, record in manifest.files.items()},
        "artifacts": [{"target": str(a.target), "path": a.path} for a in manifest.artifacts],
        "tensors": {
            tensor.name: {
                "shape": list(tensor.shape),
                "format": str(manifest.tensors[tensor.name].form),
                "bytes": bundle.byte_count(tensor.name),
                "relative_rms_error": manifest.tensors[tensor.name].relative_rms_error,
            }
            for tensor in graph.tensors
        },
    }
