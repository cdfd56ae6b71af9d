"""The runtime and the contract: what a device needs. Depends on NumPy alone.

import edge

model = edge.load("model.lutra")
print(model.generate("Once upon a time", max_tokens=50, sampling=edge.Sampling.greedy()))
"""

from edge.errors import LutraError
from edge.generate import Record
from edge.model import Model, Session, load
from edge.sampler import Sampling
from edge.template import Message
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
