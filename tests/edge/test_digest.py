"""SHA-256 is the same whichever code makes it."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from edge.digest import DIGEST_BYTES, sha256


@pytest.mark.parametrize("size", [0, 1, 1000, 3 << 20])
def test_digests_are_hashlibs(size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    assert sha256(content).digest() == hashlib.sha256(content).digest()
    begun = sha256(byte_count=size)
    for start in range(0, size, 1 << 20):
        begun.update(content[start : start + (1 << 20)])
    assert begun.digest() == sha256(content).digest()
    assert len(begun.digest()) == DIGEST_BYTES


def test_openssl_is_loaded_for_what_is_large() -> None:
    program = """
import sys
from edge.digest import sha256
sha256(b"small")
print("_hashlib" in sys.modules)
sha256(byte_count=1 << 30)
print("hashlib" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["False", "True"]
