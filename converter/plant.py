"""Outlier channels planted in a checkpoint without changing what it computes.

Large models have channels whose activations are 50 times the others' (SmoothQuant, arXiv
2211.10438; llm.npu, section 3.3); small ones have not. Here a norm's weight is multiplied in a few
channels, and the weights of the projections behind it divided: logits stay, activations do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.models.builder import Model
from converter.sources.source import Source
from edge.graph import Linear, Norm
from edge.planes import Part
from edge.tensorfile import TensorFileWriter

Floats = NDArray[np.float32]

_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Planting:
    """How many channels of what share of the norms, and by how much at least and at most."""

    channels: int = 1
    share: float = 0.5
    least: float = 50.0
    most: float = 100.0
    seed: int = 0


def plant(source: Source, model: Model, out: Path, planting: Planting) -> tuple[str, ...]:
    """Write the checkpoint with outliers to `out`, in float32; returns the norms that have them."""
    factors = dict(_choose(model, planting))
    scaled = {model.origins[norm].name: norm for norm in factors}
    divided = _readers(model, factors)
    out.mkdir(parents=True)
    names = sorted({origin.name for origin in model.origins.values()})
    parts = {name: Part("float32", source.shape(name)) for name in names}
    writer = TensorFileWriter(out / "model.safetensors", parts)
    for name in names:
        values = source.rows(name, 0, source.shape(name)[0]).astype(np.float32)
        if name in scaled:
            plus = np.float32(model.origins[scaled[name]].transform == "plus_one")
            values = (values + plus) * factors[scaled[name]] - plus
        for first, last, norm in divided.get(name, ()):
            values[first:last] /= factors[norm]
        writer.write(name, values)
    writer.close()
    for name in _FILES:
        if (content := source.read_bytes(name)) is not None:
            (out / name).write_bytes(content)
    config = source.config | {"torch_dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tuple(factors)


def _choose(model: Model, planting: Planting) -> Iterator[tuple[str, Floats]]:
    """Norm tensors that projections alone read, with a factor for every channel."""
    random = np.random.default_rng(planting.seed)
    norms = [norm for norm, _ in _plantable(model)]
    count = max(round(planting.share * len(norms)), 1)
    for index in sorted(random.choice(len(norms), count, replace=False)):
        width = model.graph.tensor(norms[index]).shape[0]
        factors = np.ones(width, np.float32)
        channels = random.choice(width, planting.channels, replace=False)
        factors[channels] = random.uniform(planting.least, planting.most, planting.channels)
        yield norms[index], factors


def _plantable(model: Model) -> Iterator[tuple[str, list[Linear]]]:
    """Norms whose values only projections of a layer read, with those."""
    ops = list(model.graph.ops())
    for op in ops:
        if isinstance(op, Norm) and op.weight.startswith("layers."):
            readers = [other for other in ops if op.out in other.inputs()]
            linears = [other for other in readers if isinstance(other, Linear)]
            if linears and len(linears) == len(readers):
                yield op.weight, linears


def _readers(model: Model, factors: dict[str, Floats]) -> dict[str, list[tuple[int, int, str]]]:
    """Rows of checkpoint tensors that read a planted norm: first, last, and the norm."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for norm, linears in _plantable(model):
        for op in linears if norm in factors else ():
            origin = model.origins[op.weight]
            last = origin.first_row + model.graph.tensor(op.weight).shape[0]
            found.setdefault(origin.name, []).append((origin.first_row, last, norm))
    return found
