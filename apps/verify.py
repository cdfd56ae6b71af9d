"""Check every byte of a bundle against the SHA-256 that was taken when it was written.

With --on, then run every kernel that such a device would use, on the bundle's own weights, in
emulation, and compare what it makes with its plain NumPy twin. It tells of right and wrong; how
long it takes says nothing of a device.

  --on hvx    a decode step on Hexagon's vector unit (v67). Needs qemu-hexagon
              (apt-get install qemu-user) and pip install "lutra[ahead]". Lookup products are
              compared bit for bit, float kernels within 1e-5
  --on arm64  a decode step and a short prefill on ARM64, for each set of features that phones have.
              Needs qemu-aarch64 (apt-get install qemu-user) and pip install "lutra[ahead]".
              Products with quantized weights, whose activations are rounded, are compared within
              3e-4, float kernels within 1e-5
  --on htp    every compiled graph of the bundle's NPU program on Qualcomm's emulation, beside the
              graph as it was before compiling, within the HTP's rounding. Needs x86-64 Linux,
              pip install "lutra[npu]", and a bundle converted with --npu SM8650,npu:ort

There is a line for each kernel or graph. The exit code is 1 where any differs; the tensor, or the
value, is named.

examples:
  lutra verify model.lutra
  lutra verify model.lutra --on hvx
  lutra verify model.lutra --on htp --json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from apps.inspect import bundle_bytes
from apps.options import add_bundle
from apps.output import megabytes, print_json, print_table
from apps.progress import Bar
from edge.backend import backend_for
from edge.bundle import Bundle, verify
from edge.check import Check
from edge.errors import MissingDependency, NpuUnavailable
from edge.target import Target

DEVICES = ("hvx", "arm64", "htp")

_ARM64 = ("cpu:aarch64", "cpu:aarch64,dotprod", "cpu:aarch64,i8mm")

# What a shell gets where a kernel is not its twin.
MISMATCH = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--on", choices=DEVICES, help="also run its kernels in emulation")


def run(args: argparse.Namespace) -> int:
    bundle = Bundle.open(args.bundle)
    size = bundle_bytes(bundle)
    bar = Bar(quiet=args.quiet)
    bar.start("verify", size, "B")
    verify(bundle, bar.advance)
    bar.finish()
    files = len(bundle.manifest.files)
    if not args.json:
        print(f"{args.bundle}: {files} files, {megabytes(size)}: all as written")
    checks = list(_checks(bundle, args.on, bar)) if args.on else []
    passed = all(check.passed for check in checks)
    if args.json:
        values = {"ok": passed, "files": files, "bytes": size}
        print_json(values | (_values(args.on, checks) if args.on else {}))
    elif args.on:
        _print(args.on, checks)
    return 0 if passed else MISMATCH


def _checks(bundle: Bundle, device: str, bar: Bar) -> Iterator[Check]:
    """Every kernel of a device. Raises MissingDependency without its emulator."""
    return {"hvx": _on_hvx, "arm64": _on_arm64, "htp": _on_htp}[device](bundle, bar)


def _on_hvx(bundle: Bundle, bar: Bar) -> Iterator[Check]:
    from npu.hvx import check

    target = Target.parse("npu:hvx-v67")
    if reason := backend_for(target).refuses(target, bundle.graph):
        what, _, cure = reason.rpartition(": ")
        raise MissingDependency(f"--on hvx: {what}", cure)
    bar.start(f"kernels on {target} (emulated)", check.op_count(bundle), "ops")
    for found in check.check(bundle, target):
        yield found
        bar.advance(1)
    bar.finish()


def _on_arm64(bundle: Bundle, bar: Bar) -> Iterator[Check]:
    from cpu.emulated import require

    require()
    from cpu import check

    for target in map(Target.parse, _ARM64):
        bar.start(f"kernels on {target} (emulated)", check.op_count(bundle), "ops")
        for found in check.check(bundle, target):
            yield replace(found, kernel=f"{target} {found.kernel}")
            bar.advance(1)
        bar.finish()


def _on_htp(bundle: Bundle, bar: Bar) -> Iterator[Check]:
    from npu.htp import check
    from npu.htp.provider import emulated, load_qnn

    load_qnn()
    if not emulated():
        raise NpuUnavailable("--on htp: no emulation on this machine", "use x86-64 Linux")
    for target in check.targets(bundle):
        bar.start(f"graphs on {target} (emulated)", check.output_count(bundle), "outputs")
        for found in check.check(bundle, target):
            yield found
            bar.advance(1)
        bar.finish()


def _print(device: str, checks: Sequence[Check]) -> None:
    """A line for each kernel, then one for each use that went wrong."""
    by_kernel: dict[str, list[Check]] = {}
    for check in checks:
        by_kernel.setdefault(check.kernel, []).append(check)
    print_table([_line(kernel, uses) for kernel, uses in by_kernel.items()])
    wrong = [check for check in checks if not check.passed]
    for check in wrong:
        print(f"{check.kernel}: {check.subject}: {check.detail}")
    state = f"{len(wrong)} are not" if wrong else "all are"
    print(
        f"{device}, emulated: {len(checks)} uses of {len(by_kernel)} kernels: {state} as the twin"
    )


def _line(kernel: str, uses: Sequence[Check]) -> tuple[str, str, str]:
    wrong = [check for check in uses if not check.passed]
    if wrong:
        return kernel, "WRONG", f"{len(wrong)} of {len(uses)}, first {wrong[0].subject} (emulated)"
    largest = max(check.error for check in uses)
    return kernel, "PASS", f"{len(uses)} times, relative error up to {largest:.0e} (emulated)"


def _values(device: str, checks: Sequence[Check]) -> dict[str, object]:
    finite = [asdict(c) | {"error": min(c.error, 1e30), "passed": c.passed} for c in checks]
    return {"on": device, "figures": "emulated", "kernels": finite}
