"""What may crash runs here, in a process of its own: compiling graphs, and trying binaries.

`python -m npu.htp.child JOB.json` does a job that `npu.htp.guard` wrote, and prints one JSON object
a line: {"begun": name}, {"done": name, ...} or {"error": ...}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edge.errors import LutraError
from npu.htp.provider import qnn_session


def main(path: str) -> int:
    """Do the job in a file; returns the exit code."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    kept = []  # what shares a binary, until the last has been made
    try:
        for item in job["items"]:
            _say({"begun": item["name"]})
            kept.append(_compile(job, item) if job["verb"] == "compile" else _load(job, item))
            if not job["shared"]:
                kept.clear()
            _say({"done": item["name"]})
    except LutraError as error:
        kind = type(error).__name__
        _say({"error": {"kind": kind, "what": error.what, "cure": error.cure}})
    return 0


def compile_options(soc: int, trace: Path, *, block_weights: bool) -> dict[str, str]:
    """The provider's options for compiling a graph and saying what became of it."""
    options = {
        "soc_model": str(soc),
        "htp_graph_finalization_optimization_mode": "3",
        "enable_framework_op_trace": "1",
        "framework_op_trace_dir": str(trace),
        "dump_json_qnn_graph": "1",
        "json_qnn_graph_dir": str(trace),
    }
    # Without it, weights with scales of blocks are dequantized to float16.
    return options | ({"enable_block_quant_weight_optimization": "1"} if block_weights else {})


def _compile(job: dict[str, Any], item: dict[str, Any]) -> object:
    out = Path(item["out"])
    trace = Path(item["trace"])
    options = compile_options(job["soc"], trace, block_weights=job["block_weights"])
    last = job["shared"] and item is job["items"][-1]
    return qnn_session(Path(item["onnx"]), options, context=out, shared=job["shared"], last=last)


def _load(job: dict[str, Any], item: dict[str, Any]) -> object:
    return qnn_session(Path(item["path"]), shared=job["shared"])


def _say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
