"""Which layers see a sliding window, and which the whole context."""

from __future__ import annotations

from collections.abc import Sequence

from converter.models.config import Config

SLIDING, FULL = "sliding_attention", "full_attention"


def read_layer_types(config: Config, default: Sequence[str]) -> Sequence[str]:
    """One of SLIDING and FULL for each layer; `default` where the config has no `layer_types`.

    Raises UnsupportedMath on a list of another length and on other kinds of attention.
    """
    types = config.names("layer_types", len(default))
    if types is None:
        return default
    if not set(types) <= {SLIDING, FULL}:
        raise config.unsupported("layer_types", f"need {SLIDING} and {FULL} alone")
    return types


def read_windows(config: Config, types: Sequence[str]) -> list[int | None]:
    """The window of each layer in tokens, None for the whole context. Raises UnsupportedMath."""
    window = config.optional_integer("sliding_window")
    if window is None and SLIDING in types:
        raise config.unsupported("sliding_window", "need a length for the sliding layers")
    return [window if kind == SLIDING else None for kind in types]


def read_late_windows(config: Config, layers: int) -> list[int | None]:
    """Windows as Qwen spells them: `use_sliding_window`, from layer `max_window_layers` on."""
    sliding = config.flag("use_sliding_window", False) and config.peek("sliding_window") is not None
    first = config.integer("max_window_layers", 28, least=0)
    default = [SLIDING if sliding and i >= first else FULL for i in range(layers)]
    types = read_layer_types(config, default)
    if SLIDING in types and not sliding:
        raise config.unsupported("layer_types", "need use_sliding_window true for sliding layers")
    return read_windows(config, types)
