from __future__ import annotations

import json
import math
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
from converter.convert import convert, read_generation
from converter.plan import Formats
from converter.watch import Silent
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
from edge.model import DEFAULT_SAMPLING, with_defaults
from edge.sampler import Sampling
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
        return edge.load(tmp_path / form, target="ref").logits([5, 7, 11, 13])

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


def unknown_type(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"U32"', 1))


def sampling(folder: Path, **values: float) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, **values}))


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
        "lm_head.weight is I8, need F64 or F32.*quantized already",
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, DEFAULT_SAMPLING),
        ({"temperature": 0.3}, DEFAULT_SAMPLING),  # says nothing without do_sample
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "temperature": None}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(temperature=0.3, top_k=50)),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9}, Sampling(1.0, top_k=5, top_p=0.9)),
    ],
)
def test_sampling_that_the_checkpoint_asks_for(values: dict[str, Any], expected: Sampling) -> None:
    assert with_defaults(DEFAULT_SAMPLING, read_generation(values)) == expected


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


class Notes(Silent):
    """Keeps what a conversion notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("source", ["{% if x %}", "{{ 1 + }}"])
def test_a_template_that_does_not_compile_is_noted(
    source: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    (checkpoint / "chat_template.jinja").write_text(source)
    watcher = Notes()
    convert(checkpoint, tmp_path / "m.lutra", watcher=watcher)
    assert watcher.texts[0].startswith("note: the chat template is ")
    assert "chat will not work" in watcher.texts[1]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    watcher = Notes()
    convert(checkpoint, tmp_path / "m.lutra", watcher=watcher, overwrite=True)
    assert watcher.texts == []


def test_a_byte_order_mark_does_no_harm(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert convert(checkpoint, tmp_path / "m.lutra").model_type == "llama"


@pytest.mark.parametrize("form", ["f32", "w8gc", "ternary"])
def test_the_error_of_huge_weights_is_a_number(form: str, checkpoint: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32) * np.float32(1e30)
    rewrite_weights(checkpoint, model__layers__0__self_attn__q_proj__weight=weights)
    manifest = convert(checkpoint, tmp_path / "m.lutra", weights=form)
    assert (form == "f32") == (manifest.tensors["layers.0.q"].relative_rms_error == 0)
    assert manifest.tensors["layers.0.q"].relative_rms_error < 1


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


def test_overwrite_of_a_link_leaves_what_it_leads_to(checkpoint: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    convert(checkpoint, real, weights="w4g64")
    link.symlink_to(real)
    convert(checkpoint, link, weights="w8gc", overwrite=True)
    assert not link.is_symlink()
    for out, form in ((real, "w4g64"), (link, "w8gc")):
        assert str(Bundle.open(out).manifest.tensors["layers.0.q"].form) == form
    assert leftovers(link) == ["link"]


def test_overwrite_spares_an_older_folder_of_the_same_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.lutra"
    convert(checkpoint, out)
    (tmp_path / "m.lutra.old").mkdir()
    (tmp_path / "m.lutra.old" / "mine").write_text("x")
    convert(checkpoint, out, weights="w8gc", overwrite=True)
    assert leftovers(out) == ["m.lutra", "m.lutra.old"]
    assert (tmp_path / "m.lutra.old" / "mine").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("out", ["", ".", "..", "/", "x" * 250, "x" * 300, "taken"])
def test_outputs_that_cannot_be(
    out: str, overwrite: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.partial").write_text("mine")
    with pytest.raises(OutputExists):
        convert(checkpoint, out, overwrite=overwrite)
    assert Path("taken.partial").read_text() == "mine"


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


def test_what_fails_at_the_last_step_is_not_done_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> Path:
        raise Stop

    out = tmp_path / "m.lutra"
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(Stop):
        convert(checkpoint, out)
    monkeypatch.undo()
    encoded = interrupt_after(1000, monkeypatch)
    convert(checkpoint, out)
    assert encoded == []
    assert sorted(p.name for p in out.iterdir()) == [
        "manifest.json",
        "tokenizer.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("name", ["weights.safetensors", "journal.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[1]\n", b"\xff\xfe\n"])
def test_damage_to_what_an_interrupted_conversion_left_starts_it_again(
    name: str, content: bytes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.lutra"
    convert(checkpoint, tmp_path / "whole")
    interrupt_after(7, monkeypatch)
    with pytest.raises(Stop):
        convert(checkpoint, out)
    monkeypatch.undo()
    (tmp_path / "m.lutra.partial" / name).write_bytes(content)
    convert(checkpoint, out)
    weights = "weights.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_another_context_starts_again(checkpoint: Path) -> None:
    """Constants depend on it: longrope has two sets of frequencies."""
    formats = Formats.parse("w4g64")
    keys = [conversion.prepare(checkpoint, formats, context=n).key for n in (32, 64, None)]
    assert keys[0] != keys[1] == keys[2]


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
