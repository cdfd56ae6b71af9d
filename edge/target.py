"""Targets: what code is made for, as a value with a text form.

`ref` is the NumPy interpreter. `cpu:x86_64,avx512,vnni,amx` and `cpu:aarch64-android,dotprod,i8mm`
are processors with the features that code may use. `npu:htp-v75` and `npu:hvx-v73` are Hexagon
versions, `npu:ort` ONNX Runtime standing in for one.
"""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UnknownTarget

# Features a target may name, each implying the ones in its row (Linux names in FEATURE_FLAGS).
FEATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx2": (), "avx512": ("avx2",), "vnni": ("avx512",), "amx": ("vnni",)},
    "aarch64": {"neon": (), "dotprod": ("neon",), "i8mm": ("dotprod",)},
}

# What every machine of a kind has, which goes without saying.
_BASE = {"aarch64": frozenset({"neon"})}

# What /proc/cpuinfo must list for a feature. "vnni" is AVX-512 of the second generation (Ice Lake,
# Zen 4), which has GFNI and VBMI beside it; Cascade Lake, which has not, counts as "avx512".
FEATURE_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "vnni": ("avx512_vnni", "gfni", "avx512vbmi"),
    "amx": ("amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
}

SYSTEMS = ("linux", "android")
_NPU = re.compile(r"(htp|hvx)-v(\d{2})|ort")

# Hexagon versions that vector code is made for: v67 is the emulator's, the others are phones'.
HVX_VERSIONS = (67, 68, 69, 71, 73, 75, 79)
EXAMPLES = "ref, cpu:x86_64,avx512,vnni, cpu:aarch64-android,dotprod,i8mm, npu:htp-v75"


@dataclass(frozen=True)
class Target:
    """A kind of code: `kind` "ref", "cpu" or "npu", and what it may assume.

    For a CPU, `arch` is the instruction set, `system` the operating system, and `features` the
    extensions in alphabetical order, with those implied. For an NPU, `arch` is the unit with its
    version ("htp-v75").
    """

    kind: str
    arch: str = ""
    system: str = ""
    features: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> Target:
        """Read a target's text form. Raises UnknownTarget."""
        kind, _, rest = text.partition(":")
        if text == "ref":
            return Target("ref")
        if kind == "npu" and _NPU.fullmatch(rest):
            return _parse_npu(text, rest)
        if kind == "cpu":
            return _parse_cpu(text, rest)
        raise _unknown(text, "need ref, cpu:<arch>[,features] or npu:<unit>-v<version>")

    def __str__(self) -> str:
        if self.kind == "ref":
            return "ref"
        system = f"-{self.system}" if self.system == "android" else ""
        return ",".join([f"{self.kind}:{self.arch}{system}", *self._named_features()])

    @property
    def unit(self) -> str:
        """What a backend is registered for: "ref", "cpu", "npu:htp", "npu:hvx" or "npu:ort"."""
        return f"npu:{self.arch.partition('-')[0]}" if self.kind == "npu" else self.kind

    @property
    def emulated(self) -> bool:
        """Whether only an emulator runs it: what it computes counts, how fast does not."""
        return self.arch == "hvx-v67"

    def below(self, other: Target) -> bool:
        """Whether it is another target for the same processors that needs no more than `other`."""
        same = (self.kind, self.arch) == (other.kind, other.arch)
        return same and self != other and set(self.features) <= set(other.features)

    def _named_features(self) -> list[str]:
        """The features in the table's order, but for those that go without saying."""
        said = set(self.features) - _BASE.get(self.arch, frozenset())
        return [name for name in FEATURES.get(self.arch, {}) if name in said]


def _parse_npu(text: str, rest: str) -> Target:
    unit, _, version = rest.partition("-v")
    if unit == "hvx" and int(version) not in HVX_VERSIONS:
        known = ", ".join(f"v{number}" for number in HVX_VERSIONS)
        raise _unknown(text, f"version v{version} of Hexagon, need one of {known}")
    return Target("npu", rest)


def _parse_cpu(text: str, rest: str) -> Target:
    place, *names = rest.split(",")
    arch, _, system = place.partition("-")
    system = system or "linux"
    if arch not in FEATURES or system not in SYSTEMS:
        raise _unknown(text, f"processor {place!r}, need {' or '.join(FEATURES)}[-android]")
    features = _BASE.get(arch, frozenset())
    for name in names:
        if name not in FEATURES[arch]:
            raise _unknown(text, f"feature {name!r}, {arch} has {', '.join(FEATURES[arch])}")
        features = features | {name, *_implied(arch, name)}
    return Target("cpu", arch, system, tuple(sorted(features)))


def _implied(arch: str, name: str) -> set[str]:
    direct = FEATURES[arch][name]
    return set(direct).union(*(_implied(arch, other) for other in direct))


def _unknown(text: str, detail: str) -> UnknownTarget:
    return UnknownTarget(f"target {text!r}: {detail}", f"use one such as {EXAMPLES}")


@dataclass(frozen=True)
class Machine:
    """The machine at hand: its instruction set, system, and the features it has."""

    arch: str
    system: str
    features: frozenset[str]

    def target(self) -> Target:
        """The CPU target that uses all of this machine. Raises UnknownTarget on a foreign one."""
        if self.arch not in FEATURES:
            raise UnknownTarget(f"this machine is a {self.arch}", f"need {' or '.join(FEATURES)}")
        return Target("cpu", self.arch, self.system, tuple(sorted(self.features)))

    def mismatch(self, target: Target) -> str:
        """Why code for a CPU `target` cannot run here; empty where it can.

        Android code calls no system library, so it runs on Linux of the same processor too.
        """
        if target.arch != self.arch:
            return f"{target} is for {target.arch}, this machine is {self.arch}"
        if target.system == "linux" and self.system == "android":
            return f"{target} is for Linux, this machine runs Android"
        missing = [name for name in target.features if name not in self.features]
        return f"{target} needs {', '.join(missing)}, this machine lacks it" if missing else ""


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Look at the machine. Features are those that the kernel reports in `cpuinfo`.

    Where it may not be read, those that every machine of the kind has.
    """
    arch = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    system = "android" if hasattr(sys, "getandroidapilevel") else "linux"
    try:
        flags = _flags(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        flags = set()
    told = {name for name in FEATURES.get(arch, {}) if flags.issuperset(FEATURE_FLAGS[name])}
    features = told | _BASE.get(arch, frozenset())
    whole = {name for name in features if _implied(arch, name) <= features}
    return Machine(arch, system, frozenset(whole))


def _flags(cpuinfo: str) -> set[str]:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return {
        flag
        for key, _, value in lines
        if key.strip() in ("flags", "Features")
        for flag in value.split()
    }
