from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code is kept for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTRA_CACHE", str(tmp_path_factory.mktemp("code")))
        yield
