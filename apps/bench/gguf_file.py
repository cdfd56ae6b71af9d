"""GGUF files for the peer, written from the checkpoint that a bundle was converted from.

Tensors are quantized by the `gguf` package, or (Q2_K) by llama.cpp itself, all to the one format
asked for where their rows allow it: llama.cpp's "pure" mixture, the smallest it makes. The files
carry no tokenizer: both sides of a benchmark are fed token ids.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.models import build_model
from converter.models.builder import Model
from converter.sources.huggingface import Checkpoint, open_checkpoint
from converter.weights import Weights
from edge.disk import disk_errors
from edge.errors import (
    MissingDependency,
    TruncatedSource,
    UnknownArchitecture,
    UnknownFormat,
    UnsupportedMath,
)
from edge.graph import Attention, Gate, Norm, Rope
from edge.watch import Silent, Watcher

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

Floats = NDArray[np.float32]

# Formats that the gguf package quantizes to; llama.cpp makes the rest from F16.
PACKAGE_FORMATS = ("F16", "Q8_0", "Q4_0", "TQ2_0")
LLAMACPP_FORMATS = ("Q2_K",)
FORMATS = PACKAGE_FORMATS + LLAMACPP_FORMATS

FINGERPRINT = "lutra.source"

# Tensors of a graph -> llama.cpp's names. A layer's are "layers.N." and "blk.N.".
_NAMES = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attention_sub_norm": "attn_sub_norm",
    "o": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "feed_forward_sub_norm": "ffn_sub_norm",
    "down": "ffn_down",
}


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp computes for a model type.

    `interleaved`: it turns neighbouring elements of a head where the checkpoint turns element i
    with i + half, so the rows of q and k change places. `rope_factors`: it reads a divisor for
    each frequency. `gate` is its gate function; a checkpoint with the one of `gate_besides` is
    taken too, for its times alone. `theta` is the base of a config that states none.
    """

    name: str
    interleaved: bool = False
    rope_factors: bool = False
    gate: str = "silu"
    gate_besides: str = ""
    theta: float = 1e4


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True, rope_factors=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "bitnet": Architecture("bitnet", gate_besides="relu2", theta=5e5),
}


@dataclass(frozen=True)
class Summary:
    """What a GGUF file holds.

    `form` is the format asked for, `formats` counts matrices by theirs. `bytes_per_token` is what
    one decode step reads of the weights: all tensors, but of an embedding apart from the head a
    single row.
    """

    architecture: str
    form: str
    formats: dict[str, int]
    tensor_bytes: int
    bytes_per_token: int


