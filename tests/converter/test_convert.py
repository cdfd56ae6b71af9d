from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from converter import convert as conversion
from converter.convert import convert
from edge import bundle_writer, disk
from edge.bundle import Bundle, verify
from edge.errors import (
    BadWeights,
    LutraError,
    MissingTensor,
    NoSpace,
    OutputExists,
    SourceNotFound,
    TruncatedSource,
    UnknownArchitecture,
    UnsupportedMath,
    WrongShape,
)
from tests.checkpoints import edit_config, make_checkpoint, rewrite_weights

FORMATS = [
    "f32",
    "f16",
    "w8gc",
    "w8g64",
    "w4g64",
    "w4g32a",
    "w4gc",
    "w3g64",
    "w2g32",
    "w2g64a",
    "ternary",
    "ternaryg32",
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.glob(out.name + "*"))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_converts_opens_and_runs(form: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.lutra"
    manifest = convert(checkpoint, out, weights=form, head=form)
    bundle = Bundle.open(out)
    verify(bundle)
    assert bundle.manifest == manifest
    logits = edge.load(out).logits([1, 2, 3])
    assert logits.shape == (3, 300)
    assert np.isfinite(logits).all()


def test_more_bits_are_closer_to_float(checkpoint: Path, tmp_path: Path) -> None:
    def logits(form: str) -> Any:
        convert(checkpoint, tmp_path / form, weights=form, head=form)
        return edge.load(tmp_path / form).logits([5, 7, 11, 13])

    exact = logits("f32")
    errors = [np.abs(logits(f) - exact).mean() for f in ("f16", "w8gc", "w4g32", "w3g32", "w2g32")]
    assert errors == sorted(errors)
    assert errors[1] < errors[2] / 4


def test_blocks_make_the_same_bundle_as_a_whole_tensor(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in ("w4g64", "ternary", "f16"):
        convert(checkpoint, tmp_path / "whole", weights=form)
        monkeypatch.setattr("converter.weights.BLOCK_WEIGHTS", 1)
        convert(checkpoint, tmp_path / "blocks", weights=form)
        monkeypatch.undo()
        name = "weights.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()
        for made in ("whole", "blocks"):
            shutil.rmtree(tmp_path / made)


def test_shards_make_the_same_bundle_as_one_file(checkpoint: Path, tmp_path: Path) -> None:
    from converter.synth import synthesize
    from tests.checkpoints import TINY

    synthesize(TINY, tmp_path / "sharded", dtype="f32", shard_bytes=20_000)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    for source in ("tiny", "sharded"):
        convert(tmp_path / source, tmp_path / f"{source}.lutra", weights="w4g64")
    read = [
        (tmp_path / f"{s}.lutra" / "weights.safetensors").read_bytes() for s in ("tiny", "sharded")
    ]
    assert read[0] == read[1]


def test_the_manifest_states_the_error_of_each_tensor(checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "m", weights="w4g64")
    errors = {name: record.relative_rms_error for name, record in manifest.tensors.items()}
    assert errors["layers.0.attention_norm"] == 0
    assert 0.05 < errors["layers.0.q"] < 0.12


# What is wrong with the checkpoint, and what the error must be and name.


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


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


BROKEN: dict[str, tuple[Any, type[LutraError], str]] = {
    "no config": (no_config, SourceNotFound, "no config.json"),
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


def test_every_source_error_has_its_own_exit_code() -> None:
    errors = {error for _, error, _ in BROKEN.values()}
    assert len({error.exit_code for error in errors}) == len(errors)


def test_sources_that_are_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such folder, and not a hub name"):
        convert(tmp_path / "nowhere", tmp_path / "m")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceNotFound, match="is a file"):
        convert(tmp_path / "model.gguf", tmp_path / "m")


def test_output_already_there(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.lutra"
    convert(checkpoint, out, weights="w4g64")
    with pytest.raises(OutputExists, match="already there"):
        convert(checkpoint, out, weights="w8gc")
    assert str(Bundle.open(out).manifest.tensors["layers.0.q"].form) == "w4g64"
    convert(checkpoint, out, weights="w8gc", overwrite=True)
    assert str(Bundle.open(out).manifest.tensors["layers.0.q"].form) == "w8gc"
    assert leftovers(out) == ["m.lutra"]


def test_overwrite_spares_what_is_no_bundle(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="not a bundle"):
        convert(checkpoint, checkpoint, overwrite=True)
    assert (checkpoint / "model.safetensors").is_file()


def test_no_room_is_seen_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: full)
    with pytest.raises(NoSpace, match="0 MB free"):
        convert(checkpoint, tmp_path / "m.lutra")
    assert leftovers(tmp_path / "m.lutra") == []


@pytest.mark.parametrize("reserves", [True, False])
def test_a_disk_that_fills_up(
    reserves: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file size limit stands in for a full disk: the system refuses to write on.

    Where the file system reserves, that is at the start; elsewhere in the middle of the work.
    """
    out = tmp_path / "m.lutra"
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr("edge.tensorfile.os.truncate", lambda descriptor, size: None)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(NoSpace, match="no room on the disk"):
            convert(checkpoint, out, weights="w4g64")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert leftovers(out) == ([] if reserves else ["m.lutra.partial"])
    convert(checkpoint, out, weights="w4g64")
    assert edge.load(out).logits([1]).shape == (1, 300)


class Stop(BaseException):
    pass


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the conversion stop after `count` tensors; returns the names encoded, in order."""
    encode, encoded = conversion._encode, list[str]()

    def interrupted(weights: Any, planned: Any, writer: Any, watcher: Any) -> float:
        if len(encoded) == count:
            raise Stop
        encoded.append(planned.tensor.name)
        return encode(weights, planned, writer, watcher)

    monkeypatch.setattr(conversion, "_encode", interrupted)
    return encoded


def test_an_interrupted_conversion_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.lutra"
    convert(checkpoint, tmp_path / "whole", weights="w4g64")
    first = interrupt_after(7, monkeypatch)
    with pytest.raises(Stop):
        convert(checkpoint, out, weights="w4g64")
    assert leftovers(out) == ["m.lutra.partial"]
    monkeypatch.undo()
    second = interrupt_after(1000, monkeypatch)
    manifest = convert(checkpoint, out, weights="w4g64")
    assert not set(first) & set(second)
    assert {*first, *second} == {*manifest.tensors}
    assert leftovers(out) == ["m.lutra"]
    for name in ("weights.safetensors", "manifest.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_plan_or_source_starts_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.lutra"
    interrupt_after(7, monkeypatch)
    with pytest.raises(Stop):
        convert(checkpoint, out, weights="w4g64")
    monkeypatch.undo()
    encoded = interrupt_after(1000, monkeypatch)
    manifest = convert(checkpoint, out, weights="w8gc")
    assert len(encoded) == len(manifest.tensors)
    verify(Bundle.open(out))


def test_a_journal_line_that_was_cut_does_not_count(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.lutra"
    first = interrupt_after(3, monkeypatch)
    with pytest.raises(Stop):
        convert(checkpoint, out)
    journal = tmp_path / "m.lutra.partial" / "journal.jsonl"
    os.truncate(journal, journal.stat().st_size - 5)
    monkeypatch.undo()
    second = interrupt_after(1000, monkeypatch)
    convert(checkpoint, out)
    assert set(first) & set(second) == {first[-1]}


def test_a_killed_process_leaves_nothing_at_out_and_can_be_gone_on_with(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.lutra"
    script = (
        "import sys, time\n"
        "from converter import convert as c\n"
        "encode = c._encode\n"
        "def slow(*args):\n"
        "    error = encode(*args)\n"
        "    time.sleep(0.05)\n"
        "    return error\n"
        "c._encode = slow\n"
        "c.convert(sys.argv[1], sys.argv[2], weights='w4g64')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(checkpoint), str(out)])
    journal = tmp_path / "m.lutra.partial" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not journal.is_file() or journal.read_text().count("\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert leftovers(out) == ["m.lutra.partial"]
    convert(checkpoint, out, weights="w4g64")
    verify(Bundle.open(out))


def test_two_conversions_to_one_place(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.lutra"
    tensors: dict[str, Any] = {}
    with (
        bundle_writer.BundleWriter(out, tensors, "one"),
        pytest.raises(OutputExists, match="another conversion"),
    ):
        convert(checkpoint, out)


def test_memory_is_bounded_by_the_block_not_the_model(tmp_path: Path) -> None:
    """What the converter takes is under a quarter of the model in float32."""
    source = make_checkpoint(
        tmp_path / "big",
        vocab_size=32000,
        hidden_size=512,
        num_hidden_layers=8,
        intermediate_size=2048,
        dtype="bf16",
    )
    script = (
        "import resource, sys\n"
        "from converter.convert import convert\n"
        "import converter.weights as w\n"
        "w.BLOCK_WEIGHTS = 1 << 18\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "convert(sys.argv[1], sys.argv[2], weights='w4g64')\n"
        "print(peak() - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "m.lutra")],
        capture_output=True,
        text=True,
        check=True,
    )
    float32_kb = 4 * 65_000_000 / 1000
    assert int(run.stdout) < 0.25 * float32_kb, run.stdout
