"""Which instruction set table code for a target is made with."""

from __future__ import annotations

from cpu.codegen import arm, x86, x86_avx2
from cpu.codegen.isa import Isa
from edge.errors import UnknownTarget
from edge.target import FEATURES, Target

# Architecture -> feature -> table.
TABLES: dict[str, dict[str, Isa]] = {
    "x86_64": x86_avx2.TABLES | x86.TABLES,
    "aarch64": arm.TABLES,
}


def isa_for(target: Target) -> Isa:
    """The most capable table whose feature the target names. Raises UnknownTarget."""
    if reason := refuses(target):
        raise UnknownTarget(reason, "use one such as cpu:x86_64,avx2 or cpu:aarch64-android")
    tables = TABLES[target.arch]
    best = [name for name in FEATURES[target.arch] if name in tables and name in target.features]
    return tables[best[-1]]


def refuses(target: Target) -> str:
    """Why no table fits a target; empty where one does."""
    tables = TABLES.get(target.arch, {})
    if target.kind != "cpu" or not tables:
        return f"target {target}: not a processor that code can be made for"
    if not any(name in target.features for name in tables):
        return f"target {target}: names no feature, need at least {next(iter(tables))}"
    return ""
