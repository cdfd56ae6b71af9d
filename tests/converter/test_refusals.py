"""Checkpoints that are broken: what is said, and that nothing is written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter import convert as conversion
from converter.convert import convert
from edge.errors import (
    BadWeights,
    LutraError,
    MissingTensor,
    SourceNotFound,
    TruncatedSource,
    UnknownArchitecture,
    UnsupportedMath,
    WrongShape,
)
from tests.checkpoints import edit_config, make_checkpoint, rewrite_weights


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


# What is wrong with the checkpoint, and what the error must be and name.


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def make_bundle(folder: Path) -> None:
    (folder / "config.json").rename(folder / "manifest.json")


def cut_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    )


def nan(folder: Path) -> None:
    weights = np.zeros((32, 32), np.float32)
    weights[17, 3] = np.nan
    rewrite_weights(folder, model__layers__1__self_attn__q_proj__weight=weights)


def unknown_type(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"U32"', 1))


def sampling(folder: Path, **values: float) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, **values}))


BROKEN: dict[str, tuple[Any, type[LutraError], str]] = {
    "no config": (no_config, SourceNotFound, "no config.json"),
    "a bundle": (make_bundle, SourceNotFound, "is a bundle; give the checkpoint"),
    "cut config": (cut_config, TruncatedSource, "config.json: not whole JSON"),
    "architecture": (lambda f: edit_config(f, model_type="mamba"), UnknownArchitecture, "mamba"),
    "no model type": (lambda f: edit_config(f, model_type=None), UnknownArchitecture, "None"),
    "math": (
        lambda f: edit_config(f, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        UnsupportedMath,
        "rope_scaling.*dynamic",
    ),
    "unknown key": (lambda f: edit_config(f, logit_noise=0.5), UnsupportedMath, "logit_noise"),
    "no weights": (no_weights, SourceNotFound, "no model.safetensors"),
    "pickle": (pickled, SourceNotFound, "pickled weights"),
    "missing shard": (missing_shard, SourceNotFound, "model-00002-of-00002"),
    "truncated": (truncated, TruncatedSource, "its header needs"),
    "missing tensor": (
        lambda f: rewrite_weights(f, model__norm__weight=None),
        MissingTensor,
        "model.norm.weight",
    ),
    "shape": (
        lambda f: rewrite_weights(f, model__norm__weight=np.ones(31, np.float32)),
        WrongShape,
        r"model.norm.weight is \[31\], the config implies \[32\]",
    ),
    "left over": (
        lambda f: rewrite_weights(f, model__extra__weight=np.ones(3, np.float32)),
        UnsupportedMath,
        "model.extra.weight has no place",
    ),
    "nan": (nan, BadWeights, "q_proj.weight has NaN in row 17"),
    "too large": (
        lambda f: rewrite_weights(
            f, model__layers__0__self_attn__q_proj__weight=np.full((32, 32), 1e300)
        ),
        BadWeights,
        "q_proj.weight has infinity in row 0",
    ),
    "codes": (
        lambda f: rewrite_weights(f, lm_head__weight=np.ones((300, 32), np.int8)),
        UnsupportedMath,
        "lm_head.weight is I8, need floats; it is quantized already",
    ),
    "unknown type": (
        unknown_type,
        TruncatedSource,
        "is 'U32', which is not one of.* give a copy in one of them",
    ),
    "architectures": (lambda f: edit_config(f, architectures=5), UnknownArchitecture, "is 5"),
    "huge": (lambda f: edit_config(f, hidden_size=10**12), UnsupportedMath, r"below 2\^31"),
    "heads": (lambda f: edit_config(f, hidden_size=30), UnsupportedMath, "is 30 for 4 attention"),
    "many heads": (
        lambda f: edit_config(f, num_attention_heads=64),
        UnsupportedMath,
        "is 32 for 64 attention",
    ),
    "odd head": (lambda f: edit_config(f, head_dim=7), UnsupportedMath, "head_dim gives 7"),
    "rope": (lambda f: edit_config(f, rope_theta=1e-300), UnsupportedMath, "rope_theta"),
    "longrope": (
        lambda f: edit_config(
            f,
            rope_scaling={
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [1.0] * 4,
                "original_max_position_embeddings": 1,
            },
        ),
        UnsupportedMath,
        "no finite numbers",
    ),
    "top_p": (lambda f: sampling(f, top_p=0), TruncatedSource, "generation_config.json: top_p"),
    "top_k": (lambda f: sampling(f, top_k=math.inf), TruncatedSource, "generation_config.json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_and_nothing_is_written(
    case: str, checkpoint: Path, tmp_path: Path
) -> None:
    damage, error, message = BROKEN[case]
    damage(checkpoint)
    out = tmp_path / "m.lutra"
    with pytest.raises(error, match=message):
        convert(checkpoint, out)
    assert not out.exists()


def test_weights_that_are_cut_during_the_conversion(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, path = conversion._encode, checkpoint / "model.safetensors"

    def cut_and_encode(*arguments: Any) -> float:
        os.truncate(path, 10_000)
        return encode(*arguments)

    monkeypatch.setattr(conversion, "_encode", cut_and_encode)
    with pytest.raises(TruncatedSource, match=r"model\.safetensors: ends in tensor"):
        convert(checkpoint, tmp_path / "m.lutra")
    assert not (tmp_path / "m.lutra").exists()


def test_scales_over_the_range_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = np.full((32, 32), 3e38, np.float32)
    weights[0, 0] = -3e38
    rewrite_weights(checkpoint, model__layers__0__self_attn__q_proj__weight=weights)
    with pytest.raises(BadWeights, match="over the range of w4gca"):
        convert(checkpoint, tmp_path / "m.lutra", weights="w4gca")


def test_every_source_error_has_its_own_exit_code() -> None:
    errors = {error for _, error, _ in BROKEN.values()}
    assert len({error.exit_code for error in errors}) == len(errors)


def test_sources_that_are_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such folder, and not a hub name"):
        convert(tmp_path / "nowhere", tmp_path / "m")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceNotFound, match="is a file"):
        convert(tmp_path / "model.safetensors", tmp_path / "m")
    for name in ("model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(SourceNotFound, match="is a pickle, which could run code"):
            convert(tmp_path / name, tmp_path / "m")
