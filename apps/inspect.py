"""Show what is in a bundle: sizes, formats, graphs. Reads the manifest, not the weights.

examples:
  lutra inspect model.lutra
  lutra inspect model.lutra --tensors
  lutra inspect model.lutra --graph
"""

from __future__ import annotations

import argparse
import math
from collections import Counter

from apps.output import megabytes, print_json, print_table
from edge.bundle import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that lutra convert made")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--graph", action="store_true", help="print the decode graph, op by op")


def run(args: argparse.Namespace) -> int:
    bundle = Bundle.open(args.bundle)
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


def _print_summary(bundle: Bundle) -> None:
    manifest, values = bundle.manifest, _values(bundle)
    graph = manifest.graph
    print_table(
        [
            ("model", f"{manifest.name} ({manifest.model_type}), by lutra {manifest.lutra}"),
            ("weights", f"{values['parameters']:,} at {values['bits_per_weight']:.2f} bits"),
            ("size", megabytes(bundle_bytes(bundle))),
            ("context", f"{graph.context} tokens, vocabulary {graph.vocabulary}"),
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
