"""Published figures that the model is calibrated on and checked against.

Sources: llm.npu, arXiv 2407.05858 (tables 3 and 5, figures 18 and 19, text of section 4); T-MAN,
arXiv 2511.11248 (table 3); T-MAC, arXiv 2407.00088 (table 6). On Snapdragon 8 Gen 3 but where said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from npu.soc.work import Matrix, ModelWork, uniform_work


@dataclass(frozen=True)
class MatmulTime:
    """llm.npu, table 3: rows x width times a matrix in 8 bits, in milliseconds."""

    rows: int
    matrix: Matrix
    npu_ms: float


MATMULS = (
    MatmulTime(64, Matrix(2048, 2048), 0.9),
    MatmulTime(64, Matrix(8192, 2048), 1.5),
    MatmulTime(64, Matrix(11008, 2048), 2.0),
    MatmulTime(32, Matrix(4096, 4096), 1.7),
    MatmulTime(32, Matrix(8192, 4096), 2.9),
    MatmulTime(32, Matrix(11008, 4096), 4.1),
)

# The shapes of the models measured; `matrices` are those of a feed-forward.
_SHAPES = """
    name          layers  width  query_width  kv_width  feed_forward  matrices  vocabulary
    Qwen1.5-1.8B      24   2048         2048      2048          5504         3      151936
    Gemma-2B          18   2048         2048       256         16384         3      256000
    Phi-2-2.7B        32   2560         2560      2560         10240         2       51200
    LLaMA-2-7B        32   4096         4096      4096         11008         3       32000
    Mistral-7B        32   4096         4096      1024         14336         3       32000
    BitNet-2B         30   2560         2560       640          6912         3      128256
"""


def _models(table: str) -> Iterator[ModelWork]:
    (_, *columns), *rows = map(str.split, table.strip().splitlines())
    for name, *numbers in rows:
        yield uniform_work(name, **dict(zip(columns, map(int, numbers), strict=True)))


QWEN, GEMMA, PHI, LLAMA, MISTRAL, BITNET = _models(_SHAPES)
MODELS = (QWEN, GEMMA, PHI, LLAMA, MISTRAL)


@dataclass(frozen=True)
class PrefillTime:
    """llm.npu, table 5: prefill seconds, mean over prompts of these lengths."""

    dataset: str
    lengths: range
    model: ModelWork
    seconds: float


def _prefills(dataset: str, shortest: int, longest: int, *times: float) -> list[PrefillTime]:
    lengths = range(shortest, longest + 1)
    return [PrefillTime(dataset, lengths, *pair) for pair in zip(MODELS, times, strict=True)]


PREFILLS = (
    *_prefills("2wiki", 1451, 1672, 1.49, 1.68, 2.79, 4.62, 4.61),
    *_prefills("TriviaQA", 1511, 1787, 1.49, 1.75, 2.94, 4.93, 4.82),
    *_prefills("DroidTask", 656, 827, 1.16, 0.97, 2.72, 4.28, 4.26),
    *_prefills("DroidTask, short", 505, 645, 0.90, 0.72, 2.07, 3.10, 3.13),
    *_prefills("Persona-Chat", 488, 584, 2.92, 0.67, 1.91, 2.88, 2.88),
)
PREFILL_CALIBRATED = PREFILLS[3]

# llm.npu, section 4.4, Qwen1.5-1.8B: the NPU's share of waiting in order, and how much latency
# goes out of order.
BUBBLES_IN_ORDER = 0.37
LATENCY_SAVED = (0.18, 0.44)

# llm.npu, figures 18 and 19: model, prompt tokens and prefill tok/s out of order. They contradict
# table 5. Of 64 tokens a chunk must have been shorter than of 256: they took about half the time.
RATES = (
    ("figure 18", GEMMA, 64, 148.0),
    ("figure 18", GEMMA, 256, 322.0),
    ("figure 18", GEMMA, 1024, 604.0),
    ("figure 19", GEMMA, 512, 420.0),
    ("figure 19", QWEN, 512, 569.0),
    ("figure 19", LLAMA, 512, 186.0),
)


@dataclass(frozen=True)
class EnergyRow:
    """T-MAN, table 3: BitNet-2B with 1024 tokens of prompt; watts and joules a token.

    `weight_bits` are those read in decode.
    """

    framework: str
    weight_bits: int
    prefill_w: float
    prefill_j: float
    decode_w: float
    decode_j: float


QNN = EnergyRow("QNN W4A16", 4, 4.96, 0.0073, 4.72, 0.134)
LLM_NPU_ROW = EnergyRow("llm.npu W8A8, W4A8", 4, 8.89, 0.0269, 8.31, 0.612)
BITNET_CPP = EnergyRow("bitnet.cpp W2A8", 2, 8.22, 0.196, 8.22, 0.490)
T_MAN_ROW = EnergyRow("T-MAN W2A16", 2, 5.01, 0.0080, 4.91, 0.101)
ENERGY_TOKENS = 1024
T_MAN_CHUNK = 128  # rows of its matmul kernels

# T-MAC, table 6: Llama-2-7B on the CPU, SoC, bits and decode tok/s (groups of 128, head f16): a
# OnePlus 12, and a Surface Laptop 7 with 4 of its 12 cores.
T_MAC_DECODE = (
    ("SM8650", 4, 10.19),
    ("SM8650", 2, 16.62),
    ("SC8380XP", 4, 21.63),
    ("SC8380XP", 2, 31.83),
)
