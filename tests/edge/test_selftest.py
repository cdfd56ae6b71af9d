from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge import reference
from edge.graph import Linear
from edge.planes import StoredTensor
from edge.selftest import FORMATS, check_target
from edge.target import Target


def test_the_reference_passes() -> None:
    outcome = check_target(Target("ref"))
    assert outcome.passed
    assert max(trial.error for trial in outcome.trials) < 1e-5
    assert {(trial.form, trial.rows) for trial in outcome.trials} == {
        (form, rows) for form in FORMATS for rows in ("few", "many")
    }


@pytest.mark.parametrize("text", FORMATS)
def test_wrong_weights_of_one_format_are_noticed(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = StoredTensor.dequantized

    def wrong(tensor: StoredTensor) -> NDArray[np.float32]:
        altered = len(tensor.shape) > 1 and str(tensor.form) == text
        return right(tensor) * np.float32(1.1 if altered else 1)

    monkeypatch.setattr(StoredTensor, "dequantized", wrong)
    outcome = check_target(Target("ref"))
    assert {trial.form for trial in outcome.trials if not trial.passed} == {text}


@pytest.mark.parametrize("rows", ["few", "many"])
def test_wrong_results_of_many_or_of_few_rows_are_noticed(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a matrix unit's would be, which few rows do not use."""
    right = reference.FUNCTIONS[Linear]

    def wrong(op: Linear, step: reference.Step, weights: reference.WeightCache) -> Any:
        many = len(step.tokens) > 16
        return right(op, step, weights) * np.float32(1.1 if many == (rows == "many") else 1)

    monkeypatch.setattr(reference, "FUNCTIONS", reference.FUNCTIONS | {Linear: wrong})
    outcome = check_target(Target("ref"))
    assert {trial.rows for trial in outcome.trials if not trial.passed} == {rows}


@pytest.mark.parametrize("name", ["Norm", "Rope", "Attention", "Gate", "Linear", "Embed", "Add"])
def test_a_wrong_op_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {op.__name__: op for op in reference.FUNCTIONS}
    right = reference.FUNCTIONS[functions[name]]
    wrong = dict(reference.FUNCTIONS)
    wrong[functions[name]] = lambda *arguments: right(*arguments) * np.float32(1.01)
    monkeypatch.setattr(reference, "FUNCTIONS", wrong)
    assert not check_target(Target("ref")).passed
