"""Which target is used where the machine, its system or a bundle has not the one asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge
from apps.cli import main
from converter.convert import convert
from cpu import backend
from edge.backend import Artifact, choose_target
from edge.errors import TruncatedBundle, UnknownTarget, UsageError
from edge.manifest import FILE_NAME, WEIGHTS, read_manifest
from edge.model import LesserTarget
from edge.target import Machine, Target, this_machine
from tests.checkpoints import make_checkpoint

AVX2, AVX512 = frozenset({"avx2"}), frozenset({"avx2", "avx512"})
VNNI, AMX = AVX512 | {"vnni"}, AVX512 | {"vnni", "amx"}

REFUSED = "the system refuses the tile registers (Operation not permitted)"


def machine(features: frozenset[str], arch: str = "x86_64", system: str = "linux") -> Machine:
    return Machine(arch, system, features)


def compiled(*targets: str) -> list[Artifact]:
    return [Artifact(f"cpu/{i}.so", Target.parse(text), {}) for i, text in enumerate(targets)]


def choose(text: str, on: Machine, *ahead: str) -> tuple[str, str]:
    choice = choose_target(text, compiled(*ahead), on)
    return str(choice.target), choice.note


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the system says when asked for the tile registers: nothing, which is yes."""

    def answer(reason: str) -> None:
        monkeypatch.setattr(backend, "refused_tiles", lambda: reason)

    answer("")
    return answer


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_compiler", lambda: False)


def test_what_the_machine_has_needs_no_note() -> None:
    assert choose("auto", machine(AMX)) == ("cpu:x86_64,avx2,avx512,vnni,amx", "")
    assert choose("cpu:x86_64,avx2", machine(AMX)) == ("cpu:x86_64,avx2", "")
    assert choose("ref", machine(AMX)) == ("ref", "")
    phone = machine(frozenset({"neon", "dotprod"}), "aarch64", "android")
    assert choose("auto", phone) == ("cpu:aarch64-android,dotprod", "")


def test_a_machine_without_a_feature_gets_the_next_target_down() -> None:
    target, note = choose("cpu:x86_64,amx", machine(VNNI))
    assert target == "cpu:x86_64,avx2,avx512,vnni"
    assert note == (
        "runs on cpu:x86_64,avx2,avx512,vnni instead of cpu:x86_64,avx2,avx512,vnni,amx: "
        "this machine lacks amx"
    )
    target, note = choose("cpu:x86_64,amx", machine(AVX2))
    assert target == "cpu:x86_64,avx2"
    assert note.endswith("this machine lacks amx, avx512, vnni")
    board = machine(frozenset({"neon"}), "aarch64")
    assert choose("cpu:aarch64,i8mm", board)[0] == "cpu:aarch64"


def test_tiles_that_the_system_refuses_are_left_out(tiles: Callable[[str], None]) -> None:
    tiles(REFUSED)
    target, note = choose("auto", machine(AMX))
    assert (target, note) == ("cpu:x86_64,avx2,avx512,vnni", f"runs on {target}: {REFUSED}")
    target, note = choose("cpu:x86_64,amx", machine(AMX))
    assert target == "cpu:x86_64,avx2,avx512,vnni"
    assert note.endswith(f"vnni,amx: {REFUSED}")
    assert choose("cpu:x86_64,vnni", machine(AMX))[1] == ""


def test_without_a_compiler_the_best_library_that_fits_is_used(no_compiler: None) -> None:
    ahead = ("cpu:x86_64,avx2", "cpu:x86_64,avx512", "cpu:x86_64,amx", "cpu:aarch64")
    target, note = choose("auto", machine(VNNI), *ahead)
    assert target == "cpu:x86_64,avx2,avx512"
    assert "nothing is compiled for cpu:x86_64,avx2,avx512,vnni, and making code needs" in note
    assert choose("cpu:x86_64,vnni", machine(VNNI), *ahead)[0] == "cpu:x86_64,avx2,avx512"
    assert choose("auto", machine(AVX512), *ahead) == ("cpu:x86_64,avx2,avx512", "")


def test_android_code_is_as_good_on_linux_of_the_same_processor(no_compiler: None) -> None:
    board = machine(frozenset({"neon", "dotprod"}), "aarch64")
    ahead = "cpu:aarch64-android,dotprod"
    assert choose("auto", board, ahead) == (ahead, "")
    target, note = choose("cpu:aarch64,dotprod", board, ahead)
    assert target == ahead
    assert "nothing is compiled for cpu:aarch64,dotprod" in note


@pytest.mark.parametrize("ahead", [(), ("cpu:aarch64",), ("cpu:x86_64,amx",)])
def test_where_no_library_fits_the_interpreter_runs_and_says_so(
    ahead: tuple[str, ...], no_compiler: None
) -> None:
    target, note = choose("auto", machine(VNNI), *ahead)
    assert target == "ref"
    assert note.startswith("runs on ref: nothing is compiled for cpu:x86_64,avx2,avx512,vnni")
    assert "llvmlite" in note


