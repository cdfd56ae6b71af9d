"""LoRA adapters: the bundle of the merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.convert import convert, prepare
from converter.plan import Formats
from edge.bundle import Bundle
from edge.errors import (
    BadWeights,
    LutraError,
    MissingTensor,
    SourceNotFound,
    TruncatedSource,
    UnsupportedMath,
    UsageError,
    WrongShape,
)
from tests.checkpoints import make_checkpoint
from tests.gguf_files import write_gguf

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
WIDTHS = {Q: (32, 32), DOWN: (32, 172)}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "target_modules": ["q_proj", "down_proj"],
    "base_model_name_or_path": "somewhere/model",
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "use_dora": False,
    "alpha_pattern": {},
    "rank_pattern": {},
}
Tensors = dict[str, NDArray[Any]]


def draw(rank: int = 4, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (out, width) in WIDTHS.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, width))
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(out, rank))
    return {name: (values / 8).astype(np.float32) for name, values in tensors.items()}


def write_adapter(folder: Path, tensors: Tensors, **changes: Any) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def product(tensors: Tensors, module: str) -> NDArray[np.float64]:
    a, b = (
        tensors[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float64) for part in "AB"
    )
    return b @ a


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def weights(source: Path, lora: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """q of layer 1 and down of layer 0."""
    out = source.with_name("weights.lutra")
    convert(source, out, weights="f32", lora=lora, overwrite=True)
    bundle = Bundle.open(out)
    return bundle.tensor("layers.1.q").dequantized(), bundle.tensor("layers.0.down").dequantized()


@pytest.mark.parametrize(
    ("changes", "rank", "scales"),
    [
        ({}, 4, (2, 2)),
        ({"use_rslora": True}, 4, (4, 4)),
        ({"rank_pattern": {"q_proj": 8, "down_proj": 8}}, 8, (1, 1)),
        ({"alpha_pattern": {"q_proj": 16}}, 4, (4, 2)),
        ({"alpha_pattern": {"layers.0.mlp.down_proj": 2.0}}, 4, (2, 0.5)),
        ({"alpha_pattern": {"proj": 100}}, 4, (2, 2)),
    ],
)
def test_the_product_is_added_at_its_scale(
    changes: dict[str, Any], rank: int, scales: tuple[float, float], model: Path, tmp_path: Path
) -> None:
    tensors = draw(rank)
    adapter = write_adapter(tmp_path / "adapter", tensors, **changes)
    before, after = weights(model, []), weights(model, [str(adapter)])
    for module, scale, old, new in zip((Q, DOWN), scales, before, after, strict=True):
        np.testing.assert_allclose(new - old, scale * product(tensors, module), atol=1e-5)


def test_adapters_add_up_with_factors(model: Path, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", draw(seed=1))
    second = write_adapter(tmp_path / "se:cond", draw(seed=2), lora_alpha=4)
    before = weights(model, [])
    after = weights(model, [f"{first}:0.5", f"{second}:-2", str(second)])
    expected = 0.5 * 2 * product(draw(seed=1), Q) + (1 - 2) * product(draw(seed=2), Q)
    np.testing.assert_allclose(after[0] - before[0], expected, atol=1e-5)


def test_the_manifest_names_the_adapter(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", draw())
    assert convert(model, tmp_path / "m.lutra", lora=[str(adapter)]).name == "model + adapter"


def test_another_factor_is_another_conversion(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", draw())
    keys = {
        prepare(model, Formats.parse(), lora=lora).key
        for lora in ([], [str(adapter)], [f"{adapter}:1"], [f"{adapter}:2"])
    }
    assert len(keys) == 3


def test_gguf_files_take_adapters_too(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter", draw())
    path = write_gguf(source, tmp_path / "model.gguf")
    for ours, theirs in zip(
        weights(path, [str(adapter)]), weights(source, [str(adapter)]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_integers_that_an_adapter_changes_need_a_format(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", intermediate_size=192)
    tensors = {name: v for name, v in draw().items() if Q in name}
    adapter = write_adapter(tmp_path / "adapter", tensors)
    path = write_gguf(source, tmp_path / "model.gguf", "Q8_0")
    with pytest.raises(
        UnsupportedMath, match=r"q_proj.weight .*: an adapter changes it; --weights"
    ):
        convert(path, tmp_path / "m.lutra", lora=[str(adapter)])
    manifest = convert(path, tmp_path / "m.lutra", weights="w8g32", lora=[str(adapter)])
    assert 0 < manifest.tensors["layers.1.q"].relative_rms_error < 0.01
    assert manifest.tensors["layers.0.q"].relative_rms_error == 0


def renamed(old: str, new: str) -> Tensors:
    return {name.replace(old, new): values for name, values in draw().items()}


BROKEN: dict[str, tuple[Tensors, dict[str, Any], type[LutraError], str]] = {
    "another kind": (draw(), {"peft_type": "IA3"}, UnsupportedMath, "peft_type is 'IA3'"),
    "dora": (draw(), {"use_dora": True}, UnsupportedMath, "use_dora is True"),
    "biases": (draw(), {"bias": "all"}, UnsupportedMath, "bias is 'all'"),
    "saved": (draw(), {"modules_to_save": ["lm_head"]}, UnsupportedMath, "modules_to_save is"),
    "pissa": (draw(), {"init_lora_weights": "pissa"}, UnsupportedMath, "init_lora_weights is"),
    "unknown": (draw(), {"use_magic": True}, UnsupportedMath, "use_magic is True: no math"),
    "no alpha": (draw(), {"lora_alpha": None}, UnsupportedMath, "lora_alpha is missing"),
    "alpha": (draw(), {"lora_alpha": "much"}, UnsupportedMath, "lora_alpha is 'much'"),
    "pattern": (draw(), {"alpha_pattern": {"(a|a)*b": 1}}, UnsupportedMath, "alpha_pattern is"),
    "embedding": (renamed("lora_A.weight", "lora_embedding_A"), {}, UnsupportedMath, "not one of"),
    "half": (renamed("down_proj.lora_A", "up_proj.lora_A"), {}, UnsupportedMath, "not one of"),
    "prefix": (renamed("base_model.model.", ""), {}, UnsupportedMath, "not one of a pair"),
    "another model": (renamed("layers.1", "layers.7"), {}, MissingTensor, "does not have"),
    "shape": (renamed("q_proj", "k_proj"), {}, WrongShape, r"of \[32, 32\], model has \[16, 32\]"),
    "codes": (
        {name: values.astype(np.int8) for name, values in draw().items()},
        {},
        UnsupportedMath,
        "in floats",
    ),
    "ranks": (
        draw() | {f"base_model.model.{Q}.lora_A.weight": np.zeros((3, 32), np.float32)},
        {},
        WrongShape,
        r"lora_A \[3, 32\] and lora_B \[32, 4\]",
    ),
    "no number": (
        draw() | {f"base_model.model.{Q}.lora_A.weight": np.full((4, 32), np.nan, np.float32)},
        {},
        BadWeights,
        r"adapter_model\.safetensors: what is added to .*q_proj\.weight has NaN",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_understood_is_refused(case: str, model: Path, tmp_path: Path) -> None:
    tensors, changes, error, message = BROKEN[case]
    adapter = write_adapter(tmp_path / "adapter", tensors, **changes)
    with pytest.raises(error, match=message):
        convert(model, tmp_path / "m.lutra", lora=[str(adapter)])
    assert not (tmp_path / "m.lutra").exists()


def test_folders_that_are_no_adapter(model: Path, tmp_path: Path) -> None:
    def refuse(text: str, error: type[LutraError], message: str) -> None:
        with pytest.raises(error, match=message):
            prepare(model, Formats.parse(), lora=[text])

    adapter = write_adapter(tmp_path / "adapter", draw())
    refuse(str(tmp_path / "nowhere"), SourceNotFound, "no adapter_config.json")
    refuse(f"{adapter}:much", SourceNotFound, "no such folder; give FOLDER or FOLDER:SCALE")
    refuse(f"{adapter}:inf", UsageError, "a scale of inf")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refuse(str(adapter), SourceNotFound, "no adapter_model.safetensors; save the adapter as")
    (adapter / "adapter_config.json").write_text("{")
    refuse(str(adapter), TruncatedSource, "not whole JSON")


def test_a_tensor_that_is_tied_is_named(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    adapter = write_adapter(tmp_path / "adapter", renamed(Q, "lm_head"))
    with pytest.raises(MissingTensor, match=r"changes lm_head\.weight, which model does not have"):
        prepare(model, Formats.parse(), lora=[str(adapter)])
