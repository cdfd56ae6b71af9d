"""Measure how fast a bundle runs: against the machine's own ceilings, and against llama.cpp.

Prints the ceilings first (bytes read a second by threads, multiplications a second), then the bytes
that a token costs, then prefill, decode, time to the first token, peak memory, and the share of the
ceiling. With --peer, llama.cpp runs the same checkpoint in turns with the bundle; how to build it
at its best, and what each figure means, is in docs/benchmarks.md. All figures are measured, medians
of --repeats; on a shared machine only those of one run compare. Prompts run on --target too; an
NPU's prefill has a benchmark of its own, python -m apps.bench.prefill.

examples:
  lutra bench model.lutra
  lutra bench model.lutra --prompt 256 --generate 64 --json
  lutra bench model.lutra --threads 1 --target cpu:x86_64,avx2
  lutra bench model.lutra --peer llama.cpp --checkpoint ./model --peer-format Q4_0
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

# The verb's own imports wait until it is used: a peer's Python, which imports this package for
# `worker` and its side, has none of Lutra's dependencies, and no side is to be charged for them.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from apps.bench import command

    command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from apps.bench import command

    return command.run(args)
