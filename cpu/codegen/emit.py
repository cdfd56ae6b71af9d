"""From a module of the language to machine code: optimize, emit an object, cache it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from cpu.codegen.cache import cache_folder, keep, kept, key_of, sealed
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
    path = (cache or cache_folder()) / f"{key_of(facts)}.o"
    made = kept(path)
    if made is None:
        machine = _machine(module.isa)
        made = bytes(machine.emit_object(_optimized(module, machine)))
        keep(path, sealed(made))
    return made
