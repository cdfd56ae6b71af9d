"""The runtime and the contract: what a device needs. Depends on NumPy alone.

import edge

model = edge.load("model.lutra")
print(model.generate("Once upon a time", max_tokens=50, sampling=edge.Sampling.greedy()))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edge.errors import LutraError
from edge.version import VERSION

__version__ = VERSION

__all__ = [
    "LutraError",
    "Message",
    "Model",
    "Record",
    "Sampling",
    "Session",
    "__version__",
    "load",
]

if TYPE_CHECKING:
    from edge.generate import Record
    from edge.model import Model, Session, load
    from edge.sampler import Sampling
    from edge.template import Message
else:
    # Imported when first used: NumPy takes 0.1 s, which `lutra --help` need not wait for.
    _HOMES = {
        "Message": "edge.template",
        "Model": "edge.model",
        "Record": "edge.generate",
        "Sampling": "edge.sampler",
        "Session": "edge.model",
        "load": "edge.model",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'edge' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
