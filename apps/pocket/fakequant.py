"""Weights rounded to Lutra's formats within training, gradients passing straight through.

The grid is that of `converter.quantize.rtn` for a symmetric format with groups, so that rounding a
trained weight once more changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from converter.quantize.scales import covering
from edge.formats import Format


@dataclass(frozen=True)
class Rounding:
    """Formats by what a tensor is for; None leaves it as it is."""

    layers: Format | None = None
    embedding: Format | None = None

    def form_of(self, name: str) -> Format | None:
        """The format of a parameter, None for norms."""
        if name.startswith("embed_tokens"):
            return self.embedding
        return self.layers if name.endswith("proj.weight") else None


def round_to(weight: Tensor, form: Format) -> Tensor:
    """The nearest values that the format has, [rows, width]; the gradient is the weight's."""
    with torch.no_grad():
        groups = weight.reshape(-1, form.group_size(weight.shape[1]))
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scale = torch.where(-low > high, low, high) / -form.zero
        stored = covering(form, scale.float().cpu().numpy()).astype(np.float32)
        scale = torch.from_numpy(stored).to(scale)
        safe = torch.where(scale == 0, torch.inf, scale)
        codes = (groups / safe).round_().clamp_(-form.zero, form.levels - 1 - form.zero)
        change = (codes * scale).view_as(weight) - weight
    return weight + change


def rounded(network: nn.Module, rounding: Rounding) -> dict[str, Tensor]:
    """The network's parameters by name, those with a format rounded."""
    return {
        name: weight if (form := rounding.form_of(name)) is None else round_to(weight, form)
        for name, weight in network.named_parameters()
    }
