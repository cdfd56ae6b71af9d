from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.npu.hvx.harness import Device, lookup_device, require_emulator


@pytest.fixture(scope="session", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTRA_CACHE", str(tmp_path_factory.mktemp("code")))
        yield


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """An emulated Hexagon with the lookup kernels."""
    require_emulator()
    made = lookup_device()
    yield made
    made.emulator.close()
