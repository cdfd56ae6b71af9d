"""Try every target on this machine by running a tiny model on it, and say why where it fails.

example:
  lutra doctor
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import dataclass

from apps.output import print_json, print_table
from apps.progress import Bar
from edge.backend import BACKENDS, PROMPT_BACKENDS, backend_for, prompt_backend_for
from edge.errors import LutraError
from edge.selftest import FORMATS, Outcome, check_target
from edge.target import FEATURES, Machine, Target, this_machine
from edge.version import VERSION

# Optional packages, and what they bring.
PACKAGES = {
    "numpy": "everything",
    "tokenizers": "text instead of token ids",
    "jinja2": 'chat templates: pip install "lutra[serve]"',
    "huggingface_hub": 'conversion by hub name: pip install "lutra[convert]"',
    "onnxruntime": 'the NPU: pip install "lutra[npu]"',
    "onnxruntime-qnn": 'the NPU: pip install "lutra[npu]"',
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    target: str
    passed: bool
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options of its own


def run(args: argparse.Namespace) -> int:
    machine = this_machine()
    bar, findings = Bar(quiet=args.quiet), []
    bar.start("trying targets", len(_units()), "units")
    for unit in _units():
        findings += check_unit(unit, machine)
        bar.advance(1)
    bar.finish()
    packages = {name: _installed(name) for name in PACKAGES}
    if args.json:
        print_json(
            {
                "lutra": VERSION,
                "machine": {
                    "arch": machine.arch,
                    "system": machine.system,
                    "features": sorted(machine.features),
                },
                "targets": [vars(finding) for finding in findings],
                "packages": packages,
            }
        )
    else:
        _print(machine, findings, packages)
    return 0 if any(finding.passed for finding in findings) else 1


def check_unit(unit: str, machine: Machine) -> list[Finding]:
    """Try every target that this machine could run of a unit ("ref", "cpu", "npu:htp", ...)."""
    if unit in PROMPT_BACKENDS:
        return [_look(Target.parse(_example(unit, machine)))]
    if unit not in BACKENDS:
        return [Finding(_example(unit, machine), False, f"lutra {VERSION} has no {unit} backend")]
    example = _example(unit, machine)
    backend = backend_for(Target.parse(example))
    findings = [_try(target) for target in backend.targets(machine)]
    if reason := backend.leaves_out(None, machine):
        findings.insert(0, Finding(example, False, reason))
    return findings or [Finding(unit, False, "this machine cannot run it")]


def _look(target: Target) -> Finding:
    """Whether prompts run on an NPU target; what they need from a bundle, a bundle has or not."""
    try:
        place = prompt_backend_for(target).check(target)
    except (LutraError, OSError) as error:
        return Finding(str(target), False, str(error))
    return Finding(str(target), True, f"runs prompts of bundles converted for it: {place}")


def _try(target: Target) -> Finding:
    try:
        outcome = check_target(target)
    except (LutraError, OSError) as error:
        return Finding(str(target), False, str(error))
    word = "emulated" if target.emulated else "measured"
    return Finding(str(target), outcome.passed, _detail(outcome, word))


def _detail(outcome: Outcome, word: str) -> str:
    """What was run and how well, or the first that was wrong."""
    for trial in outcome.trials:
        if not trial.passed:
            return (
                f"a tiny model in {trial.form}, {trial.rows} rows at a time: relative error "
                f"{trial.error:.1e} ({word}), need under {trial.tolerance:.0e}"
            )
    errors = [f"{outcome.largest(quantized=kind):.0e}" for kind in (False, True)]
    return f"relative errors up to {errors[0]} in float, {errors[1]} quantized ({word})"


def _units() -> tuple[str, ...]:
    return ("ref", "cpu", "npu:htp", "npu:hvx", "npu:ort")


def _example(unit: str, machine: Machine) -> str:
    if unit == "cpu":
        return str(machine.target()) if machine.arch in FEATURES else "cpu:x86_64"
    return {"npu:htp": "npu:htp-v75", "npu:hvx": "npu:hvx-v73"}.get(unit, unit)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(machine: Machine, findings: list[Finding], packages: dict[str, str | None]) -> None:
    features = ", ".join(sorted(machine.features)) or "no known features"
    print(f"lutra {VERSION}, Python {platform.python_version()}, {machine.arch} {machine.system}")
    print(f"processor: {features}")
    print()
    print_table([(f.target, "PASS" if f.passed else "no", f.detail) for f in findings])
    print(f"PASS: tiny models in {', '.join(FORMATS)} were right, by one row, a few and many")
    print()
    print_table(
        [(name, version or "not installed", PACKAGES[name]) for name, version in packages.items()]
    )
