"""SoCs that context binaries are made for, by the numbers that Qualcomm's compiler knows them by.

The provider takes some names too, but ignores those that it does not know and makes a binary for
its default. So a name is looked up here, and the number is given.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.errors import UnknownTarget
from edge.target import Target


@dataclass(frozen=True)
class Soc:
    """A SoC: its number, and the version of its HTP."""

    name: str
    number: int
    version: int

    @property
    def target(self) -> Target:
        return Target("npu", f"htp-v{self.version}")


# Numbers of QNN 2.51; versions read back from the binaries that its compiler made for them.
SOCS: dict[str, Soc] = {
    name: Soc(name, number, version)
    for name, number, version in (
        ("SM8350", 30, 68),
        ("SM8450", 36, 69),
        ("SM8475", 42, 69),
        ("SM8550", 43, 73),
        ("SM8635", 68, 73),
        ("SM7675", 70, 73),
        ("SM8735", 85, 73),
        ("SM8650", 57, 75),
        ("SM8750", 69, 79),
        ("SM8845", 97, 81),
        ("SM8850", 87, 81),
        ("SC8380XP", 60, 73),
        ("SC8480XP", 88, 81),
        ("QCS6490", 93, 68),
        ("QCS8550", 66, 73),
        ("QCS9100", 77, 73),
    )
}

# The SoC that stands for a version where a target is given instead of a SoC.
_OF_VERSION = {
    68: "SM8350",
    69: "SM8450",
    73: "SM8550",
    75: "SM8650",
    79: "SM8750",
    81: "SM8850",
}


def find_soc(text: str) -> Soc:
    """The SoC that a name ("SM8650") or a target ("npu:htp-v75") means. Raises UnknownTarget."""
    if (soc := SOCS.get(text.upper())) is not None:
        return soc
    if text.startswith("npu:htp-"):
        version = int(Target.parse(text).arch.removeprefix("htp-v"))
        if version in _OF_VERSION:
            return SOCS[_OF_VERSION[version]]
        known = ", ".join(f"npu:htp-v{version}" for version in _OF_VERSION)
        raise UnknownTarget(f"target {text}: no SoC has it", f"use one of {known}")
    raise UnknownTarget(
        f"SoC {text!r} is not one that Qualcomm's compiler is known to take",
        f"use one of {', '.join(SOCS)}, or npu:ort for this machine",
    )
