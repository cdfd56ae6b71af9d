"""The arrows between rooms: apps -> converter -> {cpu, npu} -> edge, and npu -> the
language and the kernels of cpu.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("edge", "cpu", "npu", "converter", "apps")

# Room -> modules of other rooms that it may import.
ALLOWED = {
    "edge": (),
    "cpu": ("edge",),
    "npu": ("edge", "cpu.codegen", "cpu.kernels"),
    "converter": ("edge", "cpu", "npu"),
    "apps": ("edge", "cpu", "npu", "converter"),
}

# What the device side may import besides the standard library; more only inside functions.
DEVICE_LIBRARIES = {"numpy"}
OPTIONAL_ON_DEVICE = {"tokenizers", "jinja2"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module), id(node) in top


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def forbidden(room: str, module: str) -> bool:
    other = module.split(".")[0]
    if other not in ROOMS or other == room:
        return False
    return not any(f"{module}.".startswith(f"{allowed}.") for allowed in ALLOWED[room])


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room: str) -> None:
    assert files(room), f"no files in {room}"
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        for module, _ in imports(path)
        if forbidden(room, module)
    ]
    assert wrong == []


def test_the_check_sees_a_forbidden_import() -> None:
    assert forbidden("edge", "converter.models")
    assert forbidden("npu", "cpu.backend")
    assert not forbidden("npu", "cpu.codegen.types")
    assert not forbidden("apps", "converter.convert")


@pytest.mark.parametrize("path", files("edge"), ids=lambda path: path.name)
def test_the_device_side_needs_numpy_alone(path: Path) -> None:
    import sys

    for module, top_level in imports(path):
        name = module.split(".")[0]
        if name in sys.stdlib_module_names or name == "edge":
            continue
        allowed = DEVICE_LIBRARIES if top_level else DEVICE_LIBRARIES | OPTIONAL_ON_DEVICE
        assert name in allowed, f"{path.name} imports {module}"
