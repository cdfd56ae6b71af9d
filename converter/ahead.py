"""Code for the processors that a bundle is to run on, compiled into it."""

from __future__ import annotations

from collections.abc import Sequence

from converter.plan import Plan
from edge.backend import Artifact, backend_for
from edge.bundle_writer import RESUME, BundleWriter
from edge.disk import disk_errors
from edge.target import Target
from edge.watch import Watcher, watched_by


def compile_ahead(
    plan: Plan, targets: Sequence[Target], writer: BundleWriter, watcher: Watcher
) -> tuple[Artifact, ...]:
    """Compile for all targets, into the bundle.

    Done before the weights, which may take hours: a target that nothing compiles for, or a linker
    that is not installed, is known at once. Raises UnknownTarget, MissingDependency or NoSpace.
    """
    formats = {str(planned.form): planned.form for planned in plan.tensors}.values()
    artifacts: list[Artifact] = []
    with watched_by(watcher), disk_errors(writer.out, RESUME):
        for target in targets:
            artifacts += backend_for(target).compile(formats, target, writer.partial)
        for artifact in artifacts:
            writer.include(artifact.path)
    return tuple(artifacts)
