"""One file a model, named after its `model_type`: from config.json to a graph.

Each has `build(config, context) -> Model`, where no context asks for the model's own. A model that
differs little from another imports it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from converter.models.builder import Model
from converter.models.config import Config
from edge.errors import UnknownArchitecture

_SHARED = {"attention", "builder", "config", "feed_forward", "layer_types", "rope", "sizes"}


def model_types() -> list[str]:
    """The model types that have a file here."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def build_model(values: Mapping[str, Any], context: int | None = None) -> Model:
    """Build the graph of a config.json for up to `context` positions.

    Without `context`, the model's own (for longrope, the length that its short factors are for).
    Raises UnknownArchitecture, or UnsupportedMath naming the key.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in model_types():
        raise _unknown(f"model_type {model_type!r} is not one that this version converts")
    names = values.get("architectures") or []
    if not isinstance(names, list):
        raise _unknown(f"architectures is {names!r}, need a list of names")
    for name in names:
        if not re.fullmatch(r"\w+For(CausalLM|ConditionalGeneration)", str(name)):
            raise _unknown(f"architecture {name!r} is not a language model with a head")
    module = importlib.import_module(f"converter.models.{model_type}")
    config = Config(values)
    model: Model = module.build(config, context)
    config.finish()
    return model


def _unknown(what: str) -> UnknownArchitecture:
    return UnknownArchitecture(what, f"convert one of: {', '.join(model_types())}")
