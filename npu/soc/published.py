"""Published figures that the model is calibrated on and checked against.

Sources: llm.npu, arXiv 2407.05858 (tables 3 and 5, figures 18 and 19, text of section 4); T-MAN,
arXiv 2511.11248 (table 3); T-MAC, arXiv 2407.00088 (table 6). On Snapdragon 8 Gen 3 but where said.
"""

from __future__ import annotations

from dataclasses import dataclass

from npu.soc.work import Matrix, ModelWork, uniform_work


@dataclass(frozen=True)
class MatmulTime:
    """llm.npu, table 3: rows x width times a matrix in 8 bits, in milliseconds."""

    rows: int
    matrix: Matrix
    npu_ms: float
    cpu_ms: float


MATMULS = (
    MatmulTime(64, Matrix(2048, 2048), 0.9, 4.2),
    MatmulTime(64, Matrix(8192, 2048), 1.5, 6.8),
    MatmulTime(64, Matrix(11008, 2048), 2.0, 11.6),
    MatmulTime(32, Matrix(4096, 4096), 1.7, 7.5),
    MatmulTime(32, Matrix(8192, 4096), 2.9, 13.1),
    MatmulTime(32, Matrix(11008, 4096), 4.1, 19.6),
)

# The shapes of the models measured.
QWEN = uniform_work(
    "Qwen1.5-1.8B",
    layers=24,
    width=2048,
    query_width=2048,
    kv_width=2048,
    feed_forward=5504,
    vocabulary=151936,
)
GEMMA = uniform_work(
    "Gemma-2B",
    layers=18,
    width=2048,
    query_width=2048,
    kv_width=256,
    feed_forward=16384,
    vocabulary=256000,
)
PHI = uniform_work(
    "Phi-2-2.7B",
    layers=32,
    width=2560,
    query_width=2560,
    kv_width=2560,
    feed_forward=10240,
    vocabulary=51200,
    gated=False,
)
LLAMA = uniform_work(
    "LLaMA-2-7B",
    layers=32,
    width=4096,
    query_width=4096,
    kv_width=4096,
    feed_forward=11008,
    vocabulary=32000,
)
MISTRAL = uniform_work(
    "Mistral-7B",
    layers=32,
    width=4096,
    query_width=4096,
    kv_width=1024,
    feed_forward=14336,
    vocabulary=32000,
)
BITNET = uniform_work(
    "BitNet-2B",
    layers=30,
    width=2560,
    query_width=2560,
    kv_width=640,
    feed_forward=6912,
    vocabulary=128256,
)


@dataclass(frozen=True)
class PrefillTime:
    """llm.npu, table 5: prefill seconds, mean over prompts of these lengths."""

    dataset: str
    lengths: range
    model: ModelWork
    seconds: float


def _prefills(dataset: str, shortest: int, longest: int, *times: float) -> list[PrefillTime]:
    models = (QWEN, GEMMA, PHI, LLAMA, MISTRAL)
    pairs = zip(models, times, strict=True)
    return [
        PrefillTime(dataset, range(shortest, longest + 1), model, time) for model, time in pairs
    ]


PREFILLS = (
    *_prefills("2wiki", 1451, 1672, 1.49, 1.68, 2.79, 4.62, 4.61),
    *_prefills("TriviaQA", 1511, 1787, 1.49, 1.75, 2.94, 4.93, 4.82),
    *_prefills("DroidTask", 656, 827, 1.16, 0.97, 2.72, 4.28, 4.26),
    *_prefills("DroidTask, short", 505, 645, 0.90, 0.72, 2.07, 3.10, 3.13),
    *_prefills("Persona-Chat", 488, 584, 2.92, 0.67, 1.91, 2.88, 2.88),
)
PREFILL_CALIBRATED = PREFILLS[3]

# llm.npu, section 4.4, Qwen1.5-1.8B: the NPU's share of waiting, and how much latency goes.
BUBBLES_IN_ORDER = 0.37
BUBBLES_OUT_OF_ORDER = 0.007
LATENCY_SAVED = (0.18, 0.44)
NPU_CHUNK_S = 0.315  # section 3.4: NPU time of one chunk of 256

# llm.npu, figure 19: prefill tok/s at 512 tokens, without and with out-of-order execution.
ABLATION = ((GEMMA, 355.0, 420.0), (QWEN, 395.0, 569.0), (LLAMA, 133.0, 186.0))

# llm.npu, figure 18: Gemma-2B, prompt tokens and prefill tok/s.
GEMMA_RATES = ((64, 148.0), (256, 322.0), (1024, 604.0))


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
