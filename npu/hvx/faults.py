"""What the numbers mean that a call to the NPU may return, and what to do about each.

The skel's own are `protocol.Fault`. FastRPC's are its standard errors, which come plain from the
phone's side and with 0x80000400 added from the NPU's.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.errors import CallRefused
from npu.hvx.protocol import FAULTS, Fault

_FROM_NPU = 0x80000400

_LOADING = (
    "see that the skel is in a folder of ADSP_LIBRARY_PATH (separated by semicolons), is for this "
    "NPU's version, and that `adb logcat -s adsprpc` names no symbol it misses"
)
_SIGNING = "open the unsigned process domain first; this phone may take signed libraries only"
_VERSION = "build the skel and Lutra from one version, for this NPU"
_OLD = "update the phone's system: its FastRPC does not know this request"
_ACCESS = "give the program access to /dev/fastrpc-cdsp, or use the CPU"
_MEMORY = "use a smaller model, or end other programs"
_AGAIN = "open a new session; the NPU's process ended, which a bug in the skel or the NPU may cause"

# FastRPC's standard errors, less the NPU's offset.
STANDARD: Mapping[int, tuple[str, str]] = {
    0x01: ("general failure", _LOADING),
    0x02: ("no memory", _MEMORY),
    0x04: ("version not supported", _VERSION),
    0x06: ("unable to load the library", _LOADING),
    0x0D: ("wrong state of the process", _AGAIN),
    0x0E: ("bad parameter", "this is a bug: report it with the phone's model"),
    0x14: ("not supported", _OLD),
    0x15: ("privileges are insufficient", _SIGNING),
    0x16: ("resource not found", _LOADING),
    0x2C: ("invalid handle", "open a new session"),
    0x2D: ("no more handles", "close a session"),
    0x30: ("an exception in the NPU's process", _AGAIN),
    0x36: ("the library's signature is invalid", _SIGNING),
    0x38: ("the library's signature is invalid", _SIGNING),
    0x3B: ("no such device", _ACCESS),
    0x3E: ("no such module", _LOADING),
    0x42: ("the library lacks a symbol", _VERSION),
    0x45: ("no such file", _LOADING),
    0x48: ("no mapping of this buffer", "map it first"),
    0x52: ("no library that the NPU can read", _VERSION),
    0x57: ("the device cannot be opened", _ACCESS),
    0x65: ("the buffer cannot be mapped", _MEMORY),
    0x68: ("no shared memory", _MEMORY),
    0x72: ("connection refused", _ACCESS),
    0x81: ("the library is not signed", _SIGNING),
    0x8A: ("no session is free", "end other programs that use the NPU"),
    0x200: ("FastRPC failed", _ACCESS),
}

# Errors that are the same on both sides.
SHARED: Mapping[int, tuple[str, str]] = {
    0xFFFFFFFF: ("unknown error", _ACCESS),
    0xFFFFFFFB: ("unable to load the library", _LOADING),
    39: ("the session has ended", _AGAIN),
    46: ("interrupted", "try again"),
    104: ("connection reset", _AGAIN),
    516: ("would block", "try again"),
}


def meaning(code: int) -> tuple[str, str]:
    """What an error says, and what to do about it."""
    word = code & 0xFFFFFFFF
    if word in set(Fault):
        what, cure = FAULTS[Fault(word)]
        return f"the skel refused ({Fault(word).name}): {what}", cure
    if word in SHARED:
        return SHARED[word]
    number = word - _FROM_NPU if word >= _FROM_NPU else word
    return STANDARD.get(number, ("an error that FastRPC does not document", _AGAIN))


def refusal(code: int, what: str) -> CallRefused:
    """An error of this number, about `what`."""
    said, cure = meaning(code)
    return CallRefused(f"{what}: {said}, error 0x{code & 0xFFFFFFFF:x}", cure, code & 0xFFFFFFFF)
