from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cpu.amx import emulator


@pytest.fixture(scope="session", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTRA_CACHE", str(tmp_path_factory.mktemp("code")))
        yield


@pytest.fixture(autouse=True)
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of tests that are marked `amx`: run AMX code, emulated where the machine has none."""
    if request.node.get_closest_marker("amx") is None or emulator.has_amx():
        yield
        return
    emulator.require_avx512()
    for room in ("cpu", "edge"):
        monkeypatch.setattr(f"{room}.backend.this_machine", emulator.with_amx)
    for module in ("backend", "native"):
        monkeypatch.setattr(f"cpu.{module}.refused_tiles", lambda: "")
    with emulator.emulation():
        yield
