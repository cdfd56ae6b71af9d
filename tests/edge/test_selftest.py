from __future__ import annotations

import numpy as np
import pytest

from edge import reference
from edge.selftest import check_target
from edge.target import Target


def test_the_reference_passes() -> None:
    outcome = check_target(Target("ref"))
    assert outcome.passed
    assert outcome.error < 1e-5


@pytest.mark.parametrize("name", ["Norm", "Rope", "Attention", "Gate", "Linear", "Embed", "Add"])
def test_a_wrong_op_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {op.__name__: op for op in reference.FUNCTIONS}
    right = reference.FUNCTIONS[functions[name]]
    wrong = dict(reference.FUNCTIONS)
    wrong[functions[name]] = lambda *arguments: right(*arguments) * np.float32(1.01)
    monkeypatch.setattr(reference, "FUNCTIONS", wrong)
    assert not check_target(Target("ref")).passed
