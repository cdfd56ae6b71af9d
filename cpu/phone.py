"""What decode on a phone waits for: its memory, or what a core computes. A model of two numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phone:
    """Cores and the memory they share.

    By default big cores of which one alone reads 20 GB/s, and all together what a processor got of
    a Snapdragon 8 Gen 3's 68 GB/s (40 to 45: HeteroInfer, arXiv 2501.14794).
    """

    clock_ghz: float = 3.0
    core_gb_s: float = 20.0
    memory_gb_s: float = 42.5
    cores: int = 4

    def cycles(self, byte_count: float, cores: int) -> float:
        """In which one of so many cores gets as many bytes."""
        return byte_count * self.clock_ghz / min(self.core_gb_s, self.memory_gb_s / cores)

    def waits_for(self, byte_count: float, computed_cycles: float, cores: int) -> str:
        """The slower of both, for weights of so many bytes."""
        return "memory" if self.cycles(byte_count, cores) > computed_cycles else "computing"
