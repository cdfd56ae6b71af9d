"""The compiler's account, and what is refused by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.errors import NpuRefused
from npu.htp.trace import TRACE, check_account, read_account

UINT8, FLOAT16 = 0x0408, 0x0216


def write(folder: Path, kinds: dict[str, int], refused: list[dict[str, str]] | None = None) -> Path:
    nodes = {
        f"n{i}": {"type": kind, "input_names": ["x"], "output_names": [f"y{i}"]}
        for i, kind in enumerate(kinds)
    }
    tensors = {"x": {"data_type": UINT8}} | {
        f"y{i}": {"data_type": code} for i, code in enumerate(kinds.values())
    }
    (folder / "g.json").write_text(json.dumps({"graph": {"nodes": nodes, "tensors": tensors}}))
    (folder / "g_tensor_log.json").write_text(json.dumps({"other": 1}))
    (folder / TRACE).write_text(json.dumps({"unsupported_nodes": refused or []}))
    return folder


def test_integers_pass(tmp_path: Path) -> None:
    account = read_account(write(tmp_path, {"FullyConnected": UINT8, "Sigmoid": UINT8}))
    assert account.ops == {"FullyConnected": 1, "Sigmoid": 1}
    check_account(account, "layers.0.qkv")


@pytest.mark.parametrize(
    ("kinds", "refused", "named"),
    [
        ({"MatMul": FLOAT16}, [], r"MatMul works on float16 \(y0\)"),
        ({"Dequantize": UINT8}, [], "Dequantize"),
        ({}, [], "no account"),
        (
            {"Relu": UINT8},
            [{"op_type": "Sinh", "node_name": "bad", "reason": "not supported"}],
            "Sinh bad: not supported",
        ),
    ],
)
def test_others_are_refused_with_the_reason(
    tmp_path: Path, kinds: dict[str, int], refused: list[dict[str, str]], named: str
) -> None:
    with pytest.raises(NpuRefused, match=named):
        check_account(read_account(write(tmp_path, kinds, refused)), "layers.0.qkv")
