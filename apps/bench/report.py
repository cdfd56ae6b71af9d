"""What a benchmark prints: ceilings, bytes per token, a table of both sides, and one JSON line."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.bench.compare import OURS, PEER, Figures, Plan
from apps.bench.measure import Sample, Spread
from apps.bench.peer import PeerModel
from apps.bench.work import Work, attended_positions, work_of
from apps.output import megabytes, print_table
from edge.bundle import Bundle
from edge.kvcache import CacheFormat
from edge.target import this_machine
from edge.version import VERSION

WORD = "measured"

# llama.cpp keeps keys and values in f16 unless told otherwise.
PEER_CACHE: CacheFormat = "f16"

# Other programs, on average over a minute, from which on a run says so.
_BUSY_LOAD = 0.5

_RATES = ("prefill_tok_s", "decode_tok_s")

_TITLES = (
    "",
    "read a token",
    "prefill tok/s",
    "decode tok/s",
    "of the ceiling",
    "first token",
    "opening",
    "peak memory",
)


@dataclass(frozen=True)
class Run:
    """A finished benchmark, and what was run in it."""

    path: str
    bundle: Bundle
    cache_format: CacheFormat
    plan: Plan
    figures: Figures
    peer: PeerModel | None
    load_before: float | None

    def work(self, side: str) -> Work:
        """What a token costs a side."""
        if side == OURS:
            return work_of(self.bundle, self.cache_format)
        assert self.peer is not None
        theirs = work_of(self.bundle, PEER_CACHE)
        return replace(theirs, weight_bytes=self.peer.summary.bytes_per_token)


def report_values(run: Run) -> dict[str, Any]:
    """Everything, for scripts. Our figures are at the top, the peer's under `peer`."""
    ours, plan = run.figures.sides[OURS], run.plan
    return {
        **_side_values(run, OURS),
        "figures": WORD,
        "bundle": str(run.path),
        "target": ours.loaded["target"],
        "note": ours.loaded["note"],
        "memory_over_share": _over_share(ours.memory),
        "formats": our_formats(run.bundle),
        "kv_format": run.cache_format,
        "prompt_tokens": plan.prompt,
        "generated_tokens": plan.generate,
        "repeats": plan.repeats,
        "threads": plan.threads,
        "ceilings": _ceiling_values(run),
        "machine": machine_values() | {"load_before": run.load_before},
        "versions": {
            "lutra": VERSION,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "peer": None if run.peer is None else _peer_values(run, run.peer),
        "ratios": None if run.peer is None else _ratios(run),
    }


def _side_values(run: Run, side: str) -> dict[str, Any]:
    figures, work = run.figures.sides[side], run.work(side)
    positions = attended_positions(run.plan.prompt, run.plan.generate)
    spreads = {name: figures.spread(name) for name in (*_RATES, "first_token_s")}
    return {
        "prefill_tok_s": spreads["prefill_tok_s"].median,
        "decode_tok_s": spreads["decode_tok_s"].median,
        "time_to_first_token_s": spreads["first_token_s"].median,
        **figures.memory,
        "read_bandwidth_gb_s": run.figures.read_bandwidth_gb_s(),
        "decode_ceiling_share": run.figures.decode_share(side, work.step_bytes(positions)),
        "weights_ceiling_share": run.figures.decode_share(side, work.weight_bytes),
        "prefill_ceiling_shares": _prefill_shares(run, work, spreads["first_token_s"].median),
        "weight_bytes_per_token": work.weight_bytes,
        "kv_bytes_per_token": work.kv_bytes(positions),
        "open_to_first_token_s": Spread.of(figures.opening_s).median,
        "load_s": figures.loaded["load_s"],
        "spread": {name: asdict(spread) for name, spread in spreads.items()},
        "samples": [_sample_values(sample) for sample in figures.samples],
    }


def _over_share(memory: Mapping[str, int]) -> float:
    """Peak memory without the KV cache, over the weights' bytes: by what share it is more."""
    return (memory["peak_rss_bytes"] - memory["kv_bytes"]) / memory["weights_bytes"] - 1


def told_over(memory: Mapping[str, int]) -> str:
    """The same in megabytes; as a share too, but of weights that are less than what is over."""
    over = memory["peak_rss_bytes"] - memory["kv_bytes"] - memory["weights_bytes"]
    weights, cache = megabytes(memory["weights_bytes"]), megabytes(memory["kv_bytes"])
    share = f", {100 * _over_share(memory):+.0f} %" if over < memory["weights_bytes"] else ""
    more = "over" if over >= 0 else "under"
    return f"{megabytes(abs(over))} {more} the weights' {weights} and {cache} of KV cache{share}"


def _sample_values(sample: Sample) -> dict[str, float]:
    return {"first_token_s": sample.first_token_s, "rest_s": sample.rest_s}


def _prefill_shares(run: Run, work: Work, seconds: float) -> dict[str, float]:
    """The prompt's multiplications over what each matrix unit would do in that time."""
    if run.figures.ceilings is None:
        return {}
    rate = work.prefill_macs(run.plan.prompt) / seconds
    return {name: rate / most for name, most in run.figures.ceilings.mac_rates().items()}


def _peer_values(run: Run, peer: PeerModel) -> dict[str, Any]:
    return {
        **_side_values(run, PEER),
        "name": PEER,
        "format": peer.form,
        "formats": peer.summary.formats,
        "kv_format": PEER_CACHE,
        "file_bytes": peer.file_bytes,
        "notes": peer.notes,
        "buffers": run.figures.sides[PEER].loaded["buffers"],
        "flash_attention": run.figures.sides[PEER].loaded["flash_attention"],
        **peer.versions,
    }


def _ratios(run: Run) -> dict[str, float]:
    """Ours over the peer's, of the medians."""
    ours, theirs = run.figures.sides[OURS], run.figures.sides[PEER]
    return {name: ours.spread(name).median / theirs.spread(name).median for name in _RATES}


def _ceiling_values(run: Run) -> dict[str, Any] | None:
    ceilings = run.figures.ceilings
    if ceilings is None:
        return None
    return {
        "read_gb_s_by_threads": {str(n): rate for n, rate in ceilings.start_gb_s.items()},
        "read_gb_s_by_round": ceilings.read_gb_s,
        "mac_s": ceilings.mac_rates(),
        "mac_s_by_round": ceilings.mac_s,
    }


def our_formats(bundle: Bundle) -> dict[str, int]:
    """Matrices of a bundle by format."""
    matrices = [tensor.name for tensor in bundle.graph.tensors if len(tensor.shape) > 1]
    return dict(Counter(str(bundle.manifest.tensors[name].form) for name in matrices))


def load_average(loadavg: Path = Path("/proc/loadavg")) -> float | None:
    """How many programs were running in the last minute, where the system says."""
    try:
        return float(loadavg.read_text(encoding="utf-8").split()[0])
    except OSError:
        return None


def machine_values(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The machine, as far as it says."""
    machine = this_machine()
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else machine.arch,
        "cores": os.cpu_count(),
        "features": sorted(machine.features),
        "system": f"{sys.platform} {platform.release()}",
    }


# For people.


def print_start(start: Mapping[int, float]) -> None:
    """The read bandwidth by threads, before anything else is measured."""
    if not start:
        print("no ceilings: they need llvmlite, and code for this processor")
    for threads, rate in start.items():
        print(f"read bandwidth, {_threads(threads)}: {rate:.1f} GB/s ({WORD})", flush=True)


def print_report(run: Run) -> None:
    """The ceilings during the rounds, then bytes per token, then both sides."""
    _print_ceilings(run)
    print()
    rows = [_column(run, side) for side in run.figures.sides]
    print_table([*zip(_TITLES, *rows, strict=True)])
    print()
    if run.peer is not None:
        _print_peer(run, run.peer)
    print(
        f"{run.plan.prompt} + {run.plan.generate} tokens, {_threads(run.plan.threads)}, medians of "
        f"{run.plan.repeats} rounds (least to most); all {WORD}"
    )
    print(f"{OURS} memory: {told_over(run.figures.sides[OURS].memory)} ({WORD})")
    if run.load_before is not None and run.load_before > _BUSY_LOAD:
        print(f"note: {run.load_before:.1f} other programs were running; run it on a quiet machine")


def _print_ceilings(run: Run) -> None:
    ceilings = run.figures.ceilings
    if ceilings is None:
        return
    spread = Spread.of(ceilings.read_gb_s)
    print(f"read bandwidth during the rounds: {_ranged(spread, 1)} GB/s ({WORD})")
    for name, rates in ceilings.mac_s.items():
        spread = Spread.of([rate / 1e12 for rate in rates])
        print(f"{name}, {_threads(run.plan.threads)}: {_ranged(spread, 2)} TMAC/s ({WORD})")


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _column(run: Run, side: str) -> tuple[str, ...]:
    values = _side_values(run, side)
    spreads = {name: Spread(**spread) for name, spread in values["spread"].items()}
    prefill = values["prefill_ceiling_shares"]
    shares = [f"{100 * share:.0f} % of {name}" for name, share in prefill.items()]
    share = values["decode_ceiling_share"]
    decode = [] if share is None else [f"{100 * share:.0f} % of reads"]
    read = values["weight_bytes_per_token"], round(values["kv_bytes_per_token"])
    return (
        side,
        f"{megabytes(read[0])} + {megabytes(read[1])} KV",
        _ranged(spreads["prefill_tok_s"], 1),
        _ranged(spreads["decode_tok_s"], 2),
        ", ".join(decode + shares) or "-",
        f"{_ranged(spreads['first_token_s'], 3)} s",
        f"{values['open_to_first_token_s']:.3f} s",
        megabytes(values["peak_rss_bytes"]),
    )


def _ranged(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"


def _print_peer(run: Run, peer: PeerModel) -> None:
    ratios = _ratios(run)
    print(
        f"{OURS} / {PEER}: prefill {ratios['prefill_tok_s']:.2f} x, "
        f"decode {ratios['decode_tok_s']:.2f} x"
    )
    for title, formats in ((OURS, our_formats(run.bundle)), (PEER, peer.summary.formats)):
        print(f"{title} matrices: {', '.join(f'{n} {form}' for form, n in formats.items())}")
    print(f"{PEER} {peer.versions['llama_cpp']}: {peer.versions['system_info']}")
    print(f"{PEER} flash attention: {run.figures.sides[PEER].loaded['flash_attention']}")
    for note in peer.notes:
        print(f"note: {note}")
