"""Attention with its projections: the part that differs most between models."""

from __future__ import annotations

from dataclasses import dataclass

from converter.models.builder import Builder, Fused
from converter.models.rope import Rotation
from converter.models.sizes import Sizes
from edge.graph import Cache


@dataclass(frozen=True)
class AttentionMath:
    """What one layer's attention computes.

    `rotation` None is a layer without positions. `fused` is the name of one projection that holds
    q, k and v. `qk_norm` norms every head of q and k; `sub_norm` names a norm before the output
    projection.
    """

    rotation: Rotation | None
    scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    plus_one: bool = False
    sub_norm: str | None = None
    window: int | None = None
    softcap: float | None = None
    fused: str | None = None


def attention(b: Builder, x: str, layer: int, sizes: Sizes, math: AttentionMath) -> str:
    """From the normed input (in a qkv subgraph) to the output projection (in an output one)."""
    query, key, value = _project(b, x, sizes, math)
    b.begin("attention", layer)
    if math.qk_norm:
        query = _head_norm(b, query, "q_norm", sizes, math)
        key = _head_norm(b, key, "k_norm", sizes, math)
    if math.rotation is not None:
        query = math.rotation.apply(b, query, "q_rotated", sizes.head_dim)
        key = math.rotation.apply(b, key, "k_rotated", sizes.head_dim)
    cache = Cache(sizes.kv_heads, sizes.head_dim)
    attended = b.attention(query, key, value, cache, math.scale, math.window, math.softcap)
    b.begin("output", layer)
    if math.sub_norm is not None:
        attended = b.norm(attended, "attention_sub_norm", math.sub_norm, sizes.eps)
    return b.linear(attended, "o", "self_attn.o_proj", sizes.hidden, bias=math.output_bias)


def _head_norm(b: Builder, x: str, name: str, sizes: Sizes, math: AttentionMath) -> str:
    source = f"self_attn.{name}"
    return b.norm(x, name, source, sizes.eps, width=sizes.head_dim, plus_one=math.plus_one)


def _project(b: Builder, x: str, sizes: Sizes, math: AttentionMath) -> list[str]:
    widths = [n * sizes.head_dim for n in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    made = []
    for index, (name, width) in enumerate(zip("qkv", widths, strict=True)):
        source: str | Fused = f"self_attn.{name}_proj"
        if math.fused is not None:
            source = Fused(math.fused, sum(widths), sum(widths[:index]))
        made.append(b.linear(x, name, source, width, bias=math.qkv_bias))
    return made
