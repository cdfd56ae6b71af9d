"""The compiler's own account of a graph: that all of it is on the HTP, and in integers.

It takes groups of ops whose types do not fit together in float16, and nodes that it does not know
not at all, and says so only in the files that are read here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import NpuRefused

# QNN's codes of fixed-point types.
_INTEGERS = {
    0x0304: "int4",
    0x0308: "int8",
    0x0316: "int16",
    0x0332: "int32",
    0x0404: "uint4",
    0x0408: "uint8",
    0x0416: "uint16",
    0x0432: "uint32",
}
_FLOATS = {0x0216: "float16", 0x0232: "float32"}
_CONVERSIONS = ("Quantize", "Dequantize", "Cast")

TRACE = "qnn_op_trace.json"


@dataclass(frozen=True)
class Account:
    """What became of a graph: QNN ops by kind, and why ONNX nodes were refused."""

    ops: Counter[str]
    floats: tuple[str, ...]  # tensors that are not integers, with their op
    refused: tuple[str, ...]  # node, and the reason


def read_account(folder: Path) -> Account:
    """Read what the compiler wrote into `folder`."""
    ops: Counter[str] = Counter()
    floats: list[str] = []
    refused: list[str] = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        if path.name == TRACE:
            refused += _refused(values)
        elif "nodes" in values.get("graph", {}):
            nodes = values["graph"]["nodes"]
            ops.update(node["type"] for node in nodes.values())
            floats += _float_tensors(nodes, values["graph"]["tensors"])
    return Account(ops, tuple(floats), tuple(refused))


def check_account(account: Account, name: str) -> None:
    """Raises NpuRefused where a node is refused, anything is float, or nothing was compiled."""
    if account.refused:
        raise NpuRefused(f"{name}: the HTP does not take {account.refused[0]}", _CURE)
    if account.floats:
        raise NpuRefused(f"{name}: {account.floats[0]}, on an NPU graph of integers", _CURE)
    conversions = [kind for kind in _CONVERSIONS if account.ops[kind]]
    if conversions:
        raise NpuRefused(f"{name}: the compiler put in {', '.join(conversions)}", _CURE)
    if not account.ops:
        raise NpuRefused(f"{name}: the compiler gave no account of its graph", _CURE)


_CURE = "use another --npu-mode, or report it with the versions that lutra doctor prints"


def _refused(trace: Any) -> Iterator[str]:
    for node in trace.get("unsupported_nodes", []):
        kind = node.get("op_type", node.get("type", "a node"))
        where = node.get("name", node.get("node_name", ""))
        yield f"{kind} {where}: {node.get('reason', node.get('message', 'no reason given'))}"


def _float_tensors(nodes: Any, tensors: Any) -> Iterator[str]:
    for node in nodes.values():
        for name in (*node["input_names"], *node["output_names"]):
            code = tensors[name]["data_type"]
            if code not in _INTEGERS and name in tensors:
                kind = _FLOATS.get(code, f"type {code:#06x}")
                yield f"{node['type']} works on {kind} ({name})"
