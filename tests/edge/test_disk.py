"""Text files: whole or not at all, and what is no plain file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.disk import write_text
from edge.errors import NoSpace, OutputExists


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_what_is_no_plain_file_is_written_and_stays(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        write_text(Path("/dev/full"), "text")
    read, write = os.pipe()
    write_text(Path(f"/dev/fd/{write}"), "text")
    os.close(write)
    assert os.read(read, 10) == b"text"
    os.close(read)
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("name", ["/", "none/x", "folder", "file/x", "x" * 300])
def test_places_that_take_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExists):
        write_text(tmp_path / name, "text")
    assert (tmp_path / "file").read_text() == "mine"
