"""Opens whatever a user gives as a source: a folder, a GGUF file, or a name on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.models.config import Config
from converter.sources.awq import Awq
from converter.sources.bitnet import PackedBitnet
from converter.sources.compressed_tensors import CompressedTensors
from converter.sources.gguf import GgufFile
from converter.sources.gguf_parts import first_of
from converter.sources.gptq import Gptq
from converter.sources.huggingface import Checkpoint, open_checkpoint
from converter.sources.lora import Adapter, MergedSource
from converter.sources.packed import PackedCheckpoint, Packing
from converter.sources.source import Source
from edge.errors import SourceNotFound, UsageError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def open_source(
    source: str | Path, revision: str | None = None, lora: Sequence[str] = ()
) -> Source:
    """Open a folder in the Hugging Face layout, a GGUF file, or a hub name.

    `lora` are adapters to merge, as FOLDER or FOLDER:SCALE.

    A folder without config.json that holds one GGUF file stands for that file. Raises the errors
    of the readers, all of them before any weights are read.
    """
    opened = _open(source, revision)
    return MergedSource(opened, [Adapter.parse(text) for text in lora]) if lora else opened


def _open(source: str | Path, revision: str | None) -> Source:
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        path = _only_gguf(path) or path
    if not path.is_file():
        return _unpacked(open_checkpoint(source, revision))
    if revision is not None:
        raise UsageError(
            f"revision {revision!r} of {path}, which is a file here", "leave --revision out"
        )
    if path.suffix.lower() in _PICKLES:
        raise SourceNotFound(
            f"{path} is a pickle, which could run code",
            "save the model as safetensors (save_pretrained with safe_serialization)",
        )
    if path.suffix.lower() == ".safetensors":
        raise SourceNotFound(f"{path} is a file", "give the folder that holds config.json")
    return GgufFile(path)


def _unpacked(checkpoint: Checkpoint) -> Source:
    """A checkpoint as it is, or behind the reader of its packing. Raises UnsupportedMath."""
    config = dict(checkpoint.config)
    key = "quantization_config"
    if key not in config and (older := checkpoint.read_json("quantize_config.json")):
        config[key] = {"quant_method": "gptq", **older}  # AutoGPTQ before Transformers knew it
    if not isinstance(config.get(key), dict):
        return checkpoint
    section = Config(config[key], f"{key}.")
    packing: Packing
    match config[key].get("quant_method"):
        case "gptq":
            packing = Gptq.parse(section)
        case "awq":
            packing = Awq.parse(section)
        case "compressed-tensors":
            packing = CompressedTensors.parse(section)
        case "bitnet":  # its model file reads the section: activations depend on it
            packing = PackedBitnet()
            return PackedCheckpoint(checkpoint, packing, config)
        case _:
            raise section.unsupported("quant_method", "need gptq, awq, compressed-tensors, bitnet")
    del config[key]
    return PackedCheckpoint(checkpoint, packing, config)


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has just one, or parts of one. Raises SourceNotFound."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1 and (first := first_of(found)):
        return first
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise SourceNotFound(f"{folder}: several GGUF files ({names})", "give the path of one")
    return found[0] if found else None
