"""Random-weight checkpoints: the same every time, readable by everyone, in bounded pieces."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

import edge
from converter import synth
from converter.convert import convert
from converter.models import build_model
from converter.presets import PRESETS
from converter.sources.huggingface import open_checkpoint
from converter.synth import SPECIAL_TOKENS, Drawn, drawn_tensors, make_tokenizer, synthesize
from edge.errors import NoSpace, OutputExists, UnsupportedMath, UsageError
from edge.tensorfile import TensorFileWriter
from tests.golden.variants import VARIANTS

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    assert build_model(PRESETS[name], 32).graph.context == 32


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    tensor = Drawn("a", (5, 7), 0.0, 1.0)
    assert np.array_equal(tensor.values(3), Drawn("a", (5, 7), 0.0, 1.0).values(3))
    assert not np.array_equal(tensor.values(3), tensor.values(4))
    assert not np.array_equal(tensor.values(3), Drawn("b", (5, 7), 0.0, 1.0).values(3))
    assert np.array_equal(tensor.values(3)[:4], Drawn("a", (4, 7), 0.0, 1.0).values(3))


def test_blocks_make_the_same_values_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = Drawn("a", (33, 5), 1.0, 0.2)
    whole = tensor.values(0)
    monkeypatch.setattr(synth, "BLOCK_VALUES", 12)
    assert len(list(tensor.blocks(0))) == 17
    assert np.array_equal(tensor.values(0), whole)


def test_values_have_the_mean_and_deviation_asked_for() -> None:
    values = Drawn("a", (400, 100), 1.0, 0.2).values(0)
    assert abs(values.mean() - 1.0) < 0.005
    assert abs(values.std() - 0.2) < 0.005


def test_norms_are_around_what_leaves_values_alone() -> None:
    means = {
        name: {t.name: t.mean for t in drawn_tensors(build_model(VARIANTS[name].config))}
        for name in ("llama_attention_bias", "gemma2")
    }
    assert means["llama_attention_bias"]["model.norm.weight"] == 1.0
    assert means["llama_attention_bias"]["model.layers.0.self_attn.q_proj.bias"] == 0.0
    assert means["gemma2"]["model.norm.weight"] == 0.0


def test_fused_projections_are_one_tensor() -> None:
    shapes = {t.name: t.shape for t in drawn_tensors(build_model(VARIANTS["phi3"].config))}
    assert shapes["model.layers.0.self_attn.qkv_proj.weight"] == (80, 48)
    assert shapes["model.layers.0.mlp.gate_up_proj.weight"] == (160, 48)


@pytest.mark.parametrize(("dtype", "error"), [("f32", 0.0), ("f16", 2.0**-11), ("bf16", 2.0**-8)])
def test_checkpoint_holds_the_values(dtype: str, error: float, tmp_path: Path) -> None:
    synthesize(TINY, tmp_path / "model", seed=5, dtype=dtype)
    checkpoint = open_checkpoint(tmp_path / "model")
    for tensor in drawn_tensors(build_model(TINY)):
        values = tensor.values(5)
        read = checkpoint.rows(tensor.name, 0, tensor.shape[0])
        # half precision has no relative bound below 2^-14
        np.testing.assert_allclose(read, values, rtol=error, atol=2.0**-25 if error else 0)


def test_safetensors_itself_reads_the_file(tmp_path: Path) -> None:
    synthesize(TINY, tmp_path / "model", dtype="f32")
    with safe_open(tmp_path / "model" / "model.safetensors", "np") as file:
        assert set(file.keys()) == {t.name for t in drawn_tensors(build_model(TINY))}
        norm = file.get_tensor("model.norm.weight")
    assert norm.shape == (128,)


def test_shards_hold_all_tensors(tmp_path: Path) -> None:
    synthesize(TINY, tmp_path / "whole")
    synthesize(TINY, tmp_path / "shards", shard_bytes=200_000)
    shards = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert all((tmp_path / "shards" / name).stat().st_size < 210_000 for name in shards)
    whole, parts = (open_checkpoint(tmp_path / name) for name in ("whole", "shards"))
    assert whole.tensor_names == parts.tensor_names
    for name in whole.tensor_names:
        rows = whole.shape(name)[0]
        assert np.array_equal(whole.rows(name, 0, rows), parts.rows(name, 0, rows))


def test_config_is_the_one_given(tmp_path: Path) -> None:
    synthesize(TINY, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {key: written[key] for key in TINY} == TINY
    assert build_model(written).graph == build_model(TINY).graph


def test_tokenizer_has_every_byte() -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer(512))
    text = "Zwölf Boxkämpfer 🙂\n\tjagen\x00"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert max(ids) < 259
    assert tokenizer.decode(ids) == text
    special = tokenizer.encode("".join(SPECIAL_TOKENS)).ids
    assert special == [0, 1, 2]


def test_ids_without_text_decode_to_nothing() -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer(512))
    ids = tokenizer.encode("ab").ids
    assert tokenizer.decode([300, ids[0], 511, ids[1], 100_000]) == "ab"


def test_small_vocabulary_has_the_printable_bytes() -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer(98))
    assert tokenizer.decode(tokenizer.encode("Hello, world!").ids) == "Hello, world!"
    assert tokenizer.get_vocab_size() == 98


def test_model_runs_from_text_to_text(tmp_path: Path) -> None:
    synthesize(TINY, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "model.lutra", weights="w4g64", context=64)
    model = edge.load(tmp_path / "model.lutra", target="ref")
    text = model.generate("Hello", max_tokens=8, sampling=edge.Sampling.greedy())
    assert isinstance(text, str)
    assert model.encode_chat([edge.Message("user", "Hi")])[0] == 1


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OutputExists, match="model exists"):
        synthesize(TINY, tmp_path / "model")


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, NoSpace), (errno.EIO, OSError)])
def test_full_disk_is_told_from_a_broken_one(
    number: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(TensorFileWriter, "write", fail)
    with pytest.raises(error):
        synthesize(TINY, tmp_path / "model")
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_disk_that_fills_up_at_the_end_leaves_no_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def fail(path: Path, text: str, encoding: str) -> int:
        write(path, "", encoding=encoding)
        if path.name.startswith("config.json"):
            raise OSError(errno.ENOSPC, "full")
        return 0

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(NoSpace):
        synthesize(TINY, tmp_path / "model")
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputExists, match="Not a directory"):
        synthesize(TINY, tmp_path / "file" / "model")


def test_bad_arguments_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="f64"):
        synthesize(TINY, tmp_path / "model", dtype="f64")
    with pytest.raises(UnsupportedMath, match="altup"):
        synthesize(TINY | {"altup": 2}, tmp_path / "model")
    assert not (tmp_path / "model").exists()