def require_gguf() -> None:
    """Raise MissingDependency where the gguf package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingDependency("GGUF files need the gguf package", "pip install gguf") from error


def check_source(checkpoint: Checkpoint) -> list[str]:
    """Check that llama.cpp computes what the checkpoint's config says.

    Returns notes on differences that change results but no shapes, hence no times. Raises
    UnknownArchitecture or UnsupportedMath.
    """
    arch = _architecture(checkpoint.config)
    graph = build_model(checkpoint.config).graph
    notes: list[str] = []
    for op in graph.ops():
        match op:
            case Attention() if op.window is not None or op.softcap is not None:
                raise _unsupported(arch, "sliding windows or soft caps")
            case Rope() if 2 * graph.tensor(op.frequencies).shape[0] != op.head_dim:
                raise _unsupported(arch, "partial rotary embeddings")
            case Rope() if op.scale != 1:
                raise _unsupported(arch, "scaled rotary embeddings")
            case Gate() if op.function != arch.gate:
                if op.function != arch.gate_besides:
                    raise _unsupported(arch, f"gates by {op.function}")
                note = (
                    f"llama.cpp's {arch.name} gates by {arch.gate} where the checkpoint does by "
                    f"{op.function}: the same work, other logits"
                )
                notes = [note]
    return notes


def write_gguf(
    source: str | Path, out: str | Path, form: str = "Q4_0", watcher: Watcher | None = None
) -> None:
    """Write a checkpoint as `form`, one of PACKAGE_FORMATS; memory stays bounded.

    Raises UnknownFormat, UnknownArchitecture, UnsupportedMath, MissingDependency or NoSpace.
    """
    if form not in PACKAGE_FORMATS:
        raise UnknownFormat(f"GGUF format {form!r}", f"use one of {', '.join(PACKAGE_FORMATS)}")
    require_gguf()
    checkpoint = open_checkpoint(source)
    check_source(checkpoint)
    Weights(build_model(checkpoint.config), checkpoint).check()
    partial = Path(out).with_name(Path(out).name + ".partial")
    try:
        with disk_errors(Path(out), "free some space, or choose another place"):
            _Writer(checkpoint, partial, form, watcher or Silent()).write()
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def read_summary(path: str | Path) -> Summary:
    """Read what a file holds, without its tensors. Raises TruncatedSource."""
    reader = _open(Path(path))
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    read = sum(sizes.values())
    if "output.weight" in sizes:
        table = next(t for t in matrices if t.name == "token_embd.weight")
        read -= sizes["token_embd.weight"] * int(table.shape[1] - 1) // int(table.shape[1])
    return Summary(
        architecture=str(_field(reader, "general.architecture")),
        form=_form(reader),
        formats=dict(Counter(tensor.tensor_type.name for tensor in matrices)),
        tensor_bytes=sum(sizes.values()),
        bytes_per_token=read,
    )


def is_of(path: Path, source: str | Path) -> bool:
    """Whether a file was written from this checkpoint as it is now."""
    return _field(_open(path), FINGERPRINT) == source_fingerprint(open_checkpoint(source))


def source_fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of the config and of the shards' sizes and times."""
    facts = json.dumps([checkpoint.config, checkpoint.fingerprint], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def choose_format(form: str, shape: tuple[int, ...]) -> str:
    """The format that llama.cpp's quantizer gives a tensor: vectors stay float, and rows that are
    no whole blocks fall back to a smaller block (`tensor_type_fallback` in llama-quant.cpp)."""
    if len(shape) == 1:
        return "F32"
    for candidate in (form, "Q4_0"):
        if shape[1] % _type(candidate).block == 0:
            return candidate
    return "F16"


@dataclass(frozen=True)
class _Type:
    """A GGUF type: `block` values take `byte_count` bytes."""

    value: GGMLQuantizationType
    block: int
    byte_count: int

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) // self.block * self.byte_count


def _type(form: str) -> _Type:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    value = GGMLQuantizationType[form]
    return _Type(value, *GGML_QUANT_SIZES[value])


class _Writer:
    """One file being written."""

    def __init__(self, checkpoint: Checkpoint, path: Path, form: str, watcher: Watcher) -> None:
        from gguf import GGUFWriter

        self.checkpoint = checkpoint
        self.arch = _architecture(checkpoint.config)
        self.model = build_model(checkpoint.config)
        self.weights = Weights(self.model, checkpoint)
        self.form = form
        self.watcher = watcher
        self.path = path
        self.gguf: GGUFWriter = GGUFWriter(path, self.arch.name)

    def write(self) -> None:
        tensors = [t for t in self.model.graph.tensors if t.role != "constant"]
        factors = _rope_factors(self.arch, self.model, self.checkpoint.config)
        self._metadata()
        if factors is not None:
            self._declare("rope_freqs.weight", factors.shape)
        for tensor in tensors:
            self._declare(gguf_name(tensor.name), tensor.shape)
        try:
            self.gguf.write_header_to_file()
            self.gguf.write_kv_data_to_file()
            self.gguf.write_ti_data_to_file()
            self.watcher.start(self.form, self.model.graph.parameter_count, "weights")
            self._align()
            if factors is not None:
                self._append("F32", [factors])
            for tensor in tensors:
                self._append(choose_format(self.form, tensor.shape), self._blocks(tensor.name))
        finally:
            self.gguf.close()

    def _metadata(self) -> None:
        graph, config, gguf = self.model.graph, self.checkpoint.config, self.gguf
        cache = graph.caches[0]
        gguf.add_name(self.checkpoint.name)
        gguf.add_string(FINGERPRINT, source_fingerprint(self.checkpoint))
        gguf.add_file_type(_file_type(self.form))
        gguf.add_quantization_version(2)
        gguf.add_block_count(len(graph.caches))
        gguf.add_context_length(graph.context)
        gguf.add_embedding_length(graph.tensor("embed").shape[1])
        gguf.add_feed_forward_length(graph.tensor("layers.0.gate").shape[0])
        gguf.add_head_count(graph.tensor("layers.0.q").shape[0] // cache.head_dim)
        gguf.add_head_count_kv(cache.kv_heads)
        gguf.add_key_length(cache.head_dim)
        gguf.add_value_length(cache.head_dim)
        gguf.add_rope_dimension_count(cache.head_dim)
        gguf.add_rope_freq_base(_theta(self.arch, config))
        gguf.add_layer_norm_rms_eps(next(op.eps for op in graph.ops() if isinstance(op, Norm)))
        gguf.add_vocab_size(graph.vocabulary)
        gguf.add_tokenizer_model("no_vocab")

    def _declare(self, name: str, shape: tuple[int, ...]) -> None:
        kind = _type(choose_format(self.form, shape))
        size = kind.bytes_of(shape)
        self.gguf.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind.value)

    def _blocks(self, name: str) -> Iterator[Floats]:
        """A tensor's rows as llama.cpp orders them."""
        blocks = (block for _, block in self.weights.blocks(name))
        if not (self.arch.interleaved and name.split(".")[2:3] in (["q"], ["k"])):
            yield from blocks
            return
        yield interleave(np.concatenate(list(blocks)), self.model.graph.caches[0].head_dim)

    def _append(self, form: str, blocks: Iterable[Floats]) -> None:
        """One tensor's data, in the order of the declarations."""
        from gguf.quants import quantize

        assert self.gguf.fout is not None
        for block in blocks:
            quantize(block, _type(form).value).tofile(self.gguf.fout[0])
            self.watcher.advance(block.size)
        self._align()

    def _align(self) -> None:
        assert self.gguf.fout is not None
        self.gguf.write_padding(self.gguf.fout[0], self.gguf.fout[0].tell())


