"""Where a bundle goes: what is there already, full disks, interruptions and going on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge
from converter import convert as conversion
from converter.convert import convert
from converter.npu import plan_npu
from converter.plan import Formats
from edge import bundle_writer, disk
from edge.bundle import Bundle, verify
from edge.errors import (
    NoSpace,
    OutputExists,
    SourceChanged,
)
from edge.watch import Silent
from tests.checkpoints import make_checkpoint
from tests.gguf_files import write_gguf


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.glob(out.name + "*"))


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


def test_a_folder_that_no_conversion_made_is_left_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "m.lutra.partial" / "mine"
    mine.parent.mkdir()
    mine.write_text("x")
    with pytest.raises(OutputExists, match="no conversion left there"):
        convert(checkpoint, tmp_path / "m.lutra")
    assert mine.read_text() == "x"


def test_room_for_an_npu_is_seen_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for the weights, and not for their copy."""
    npu = plan_npu(["npu:ort"], 32)
    job = conversion.prepare(checkpoint, Formats.parse("w4g64"), npu=npu)
    room = job.plan.byte_count + (32 << 20)
    free = shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: free)
    with pytest.raises(NoSpace):
        conversion.run(job, tmp_path / "m.lutra")
    assert leftovers(tmp_path / "m.lutra") == []
    conversion.run(replace(job, npu=None), tmp_path / "m.lutra")


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


class Meddler(Silent):
    """Does something to the source when the weights are written and their checksums made."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        self._meddle = meddle

    def start(self, what: str, total: int, unit: str) -> None:
        if what == "checksums":
            self._meddle()


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_source_that_changes_is_no_bundle(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    source, out = checkpoint, tmp_path / "m.lutra"
    weights = checkpoint / "model.safetensors"
    if kind == "gguf":
        pytest.importorskip("gguf")
        source = weights = write_gguf(checkpoint, tmp_path / "model.gguf")
    later = weights.stat().st_mtime_ns + 1
    touch = Meddler(lambda: os.utime(weights, ns=(later, later)))
    with pytest.raises(SourceChanged, match=rf"{weights.name} changed while it was converted"):
        convert(source, out, watcher=touch)
    assert not out.exists()
    convert(source, out)
    verify(Bundle.open(out))
    with pytest.raises(SourceChanged, match=rf"{weights.name} is gone while it was converted"):
        convert(source, out, overwrite=True, watcher=Meddler(weights.unlink))
    verify(Bundle.open(out))


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
    (tmp_path / "m.lutra.partial" / "npu").mkdir()
    convert(checkpoint, out)
    assert not (out / "npu").exists()
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
