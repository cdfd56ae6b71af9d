"""Errors that a user can act on: what was found, what was needed, what to do.

Every error of this family ends the command line with its own exit code and without a traceback;
`docs/errors.md` lists them.
"""


class LutraError(Exception):
    """Base of all errors that Lutra raises on purpose.

    `what` names the file, tensor, layer or option and says what was found and needed; `cure` says
    what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what, cure)
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.what}; {self.cure}" if self.cure else self.what


class UsageError(LutraError):
    """An option or an argument that makes no sense."""

    exit_code = 2


class MissingDependency(LutraError):
    """An optional Python package, or a tool, is needed and not installed."""

    exit_code = 3


class UnknownTarget(LutraError):
    """A target that is not spelled right, or that nothing here can run."""

    exit_code = 4


# Sources: what the converter reads.


class SourceNotFound(LutraError):
    """The checkpoint, its config.json, or one of its files is not there."""

    exit_code = 10


class UnknownArchitecture(LutraError):
    """A model_type that no file in converter/models handles."""

    exit_code = 11


class UnsupportedMath(LutraError):
    """A config key asks for math that the model file does not implement."""

    exit_code = 12


class TruncatedSource(LutraError):
    """A checkpoint file is shorter than its own header says, or is not what it claims to be."""

    exit_code = 13


class WrongShape(LutraError):
    """A tensor of the checkpoint has another shape than the config implies."""

    exit_code = 14


class BadWeights(LutraError):
    """A tensor holds NaN or infinity, or a value that the format cannot represent."""

    exit_code = 15


class MissingTensor(LutraError):
    """A tensor that the config implies is in no file of the checkpoint."""

    exit_code = 16


class SourceChanged(LutraError):
    """A file of the checkpoint, or of an adapter, was changed while it was converted."""

    exit_code = 17


# Outputs: what the converter writes.


class UnknownFormat(LutraError):
    """A weight format that is not spelled right or does not exist."""

    exit_code = 20


class OutputExists(LutraError):
    """Something is already where the bundle would go, or another process is writing there."""

    exit_code = 21


class NoSpace(LutraError):
    """The disk is full, or has less room than the plan needs."""

    exit_code = 22


# Bundles: what the runtime opens.


class BundleNotFound(LutraError):
    """There is no bundle at the path."""

    exit_code = 30


class BadManifest(LutraError):
    """manifest.json is cut, altered, or says something impossible."""

    exit_code = 31


class TruncatedBundle(LutraError):
    """A file of the bundle is missing or not as long as the manifest says."""

    exit_code = 32


class AlteredBundle(LutraError):
    """A file of the bundle has another SHA-256 than the manifest says."""

    exit_code = 33


class WrongSchema(LutraError):
    """The bundle was written by a version with another schema, or other kernels."""

    exit_code = 34


class BadGraph(LutraError):
    """A graph that is not well formed: undefined names, shapes that do not fit."""

    exit_code = 35


# Running.


class PromptTooLong(LutraError):
    """The prompt does not fit the context."""

    exit_code = 40


class BadTokens(LutraError):
    """Token ids outside the vocabulary, or no tokens at all."""

    exit_code = 41


class BadTemplate(LutraError):
    """The chat template is missing, unsafe, or refuses the messages."""

    exit_code = 42


# The NPU.


class NpuRefused(LutraError):
    """The NPU's compiler or runtime does not take a graph as it must be taken."""

    exit_code = 50


class NpuUnavailable(LutraError):
    """The bundle has no program for this NPU, or the NPU's library is not here."""

    exit_code = 51


class NpuCrashed(LutraError):
    """The NPU's compiler or emulator died on a graph; it ran in a process of its own."""

    exit_code = 52


class CallRefused(LutraError):
    """The NPU's driver, or the program that runs on it, refused a call.

    `code` is its number, 0 where there is none.
    """

    exit_code = 53

    def __init__(self, what: str, cure: str = "", code: int = 0) -> None:
        super().__init__(what, cure)
        self.code = code
