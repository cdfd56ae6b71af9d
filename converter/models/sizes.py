"""Widths and counts that every decoder config states."""

from __future__ import annotations

from dataclasses import dataclass

from converter.models.config import Config
from converter.models.rope import default_context
from edge.errors import UnsupportedMath
from edge.graph import GateFunction

GATES: dict[str, GateFunction] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}

# Far over any model's: more layers, or frequencies for more elements of a head, would only be
# built to be found without weights.
_MOST_LAYERS = 1 << 12
_WIDEST_HEAD = 1 << 14


@dataclass(frozen=True)
class Sizes:
    """Widths in elements, `context` in positions; `eps` is the norms', `gate` a function."""

    layers: int
    vocabulary: int
    context: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    gate: GateFunction


def read_sizes(config: Config, context: int | None, gate_key: str = "hidden_act") -> Sizes:
    """Read what all configs of the Llama family spell alike. Raises UnsupportedMath.

    Without `context`, the model's own.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    own_context = default_context(config)
    if heads % kv_heads:
        raise UnsupportedMath(
            f"config key {config.where}num_key_value_heads is {kv_heads} for {heads} attention "
            "heads, need a whole number of query heads for each",
            "check the checkpoint's config.json",
        )
    head_dim = config.optional_integer("head_dim")
    if (head_dim or hidden // heads) > _WIDEST_HEAD:
        raise UnsupportedMath(
            f"config key {config.where}head_dim gives heads of {head_dim or hidden // heads} "
            f"elements, need {_WIDEST_HEAD} at most",
            "check the checkpoint's config.json",
        )
    if head_dim is None and hidden % heads:
        raise UnsupportedMath(
            f"config key {config.where}hidden_size is {hidden} for {heads} attention heads, need a "
            "multiple of them where there is no head_dim",
            "check the checkpoint's config.json",
        )
    return Sizes(
        layers=config.integer("num_hidden_layers", most=_MOST_LAYERS),
        vocabulary=config.integer("vocab_size"),
        context=context or own_context,
        hidden=hidden,
        feed_forward=config.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        eps=config.number("rms_norm_eps", 1e-6),
        gate=GATES[config.choice(gate_key, GATES, "silu")],
    )
