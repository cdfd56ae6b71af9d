"""Decode by table lookup on a SoC's NPU, modelled, beside what T-MAN (arXiv 2511.11248) published.

    python -m npu.hvx.model [--soc SM8650] [--json]

A token takes as long as reading weights, a 16-bit head, keys and values by DMA, which overlaps with
the lookup loops (packets and waits of `Loop.cycles`, on four vector contexts). No source tells the
NPU's clock: the table has the one from which on memory is the limit, to be compared with 500 to 750
MHz in llm.npu (arXiv 2407.05858). Making tables, attention and norms are not counted. Energy is the
SoC's power with a busy NPU times the time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from edge.errors import LutraError
from edge.formats import Format
from edge.jobs import NPU
from edge.planes import TILE
from npu.hvx import inner
from npu.hvx.tables import BLOCK
from npu.hvx.turn import tiles_of
from npu.soc.calibrate import decode_bytes
from npu.soc.predict import Decode
from npu.soc.published import BITNET, QNN, T_MAN_ROW, EnergyRow
from npu.soc.socs import Soc, find_soc
from npu.soc.work import ModelWork, uniform_work

LLAMA_3 = uniform_work(
    "Llama-3.1-8B",
    layers=32,
    width=4096,
    query_width=4096,
    kv_width=1024,
    feed_forward=14336,
    vocabulary=128256,
)
QWEN_3 = uniform_work(
    "Qwen3-8B",
    layers=36,
    width=4096,
    query_width=4096,
    kv_width=1024,
    feed_forward=12288,
    vocabulary=151936,
)

# Vector contexts of v73 and v75, each with a thread.
CONTEXTS = 4

# T-MAN's: a prompt of 1024, then 128 tokens; the mean of what a token sees. Keys, values: 16 bits.
_CONTEXT = 1024 + 128 // 2

# Bits that a group's scale and zero take.
_SCALE_BITS, _ZERO_BITS = 16, 8


@dataclass(frozen=True)
class Row:
    """A model's decode. `clock_mhz` is where its loops take as long as memory; None for QNN's."""

    model: str
    weights: str
    gigabytes: float
    clock_mhz: float | None
    tok_s: float
    joules: float
    published: EnergyRow | None = None

    def figures(self) -> list[tuple[float, float | None]]:
        """Tokens a second and joules a token, each with what is published."""
        if self.published is None:
            return [(self.tok_s, None), (self.joules, None)]
        row = self.published
        return [(self.tok_s, row.decode_w / row.decode_j), (self.joules, row.decode_j)]


def rows(soc: Soc) -> Iterator[Row]:
    """T-MAN's three models in its formats, and QNN's 4 bits a channel beside them."""
    yield looked_up(soc, BITNET, Format.parse("ternary"), T_MAN_ROW)
    yield _row(soc, BITNET, "QNN, 4 bits a channel", decode_bytes(BITNET, 4), published=QNN)
    for work in (LLAMA_3, QWEN_3):
        for text in ("w2g64a", "w4g64a"):
            yield looked_up(soc, work, Format.parse(text))
        yield _row(soc, work, "QNN, 4 bits a channel", decode_bytes(work, 4))


def looked_up(soc: Soc, work: ModelWork, form: Format, published: EnergyRow | None = None) -> Row:
    """A model with all its layers in a format, by the loops of `inner`; the head is 16-bit."""
    group_bits = 0.0
    if form.granularity == "group":
        group_bits = (_SCALE_BITS + _ZERO_BITS * form.asymmetric) / form.group
    turns = work.weights / (tiles_of(form) * TILE * BLOCK)
    cycles = turns * inner.loop_of(form).cycles() / CONTEXTS
    weight_bytes = decode_bytes(work, form.bits) + work.weights * group_bits / 8
    return _row(soc, work, str(form), weight_bytes, cycles, published)


def _row(
    soc: Soc,
    work: ModelWork,
    weights: str,
    weight_bytes: float,
    cycles: float | None = None,
    published: EnergyRow | None = None,
) -> Row:
    step = Decode(soc, NPU, weight_bytes + 2 * work.kv_values * _CONTEXT)
    clock = cycles / step.seconds / 1e6 if cycles is not None else None
    tok_s = 1 / step.seconds
    return Row(work.name, weights, step.bytes_read / 1e9, clock, tok_s, step.joules, published)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu.hvx.model", description=__doc__)
    parser.add_argument("--soc", default="SM8650", help="default: SM8650")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    try:
        soc = find_soc(options.soc)
    except LutraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    made = list(rows(soc))
    if options.json:
        print(json.dumps([asdict(row) for row in made]))
        return 0
    print(f"modelled, {soc.name}: {_CONTEXT} tokens seen, {soc.npu_dma_bytes_s / 1e9:.0f} GB/s")
    print("| model | weights | GB a token | clock, MHz | tok/s | published | J | published |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in made:
        clock = f"{row.clock_mhz:.0f}" if row.clock_mhz is not None else ""
        cells = [row.model, row.weights, f"{row.gigabytes:.2f}", clock]
        for number, known in row.figures():
            beside = "" if known is None else f"{known:.3g} ({number / known - 1:+.0%})"
            cells += [f"{number:.3g}", beside]
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
