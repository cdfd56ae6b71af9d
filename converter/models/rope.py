"""Rotary position embeddings: the frequencies that a config asks for.

Plain, linear, llama3, yarn and longrope scaling, whole or partial heads, in the spelling of
Transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). All of it is computed in
float32, as Transformers does: at position 100,000 a frequency that is off by one part in 10^7
turns a head by 0.01 radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.models.builder import Builder
from converter.models.config import Config
from edge.errors import UnsupportedMath

Frequencies = NDArray[np.float32]


@dataclass(frozen=True)
class Rotation:
    """A set of frequencies, [rotary_dim / 2] in radians a position, under a tensor name."""

    name: str
    frequencies: Frequencies
    scale: float = 1.0

    def apply(self, b: Builder, x: str, name: str, head_dim: int) -> str:
        """Rotate every head of x."""
        frequencies = b.constant(self.name, self.frequencies)
        return b.rope(x, name, frequencies, head_dim, self.scale)


def default_context(config: Config) -> int:
    """Positions that a bundle is made for unless told: `max_position_embeddings`.

    For longrope, the length of the original training: its short factors, which hold up to there,
    and its long ones give different models, and a bundle is one of the two.
    """
    trained = config.integer("max_position_embeddings")
    section = rope_section(config)
    return _original(config, section) if _kind(section) == "longrope" else trained


def rope_section(config: Config) -> Config:
    """What the config says of rope scaling, in either spelling; empty where it says nothing."""
    for key in ("rope_scaling", "rope_parameters"):
        if config.peek(key) and (section := config.section(key)) is not None:
            return section
    return Config({}, f"{config.where}rope_parameters.")


def read_rotation(
    config: Config, head_dim: int, context: int, *, theta: float = 1e4, partial: bool = False
) -> Rotation:
    """The rotation of a model whose layers share one.

    `theta` is the base of a config that states none; `partial` says that the model knows
    `partial_rotary_factor`. Raises UnsupportedMath naming the key.
    """
    section = rope_section(config)
    theta = config.number("rope_theta", theta)
    if partial:
        key, outer = "partial_rotary_factor", config.number("partial_rotary_factor", 1.0)
        share = section.number(key, outer)
        if share > 1:
            raise (section if key in section.values else config).unsupported(key, "need 1 at most")
        head_dim = int(head_dim * share)
    return make_rotation("rope", config, section, theta, head_dim, context)


def make_rotation(
    name: str, config: Config, section: Config, theta: float, rotary_dim: int, context: int
) -> Rotation:
    """The rotation of one rope section; its own `rope_theta` goes before `theta`."""
    scaling = _SCALINGS.get(_kind(section))
    if scaling is None:
        key = "rope_type" if section.peek("rope_type") else "type"
        raise section.unsupported(key, f"need {' or '.join(_SCALINGS)}")
    rope = _Rope(
        section=section,
        theta=section.number("rope_theta", theta),
        dim=rotary_dim,
        context=context,
        trained=config.integer("max_position_embeddings"),
        original=_original(config, section),
    )
    if rotary_dim < 2 or rotary_dim % 2:
        raise UnsupportedMath(
            f"config key {config.where}head_dim gives {rotary_dim} elements to rotate, need pairs",
            "check the checkpoint's config.json",
        )
    frequencies, scale = _finite(scaling, rope, config)
    section.finish()
    return Rotation(name, frequencies, scale)


def _finite(scaling: Callable[[_Rope], _Scaled], rope: _Rope, config: Config) -> _Scaled:
    """What a scaling makes of its section. Raises UnsupportedMath where that is no number."""
    try:
        with np.errstate(all="ignore"):
            frequencies, scale = scaling(rope)
        if np.isfinite(frequencies).all() and math.isfinite(scale):
            return frequencies, scale
    except (ArithmeticError, ValueError):
        pass
    raise UnsupportedMath(
        f"config key {rope.section.where or config.where}rope_theta or a factor beside it gives "
        "rotations that are no finite numbers",
        "check the checkpoint's config.json",
    )


def _kind(section: Config) -> str:
    older, newer = section.peek("type"), section.peek("rope_type")
    kind = str(newer or older or "default")
    return "longrope" if kind == "su" else kind  # its name in the first Phi-3 checkpoints


def _original(config: Config, section: Config) -> int:
    # Phi-3 states it outside the section, and Transformers lets that go first for all models.
    outside = config.optional_integer("original_max_position_embeddings")
    inside = section.optional_integer("original_max_position_embeddings")
    return outside or inside or config.integer("max_position_embeddings")


@dataclass(frozen=True)
class _Rope:
    """One rope section: base `theta`, `dim` elements of a head that turn, lengths in positions."""

    section: Config
    theta: float
    dim: int
    context: int
    trained: int
    original: int

    def periods(self) -> Frequencies:
        """theta^(2i/dim): positions in which a pair of elements turns by one radian."""
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        powers: Frequencies = np.float32(self.theta) ** exponents
        return powers

    def frequencies(self) -> Frequencies:
        """Radians a position, unscaled."""
        inverse: Frequencies = np.float32(1) / self.periods()
        return inverse

    def factor(self) -> float:
        """How many times longer the context has become."""
        return self.section.optional_number("factor") or self.trained / self.original


_Scaled = tuple[Frequencies, float]


def _default(rope: _Rope) -> _Scaled:
    return rope.frequencies(), 1.0


def _linear(rope: _Rope) -> _Scaled:
    return rope.frequencies() / np.float32(rope.section.number("factor")), 1.0


def _llama3(rope: _Rope) -> _Scaled:
    """Long waves are slowed down, short ones kept, those between interpolated."""
    number = rope.section.number
    factor, low, high = (number(k) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    frequencies = rope.frequencies()
    waves = np.float32(rope.original) / (np.float32(2 * math.pi) / frequencies)
    kept = np.clip((waves - np.float32(low)) / np.float32(high - low), 0, 1)
    return _blend(frequencies / np.float32(factor), frequencies, kept), 1.0


def _yarn(rope: _Rope) -> _Scaled:
    """NTK-by-parts interpolation (arXiv 2309.00071, section 3.2) and its attention factor (3.4)."""
    frequencies = rope.frequencies()
    pairs = np.arange(len(frequencies), dtype=np.float32)
    low, high = _yarn_range(rope)
    kept = np.float32(1) - np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    scaled = frequencies / np.float32(rope.factor())
    return _blend(scaled, frequencies, kept), _yarn_attention(rope)


def _yarn_range(rope: _Rope) -> tuple[float, float]:
    """Between which pairs of elements to interpolate: fast ones are kept, slow ones scaled."""
    section = rope.section
    bounds = [
        rope.dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (
            section.optional_number("beta_fast") or 32.0,
            section.optional_number("beta_slow") or 1.0,
        )
    ]
    low, high = bounds
    if section.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    return low, high if high != low else high + 0.001


def _yarn_attention(rope: _Rope) -> float:
    section = rope.section
    given = section.optional_number("attention_factor")
    scales = section.optional_number("mscale"), section.optional_number("mscale_all_dim")
    if given is not None:
        return given
    growth = math.log(max(rope.factor(), 1.0))
    if scales[0] and scales[1]:
        return (0.1 * scales[0] * growth + 1.0) / (0.1 * scales[1] * growth + 1.0)
    return 0.1 * growth + 1.0


def _longrope(rope: _Rope) -> _Scaled:
    """A factor for each frequency (arXiv 2402.13753): one set up to the original length."""
    section, count = rope.section, len(rope.periods())
    short, long = (section.numbers(f"{kind}_factor", count) for kind in ("short", "long"))
    chosen = np.array(long if rope.context > rope.original else short, dtype=np.float32)
    factor, given = rope.factor(), section.optional_number("attention_factor")
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rope.original))
    return rope.frequencies() / chosen, scale if given is None else given


def _blend(scaled: Frequencies, plain: Frequencies, kept: Frequencies) -> Frequencies:
    """`scaled` where kept is 0, `plain` where it is 1."""
    blended: Frequencies = (np.float32(1) - kept) * scaled + kept * plain
    return blended


_SCALINGS: dict[str, Callable[[_Rope], _Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
