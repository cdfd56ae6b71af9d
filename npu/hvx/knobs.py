"""How each lookup loop is laid out: what `search` chose, format by format."""

from __future__ import annotations

from dataclasses import dataclass

from edge.formats import Format
from npu.hvx.weights import group_of


def shape_of(form: Format) -> str:
    """What of a format decides its schedule, as `KNOBS` names it."""
    grouped = f"g{group_of(form)}" if form.granularity == "group" else "c"
    return f"w{form.bits}{grouped}" + ("a" if form.asymmetric else "")


@dataclass(frozen=True)
class Knobs:
    """What a search may choose; all give the same results.

    Shifts whose bits are set in `multiplied` are multiplications; shifts are so many steps ahead
    of lookups, those by multiplication `multiplied_ahead`; so many tables stay in registers; sums
    of so many last steps are `late`; `together` adds the sums of activations in one packet,
    `scales_together` loads a group's scales once; what zeros make is summed after the products of
    group `zeros_after`, or of the last; every so many pairs of planes (`doubled`, 0 for none) are
    weighted by a shift instead of two sums. Groups whose bits are set in `interleaved` have planes
    weighted as they are added; of 3 bits, all. The others are `Loop`'s.
    """

    multiplied: int
    ahead: int
    multiplied_ahead: int
    resident: int
    late: int
    together: bool
    window: int
    patience: int
    units: str
    latency: int
    limit: int
    scales_together: bool = False
    zeros_after: int = 3
    doubled: int = 0
    shuffle: int = 0
    interleaved: int = 0


# The shortest schedules that `search` found in some minutes.
KNOBS = {
    "w1g32": Knobs(0x84A50804, 1, 1, 6, 2, False, 41, 11, "MPNS", 1, 26, False, 0, 4, 51),
    "w1g32a": Knobs(0x52102080, 1, 2, 6, 2, False, 34, 12, "MPNS", 2, 23, True, 3, 0, 730),
    "w1g64": Knobs(0x611A3222, 1, 2, 7, 1, False, 50, 11, "MNSP", 1, 20, False, 0, 0, 957),
    "w1g64a": Knobs(0x66258004, 1, 1, 6, 1, False, 29, 13, "MPNS", 1, 26, False, 0, 2, 296),
    "w1g128": Knobs(0xFA61F090, 1, 1, 9, 2, True, 35, 9, "MNPS", 1, 26, False, 1, 3, 613),
    "w1g128a": Knobs(0x9364628, 1, 2, 9, 1, True, 12, 12, "PSMN", 1, 17, True, 2, 0, 287),
    "w1c": Knobs(0x78F3D514, 2, 2, 9, 2, True, 51, 13, "MPNS", 1, 22, True, 0, 4, 728),
    "w1ca": Knobs(0xD6F24780, 1, 1, 6, 2, False, 49, 7, "MPNS", 1, 25, True, 2, 3, 270),
    "w2g32": Knobs(0x9440E1C, 1, 2, 14, 1, True, 28, 9, "PSMN", 1, 21, False, 2, 4, 27, 255),
    "w2g32a": Knobs(0x88B0440C, 1, 2, 12, 1, False, 49, 17, "MNSP", 1, 17, True, 2, 3, 126, 255),
    "w2g64": Knobs(0x87401113, 1, 2, 14, 1, True, 11, 8, "NMSP", 1, 20, False, 2, 4, 522, 15),
    "w2g64a": Knobs(0x8040D808, 1, 2, 12, 1, False, 55, 4, "MPNS", 1, 19, False, 2, 3, 551, 15),
    "w2g128": Knobs(0x49249249, 1, 1, 13, 1, True, 40, 18, "MNPS", 1, 17, False, 3, 0, 0),
    "w2g128a": Knobs(0xAAAAAAAA, 2, 2, 10, 1, False, 33, 12, "MNPS", 1, 19, False, 2, 0, 0),
    "w2c": Knobs(0x92492492, 1, 1, 13, 1, False, 40, 15, "MNPS", 1, 17, True, 3, 0, 0),
    "w2ca": Knobs(0xAAAAAAAA, 3, 1, 8, 2, False, 16, 6, "PSMN", 1, 21, False, 3, 0, 0),
    "w3g32": Knobs(0x30080040412E, 1, 1, 10, 1, True, 56, 17, "MNPS", 1, 20, False, 1, 3, 659, 255),
    "w3g32a": Knobs(0xA00190802040, 1, 0, 10, 1, True, 56, 4, "MNPS", 1, 23, False, 1, 0, 862, 255),
    "w3g64": Knobs(0x9A0481CAE190, 1, 1, 11, 1, True, 44, 9, "NMSP", 1, 21, False, 2, 2, 868, 255),
    "w3g64a": Knobs(0x700452401445, 1, 0, 10, 1, True, 49, 7, "MPNS", 1, 20, False, 1, 2, 311, 255),
    "w3g128": Knobs(
        0xD8C61E62080C, 1, 2, 13, 1, False, 53, 10, "MPNS", 1, 19, False, 0, 1, 976, 255
    ),
    "w3g128a": Knobs(
        0xAC81534003B0, 2, 0, 11, 1, False, 41, 19, "MNSP", 1, 19, False, 3, 0, 753, 255
    ),
    "w3c": Knobs(0xCBE3FE24A2E2, 1, 1, 15, 1, True, 22, 11, "MNSP", 1, 23, True, 2, 1, 204, 255),
    "w3ca": Knobs(0xB91B83871D67, 1, 1, 13, 1, True, 44, 0, "NMSP", 1, 17, True, 1, 4, 753, 255),
    "w4g32": Knobs(
        0xB00C006D50A20C23, 1, 2, 10, 2, True, 58, 9, "NMSP", 1, 18, False, 3, 1, 540, 255
    ),
    "w4g32a": Knobs(
        0x834881030A005008, 1, 2, 10, 2, True, 53, 7, "SMNP", 1, 21, False, 2, 0, 976, 255
    ),
    "w4g64": Knobs(0x5555555555555555, 4, 2, 6, 2, True, 34, 12, "MPNS", 1, 23, False, 2, 0, 0),
    "w4g64a": Knobs(0xAAAAAAAAAAAAAAAA, 3, 2, 6, 2, True, 56, 14, "MNPS", 1, 27, False, 3, 0, 0),
    "w4g128": Knobs(0xAAAABA2EAAEA8AAA, 2, 1, 6, 3, True, 40, 9, "MNPS", 1, 24, False, 0, 0, 0),
    "w4g128a": Knobs(0xAAAAAAAAAAAAAAAA, 3, 1, 6, 2, True, 35, 10, "MNPS", 1, 24, False, 3, 0, 0),
    "w4c": Knobs(0x8888888888888888, 2, 1, 8, 3, False, 25, 13, "PMNS", 1, 21, False, 3, 0, 0),
    "w4ca": Knobs(0x8888888888888888, 2, 1, 8, 3, False, 31, 3, "PMNS", 1, 21, False, 3, 0, 0),
}