def gguf_name(name: str) -> str:
    """llama.cpp's name of a graph's tensor, such as blk.0.attn_q.bias."""
    part = "bias" if name.endswith(".bias") else "weight"
    stem = name.removesuffix(".bias")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{part}"
    _, layer, inner = stem.split(".")
    return f"blk.{layer}.{_LAYER_NAMES[inner]}.{part}"


def interleave(rows: Floats, head_dim: int) -> Floats:
    """Rows (or the bias) of q or k so that element i of a head is followed by i + half.

    Checkpoints turn element i with i + half, llama.cpp's llama turns neighbours.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    found = ARCHITECTURES.get(str(config.get("model_type")))
    if found is None:
        raise UnknownArchitecture(
            f"model_type {config.get('model_type')!r} has no GGUF form here",
            f"compare with llama.cpp on one of {', '.join(ARCHITECTURES)}",
        )
    return found


def _theta(arch: Architecture, config: Mapping[str, Any]) -> float:
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return float(section.get("rope_theta") or config.get("rope_theta") or arch.theta)


def _rope_factors(arch: Architecture, model: Model, config: Mapping[str, Any]) -> Floats | None:
    """What llama.cpp divides each frequency by, or None where all are plain."""
    frequencies = model.constants["rope"]
    exponents = np.arange(len(frequencies)) / len(frequencies)
    plain = _theta(arch, config) ** -exponents
    factors: Floats = (plain / frequencies).astype(np.float32)
    if np.allclose(factors, 1, atol=1e-4):
        return None
    if not arch.rope_factors:
        raise _unsupported(arch, "scaled rotary frequencies")
    return factors


def _unsupported(arch: Architecture, math_name: str) -> UnsupportedMath:
    return UnsupportedMath(
        f"the config asks for {math_name}, which llama.cpp's {arch.name} lacks in this form",
        "compare on another checkpoint",
    )


def _file_type(form: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType["MOSTLY_" + form])


def _open(path: Path) -> GGUFReader:
    require_gguf()
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise TruncatedSource(f"{path}: not a whole GGUF file ({error})", "remove it") from error


def _form(reader: GGUFReader) -> str:
    """The format that a whole file is named after."""
    from gguf import LlamaFileType

    value = _field(reader, "general.file_type")
    return "" if value is None else LlamaFileType(value).name.removeprefix("MOSTLY_")


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
