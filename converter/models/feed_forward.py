"""The gated feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass

from converter.models.builder import Builder, Fused
from converter.models.sizes import Sizes


@dataclass(frozen=True)
class FeedForwardMath:
    """What every layer's feed-forward computes, beside the gate function.

    `fused` names one projection that holds gate and up; `sub_norm` a norm before down.
    """

    bias: bool = False
    fused: str | None = None
    sub_norm: str | None = None


def feed_forward(b: Builder, x: str, sizes: Sizes, math: FeedForwardMath) -> str:
    """down(function(gate(x)) * up(x))."""
    width = sizes.feed_forward
    gate_source: str | Fused = "mlp.gate_proj"
    up_source: str | Fused = "mlp.up_proj"
    if math.fused is not None:
        gate_source = Fused(math.fused, 2 * width, 0)
        up_source = Fused(math.fused, 2 * width, width)
    gate = b.linear(x, "gate", gate_source, width, bias=math.bias)
    up = b.linear(x, "up", up_source, width, bias=math.bias)
    gated = b.gate(gate, up, sizes.gate)
    if math.sub_norm is not None:
        gated = b.norm(gated, "feed_forward_sub_norm", math.sub_norm, sizes.eps)
    return b.linear(gated, "down", "mlp.down_proj", sizes.hidden, bias=math.bias)
