"""How a conversion tells what it is doing: what `edge.watch` has for any long work."""

from edge.watch import Silent, Watcher

__all__ = ["Silent", "Watcher"]