def test_machines_that_no_code_is_made_for_run_the_interpreter() -> None:
    assert choose("auto", machine(frozenset(), "riscv64")) == (
        "ref",
        "runs on ref: no code is made for riscv64",
    )
    assert choose("auto", machine(frozenset()))[0] == "ref"


def test_what_has_nothing_below_it_stays_and_is_refused(no_compiler: None) -> None:
    assert choose("cpu:aarch64,i8mm", machine(VNNI)) == ("cpu:aarch64,dotprod,i8mm", "")
    assert choose("cpu:x86_64,avx2", machine(frozenset())) == ("cpu:x86_64,avx2", "")
    with pytest.raises(UnknownTarget, match="z80"):
        choose("cpu:z80", machine(VNNI))


# A whole model.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backend")
    make_checkpoint(folder / "source")
    convert(folder / "source", folder / "m.lutra", weights="w4g32")
    return folder / "m.lutra"


@pytest.fixture
def lesser(monkeypatch: pytest.MonkeyPatch) -> str:
    """This machine as if it had AVX2 and nothing more; returns the target it then runs."""
    if "avx2" not in this_machine().features:
        pytest.skip("no AVX2 here")
    small = machine(AVX2)
    for place in ("edge.backend.this_machine", "cpu.backend.this_machine"):
        monkeypatch.setattr(place, lambda: small)
    return "cpu:x86_64,avx2"


def test_a_model_warns_and_says_what_it_runs_on(bundle: Path, lesser: str) -> None:
    with pytest.warns(LesserTarget, match="this machine lacks"):
        model = edge.load(bundle, target="cpu:x86_64,vnni")
    assert str(model.program.target) == lesser
    assert "instead of cpu:x86_64,avx2,avx512,vnni: this machine lacks" in model.note
    assert edge.load(bundle, target=lesser).note == ""


def test_verbs_print_one_line_and_put_it_into_their_json(
    bundle: Path, lesser: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--target", "cpu:x86_64,vnni", "--tokens", "1 2", "--greedy", "--json"]
    words = ["run", str(bundle), *options]
    assert main([*words, "--max-tokens", "2"]) == 0
    said = capsys.readouterr()
    line = f"note: runs on {lesser} instead of cpu:x86_64,avx2,avx512,vnni: this machine lacks"
    assert said.err.count("note: ") == 1
    assert said.err.startswith(line)
    assert f'"target": "{lesser}", "note": "runs on {lesser} instead' in said.out
    assert main([*words, "--quiet", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().err == ""


def test_targets_of_another_processor_are_an_error(bundle: Path, lesser: str) -> None:
    with pytest.raises(UnknownTarget, match="this machine is x86_64"):
        edge.load(bundle, target="cpu:aarch64,dotprod")


@pytest.mark.parametrize("target", ["auto", "ref"])
def test_no_threads_and_too_many_are_refused(target: str, bundle: Path) -> None:
    for count in (0, -3):
        with pytest.raises(UsageError, match=f"{count} threads"):
            edge.load(bundle, target=target, threads=count)


def test_the_command_line_refuses_impossible_threads(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in ("0", "5000"):
        words = ["run", str(bundle), "--tokens", "1", "--threads", count, "--quiet"]
        assert main(words) == UsageError.exit_code
        assert f"{count} threads" in capsys.readouterr().err


# Weight files that are not as they were written.


def shifted(bundle: Path, out: Path, by: int) -> Path:
    """A copy whose weights start `by` bytes later: the header is longer by that many spaces."""
    shutil.copytree(bundle, out)
    path = out / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" " * by
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    manifest = read_manifest(out)
    record = replace(manifest.files[WEIGHTS], byte_count=path.stat().st_size)
    files = {**manifest.files, WEIGHTS: record}
    (out / FILE_NAME).write_text(replace(manifest, files=files).to_text())
    return out


@pytest.mark.parametrize("by", [1, 36])
def test_weights_at_any_address_give_the_same(by: int, bundle: Path, tmp_path: Path) -> None:
    """No load asks for an alignment, so an unaligned file is slower at most."""
    moved = shifted(bundle, tmp_path / "moved.lutra", by)
    ids = np.arange(40) % 300
    for target in map(str, backend.BACKEND.targets(this_machine())):
        expected = edge.load(bundle, target=target).logits(ids)
        assert np.array_equal(edge.load(moved, target=target).logits(ids), expected)


@pytest.mark.parametrize("kept", [0, 7, 100, -64, -1])
def test_cut_weights_are_refused_before_anything_runs(
    kept: int, bundle: Path, tmp_path: Path
) -> None:
    cut = Path(shutil.copytree(bundle, tmp_path / "cut.lutra"))
    data = (cut / WEIGHTS).read_bytes()
    (cut / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(TruncatedBundle, match=WEIGHTS):
        edge.load(cut)
