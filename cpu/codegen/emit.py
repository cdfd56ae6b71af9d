"""From a module of the language to machine code: optimize, emit an object, cache it, load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from cpu.codegen.isa import Isa
from cpu.codegen.language import Code, Type, Value

_initialized = False


def _initialize() -> None:
    global _initialized
    if not _initialized:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        _initialized = True


class Module:
    """Functions for one instruction set."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
        self.ir = ir.Module(name="lutra")
        self.ir.triple = isa.triple
        self.ir.data_layout = isa.data_layout

    def function(
        self, name: str, parameters: list[Type], body: Callable[..., None], *, public: bool = True
    ) -> ir.Function:
        """Write a function: `body(code, *values)`, one value a parameter."""
        kind = ir.FunctionType(ir.VoidType(), [parameter.ir for parameter in parameters])
        function = ir.Function(self.ir, kind, name)
        _set_attributes(function, self.isa)
        if not public:
            function.linkage = "internal"
        code = Code(self.ir, self.isa, function)
        values = [
            Value(code, kind, argument)
            for kind, argument in zip(parameters, function.args, strict=True)
        ]
        body(code, *values)
        code.builder.ret_void()
        return function


def _set_attributes(function: ir.Function, isa: Isa) -> None:
    """Attributes that llvmlite has no names for: text, which it prints as it is.

    Without "no-builtins" a loop that copies or clears becomes a call of memcpy or memset, which
    libraries made ahead must do without.
    """
    texts = ['"no-builtins"'] + ([f'"tune-cpu"="{isa.tuning}"'] if isa.tuning else [])
    set.update(function.attributes, texts)


def _machine(isa: Isa) -> Any:
    _initialize()
    target = llvm.Target.from_triple(isa.triple)
    return target.create_target_machine(
        cpu=isa.processor, features=isa.features, opt=3, reloc="pic", codemodel="small"
    )


def _optimized(module: Module, machine: Any) -> Any:
    parsed = llvm.parse_assembly(str(module.ir))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False  # kernels unroll where it pays
    options.loop_vectorization = False
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def assembly(module: Module) -> str:
    """The machine code as text, for counting instructions."""
    machine = _machine(module.isa)
    text: str = machine.emit_assembly(_optimized(module, machine))
    return text


def compiler_version() -> str:
    """Of llvmlite and its LLVM."""
    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"


def object_code(module: Module, cache: Path | None = None) -> bytes:
    """The module as an object file, from the cache where it was made before.

    The key is the source, the target and the compiler's version.
    """
    text = str(module.ir)
    facts = [text, module.isa.triple, module.isa.processor, module.isa.features]
    facts.append(compiler_version())
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()
    path = (cache or cache_folder()) / f"{key}.o"
    if path.is_file():
        return path.read_bytes()
    machine = _machine(module.isa)
    made: bytes = machine.emit_object(_optimized(module, machine))
    write_whole(path, made)
    return made


def cache_folder() -> Path:
    """Where compiled code is kept: LUTRA_CACHE, else the user's cache folder."""
    if "LUTRA_CACHE" in os.environ:
        return Path(os.environ["LUTRA_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lutra"


def write_whole(path: Path, content: bytes) -> None:
    """Write so that another process sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


class Loaded:
    """Machine code in this process. Functions live as long as this does."""

    def __init__(self, isa: Isa, code: bytes) -> None:
        _initialize()
        self._machine = _machine(isa)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Address of a public function."""
        found: int = self._engine.get_function_address(name)
        if not found:
            raise KeyError(name)
        return found

    def function(self, name: str, *arguments: Any) -> Callable[..., None]:
        """A public function for ctypes; it runs without the interpreter's lock."""
        return ctypes.CFUNCTYPE(None, *arguments)(self.address(name))
