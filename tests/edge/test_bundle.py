from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from converter.convert import convert
from edge import manifest as manifests
from edge.bundle import Bundle, verify
from edge.errors import (
    AlteredBundle,
    BadGraph,
    BadManifest,
    BundleNotFound,
    LutraError,
    TruncatedBundle,
    WrongSchema,
)
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    convert(make_checkpoint(folder / "tiny"), folder / "m.lutra", weights="w4g64")
    return folder / "m.lutra"


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "m.lutra"))


def rewrite(bundle: Path, change: Any, *, sign: bool) -> None:
    """Change the manifest's values; `sign` renews its digest, as a hostile writer would."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    if sign:
        data.pop("digest", None)
        data["digest"] = manifests._digest(data)
    path.write_text(json.dumps(data))


def cut(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", 1000)


def shorten(bundle: Path) -> None:
    os.truncate(bundle / "weights.safetensors", 5000)


def set_format(data: dict[str, Any]) -> None:
    data["tensors"]["layers.0.q"]["format"] = "w8gc"


def first_norm(data: dict[str, Any]) -> dict[str, Any]:
    ops = [op for subgraph in data["graph"]["subgraphs"] for op in subgraph["ops"]]
    norm: dict[str, Any] = next(op for op in ops if op["op"] == "norm")
    return norm


OPENING: dict[str, tuple[Any, type[LutraError], str]] = {
    "empty folder": (lambda b: (b / "manifest.json").unlink(), BundleNotFound, "no manifest.json"),
    "cut manifest": (cut, BadManifest, "not whole"),
    "not JSON": (lambda b: (b / "manifest.json").write_text("{]"), BadManifest, "not whole"),
    "a list": (lambda b: (b / "manifest.json").write_text("[]"), BadManifest, "not whole"),
    "edited manifest": (
        lambda b: rewrite(b, lambda d: d.update(name="x"), sign=False),
        BadManifest,
        "altered",
    ),
    "newer schema": (
        lambda b: rewrite(b, lambda d: d.update(schema=99), sign=True),
        WrongSchema,
        "schema 99, written by lutra .* reads schema 1; upgrade",
    ),
    "older schema": (
        lambda b: rewrite(b, lambda d: d.update(schema=0), sign=True),
        WrongSchema,
        "convert the",
    ),
    "missing key": (
        lambda b: rewrite(b, lambda d: d.pop("graph_sizes"), sign=True),
        BadManifest,
        "graph_sizes",
    ),
    "other format": (
        lambda b: rewrite(b, set_format, sign=True),
        BadManifest,
        "layers.0.q as w8gc",
    ),
    "no format": (
        lambda b: rewrite(b, lambda d: d["tensors"].pop("head"), sign=True),
        BadManifest,
        "head",
    ),
    "unknown op": (
        lambda b: rewrite(
            b, lambda d: d["graph"]["subgraphs"][0]["ops"][0].update(op="warp"), sign=True
        ),
        LutraError,
        "'warp' is not one",
    ),
    "file outside": (
        lambda b: rewrite(
            b, lambda d: d["files"].update({"../x": {"byte_count": 1, "sha256": ""}}), sign=True
        ),
        BadManifest,
        "outside of the bundle",
    ),
    "compiled file not listed": (
        lambda b: rewrite(
            b,
            lambda d: d["artifacts"].append({"path": "k.so", "target": "cpu:aarch64", "tools": {}}),
            sign=True,
        ),
        BadManifest,
        "k.so is not among its files",
    ),
    "compiled file outside": (
        lambda b: rewrite(
            b,
            lambda d: d["artifacts"].append({"path": "/x", "target": "ref", "tools": {}}),
            sign=True,
        ),
        BadManifest,
        "file '/x' is outside of the bundle",
    ),
    "weights not listed": (
        lambda b: rewrite(b, lambda d: d["files"].pop("weights.safetensors"), sign=True),
        BadManifest,
        "not among its files",
    ),
    "no context": (
        lambda b: rewrite(b, lambda d: d["graph"].update(context=0), sign=True),
        BadGraph,
        "manifest.json: a context of 0; copy",
    ),
    "eps": (
        lambda b: rewrite(b, lambda d: first_norm(d).update(eps="small"), sign=True),
        BadGraph,
        "manifest.json: op norm .*: eps is 'small', need float",
    ),
    "end tokens": (
        lambda b: rewrite(b, lambda d: d["tokenizer"].update(eos_ids=["2"]), sign=True),
        BadManifest,
        "manifest.json: .*eos_ids is .'2',., need tuple",
    ),
    "an end token": (
        lambda b: rewrite(b, lambda d: d["tokenizer"].update(eos_ids=2), sign=True),
        BadManifest,
        "eos_ids is 2",
    ),
    "chat template": (
        lambda b: rewrite(b, lambda d: d["tokenizer"].update(chat_template=["x"]), sign=True),
        BadManifest,
        "chat_template is .'x'.",
    ),
    "special tokens": (
        lambda b: rewrite(b, lambda d: d["tokenizer"].update(special_tokens={"a": 1}), sign=True),
        BadManifest,
        "special_tokens is",
    ),
    "temperature": (
        lambda b: rewrite(b, lambda d: d["generation"].update(temperature="hot"), sign=True),
        BadManifest,
        "temperature is 'hot'",
    ),
    "name": (
        lambda b: rewrite(b, lambda d: d.update(name=5), sign=True),
        BadManifest,
        "name is 5, need str",
    ),
    "tokenizer": (
        lambda b: rewrite(b, lambda d: d.update(tokenizer=5), sign=True),
        BadManifest,
        "AttributeError",
    ),
    "size": (
        lambda b: rewrite(b, lambda d: d["graph_sizes"][0].update(rows="1"), sign=True),
        BadManifest,
        "rows is '1'",
    ),
    "error": (
        lambda b: rewrite(
            b, lambda d: d["tensors"]["head"].update(relative_rms_error=None), sign=True
        ),
        BadManifest,
        "relative_rms_error is None",
    ),
    "digest of a file": (
        lambda b: rewrite(b, lambda d: d["files"]["tokenizer.json"].update(sha256=5), sign=True),
        BadManifest,
        "sha256 is 5",
    ),
    "short weights": (
        shorten,
        TruncatedBundle,
        "weights.safetensors: 5000 bytes long, the manifest",
    ),
    "no weights": (lambda b: (b / "weights.safetensors").unlink(), TruncatedBundle, "missing"),
    "no tokenizer": (lambda b: (b / "tokenizer.json").unlink(), TruncatedBundle, "tokenizer.json"),
}


@pytest.mark.parametrize("case", OPENING)
def test_a_damaged_bundle_does_not_open(case: str, bundle: Path) -> None:
    damage, error, message = OPENING[case]
    damage(bundle)
    with pytest.raises(error, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("where", [0.3, 0.999])
def test_one_altered_byte_is_found(name: str, where: float, bundle: Path) -> None:
    path = bundle / name
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(AlteredBundle, match=name):
        verify(Bundle.open(bundle))


def test_an_altered_tokenizer_is_not_used(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"A"', 1))
    opened = Bundle.open(bundle)
    with pytest.raises(AlteredBundle, match=r"tokenizer\.json"):
        _ = opened.tokenizer_json


def test_verify_reads_every_byte_and_passes(original: Path) -> None:
    counted: list[int] = []
    opened = Bundle.open(original)
    verify(opened, counted.append)
    assert sum(counted) == sum(r.byte_count for r in opened.manifest.files.values())
    assert {*opened.manifest.files, "manifest.json"} == {p.name for p in original.iterdir()}


def test_opening_maps_the_weights_and_reads_nothing_else(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are views of the mapped file: they own no memory and cannot be written."""
    part = Bundle.open(original).tensor("layers.0.q").parts["planes"]
    assert not part.flags.owndata
    assert not part.flags.writeable


def test_no_bundle_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="no bundle at"):
        Bundle.open(tmp_path / "x.lutra")
    with pytest.raises(BundleNotFound, match="no bundle at"):
        Bundle.open("")
    make_checkpoint(tmp_path / "tiny")
    with pytest.raises(BundleNotFound, match="is a checkpoint, not a bundle; lutra convert"):
        Bundle.open(tmp_path / "tiny")
    (tmp_path / "y.lutra.partial").mkdir()
    with pytest.raises(BundleNotFound, match="interrupted"):
        Bundle.open(tmp_path / "y.lutra")


def test_errors_of_opening_have_their_own_exit_codes() -> None:
    errors = {error for _, error, _ in OPENING.values()} | {AlteredBundle}
    assert len({error.exit_code for error in errors}) == len(errors)
