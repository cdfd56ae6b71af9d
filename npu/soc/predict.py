"""Prefill and decode of a model on a SoC: seconds, joules, and what the processors wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from edge.jobs import CPU, NPU, Job, lower_bound_s
from edge.schedule import IN_ORDER, Rule, Timeline, best_rule, simulate
from npu.soc.model import Chunking, prefill_jobs
from npu.soc.socs import Soc
from npu.soc.work import ModelWork


@dataclass(frozen=True)
class Prefill:
    """A modelled prefill, in order and by the best rule out of order. `tokens` are the prompt's."""

    soc: Soc
    tokens: int
    jobs: tuple[Job, ...]
    rule: Rule

    @cached_property
    def in_order(self) -> Timeline:
        return simulate(self.jobs, IN_ORDER)

    @cached_property
    def out_of_order(self) -> Timeline:
        return simulate(self.jobs, self.rule)

    @cached_property
    def lower_bound_s(self) -> float:
        """What no schedule can be shorter than."""
        return lower_bound_s(self.jobs)

    @property
    def watts(self) -> float:
        """Mean power of the out-of-order schedule."""
        timeline = self.out_of_order
        npu, cpu = (timeline.busy_s(name) / timeline.makespan_s for name in (NPU, CPU))
        return power_w(self.soc, npu, cpu)

    @property
    def joules(self) -> float:
        """Energy of the out-of-order schedule."""
        return self.watts * self.out_of_order.makespan_s


def plan_prefill(
    soc: Soc,
    work: ModelWork,
    tokens: int,
    chunking: Chunking | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Prefill:
    """Model the prefill of `tokens` with the best rule for it; `advance` as in `best_rule`."""
    jobs = prefill_jobs(soc, work, tokens, chunking)
    return Prefill(soc, tokens, jobs, best_rule(jobs, advance))


def mean_prefill_s(
    soc: Soc, work: ModelWork, lengths: range, known: dict[tuple[str, int], float] | None = None
) -> float:
    """Mean seconds over prompts of all `lengths`, each as likely.

    `known` keeps, from call to call with one SoC, the seconds of a model and a number of chunks.
    """
    chunking, known = Chunking(), {} if known is None else known
    counts = Counter(chunking.count(tokens) for tokens in lengths)
    for chunks in counts:
        if (work.name, chunks) not in known:
            prefill = plan_prefill(soc, work, chunks * chunking.rows)
            known[work.name, chunks] = prefill.out_of_order.makespan_s
    return sum(n * known[work.name, chunks] for chunks, n in counts.items()) / counts.total()


def power_w(soc: Soc, npu_share: float, cpu_share: float) -> float:
    """Watts with each processor busy for a share of the time."""
    return soc.idle_w + npu_share * soc.npu_w + cpu_share * soc.cpu_w


@dataclass(frozen=True)
class Decode:
    """One step of decoding, which reads `bytes_read` of weights and KV cache."""

    soc: Soc
    processor: str
    bytes_read: float

    @property
    def seconds(self) -> float:
        on_npu = self.processor == NPU
        rate = self.soc.npu_dma_bytes_s if on_npu else self.soc.cpu_decode_bytes_s
        return self.bytes_read / rate

    @property
    def watts(self) -> float:
        on_npu = float(self.processor == NPU)
        return power_w(self.soc, on_npu, 1 - on_npu)

    @property
    def joules(self) -> float:
        return self.watts * self.seconds


@dataclass(frozen=True)
class Step:
    """One step of decoding in parts, one after the other."""

    parts: tuple[Decode, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def joules(self) -> float:
        return sum(part.joules for part in self.parts)
