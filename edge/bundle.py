"""Opening a bundle: the folder NAME.lutra that the converter writes and the runtime reads.

Opening reads the manifest and maps the weights; `verify` reads everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from edge.digest import sha256
from edge.errors import AlteredBundle, BadManifest, BundleNotFound, TruncatedBundle
from edge.graph import Graph
from edge.manifest import FILE_NAME, TOKENIZER, WEIGHTS, FileRecord, Manifest, read_manifest
from edge.planes import StoredTensor, parts_of
from edge.tensorfile import TensorFile

# Called with the bytes done since the last call.
Progress = Callable[[int], None]

_BLOCK = 1 << 22


def silent(count: int) -> None:
    """Report no progress."""


class Bundle:
    """An open bundle: its manifest and its mapped weights."""

    def __init__(self, folder: Path, manifest: Manifest, weights: TensorFile) -> None:
        self.folder = folder
        self.manifest = manifest
        self._weights = weights
        self._tensors = {tensor.name: tensor for tensor in manifest.graph.tensors}

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Open a bundle without reading its weights.

        Raises BundleNotFound, BadManifest, WrongSchema, or TruncatedBundle where a file has not
        the size that the manifest says.
        """
        folder = Path(path)
        if not (folder / FILE_NAME).is_file():
            raise _not_found(folder)
        manifest = read_manifest(folder)
        for name, record in manifest.files.items():
            _check_size(folder, name, record)
        bundle = Bundle(folder, manifest, TensorFile(folder / WEIGHTS, TruncatedBundle))
        bundle._check_tensors()
        return bundle

    @property
    def graph(self) -> Graph:
        """The model's graph, in its decode form of one row."""
        return self.manifest.graph

    @cached_property
    def tokenizer_json(self) -> bytes | None:
        """The tokenizer file, or None where the checkpoint had none. Raises AlteredBundle."""
        return self.checked(TOKENIZER).read_bytes() if TOKENIZER in self.manifest.files else None

    def checked(self, name: str) -> Path:
        """The path of a file whose SHA-256 is the manifest's: small ones, before they are used.

        Raises AlteredBundle: altered code can end the process, or compute something else.
        """
        _require_unaltered(self, [name], silent)
        return self.folder / name

    def tensor(self, name: str) -> StoredTensor:
        """A tensor's mapped arrays with its format."""
        form, shape = self.manifest.tensors[name].form, self._tensors[name].shape
        parts = {part: self._weights.array(f"{name}.{part}") for part in parts_of(form, shape)}
        return StoredTensor(name, form, shape, parts)

    @property
    def weights_path(self) -> Path:
        """The file that has all tensors."""
        return self.folder / WEIGHTS

    def start(self, name: str, part: str) -> int:
        """First byte, in the weights file, of one of a tensor's arrays."""
        return self._weights.entries[f"{name}.{part}"].start

    def byte_count(self, name: str) -> int:
        """Bytes that a tensor takes in the weights file."""
        form = self.manifest.tensors[name].form
        return sum(p.byte_count for p in parts_of(form, self._tensors[name].shape).values())

    def _check_tensors(self) -> None:
        """The graph, the manifest and the weights file must tell of the same tensors."""
        for name, tensor in self._tensors.items():
            if name not in self.manifest.tensors:
                raise self._inconsistent(f"no format for tensor {name}")
            form = self.manifest.tensors[name].form
            for part, expected in parts_of(form, tensor.shape).items():
                entry = self._weights.entries.get(f"{name}.{part}")
                if entry is None or entry.part != expected:
                    raise self._inconsistent(
                        f"tensor {name} as {form} needs {part} {expected}, {WEIGHTS} has {entry}"
                    )

    def _inconsistent(self, found: str) -> BadManifest:
        return BadManifest(f"{self.folder}: {found}", "convert the model again")


def verify(bundle: Bundle, progress: Progress = silent) -> None:
    """Compare every file's SHA-256. Raises AlteredBundle naming the files that differ."""
    _require_unaltered(bundle, bundle.manifest.files, progress)


def _require_unaltered(bundle: Bundle, names: Iterable[str], progress: Progress) -> None:
    altered = [
        name
        for name in names
        if file_sha256(bundle.folder / name, progress) != bundle.manifest.files[name].sha256
    ]
    if altered:
        raise AlteredBundle(
            f"{bundle.folder}: {', '.join(altered)}: contents are not what was written",
            "copy the bundle again from where it was converted, or convert again",
        )


def file_sha256(path: Path, progress: Progress = silent) -> str:
    """SHA-256 of a file as hexadecimal digits, read in blocks."""
    digest = sha256(byte_count=path.stat().st_size)
    for block in _blocks(path):
        digest.update(block)
        progress(len(block))
    return digest.hexdigest()


def _blocks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _check_size(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    found = path.stat().st_size if path.is_file() else None
    if found != record.byte_count:
        state = "missing" if found is None else f"{found} bytes long"
        raise TruncatedBundle(
            f"{path}: {state}, the manifest says {record.byte_count} bytes",
            "copy the bundle again, or convert again",
        )


def _not_found(folder: Path) -> BundleNotFound:
    partial = Path(f"{folder}.partial")
    gguf = folder.suffix == ".gguf" and folder.is_file()
    if gguf or (folder / "config.json").is_file():
        return BundleNotFound(
            f"{folder} is a checkpoint, not a bundle", f"lutra convert {folder} OUT.lutra"
        )
    if partial.is_dir():
        return BundleNotFound(
            f"no bundle at {folder}: its conversion was interrupted",
            "run the same lutra convert again; it goes on where it stopped",
        )
    return BundleNotFound(
        f"no bundle at {folder}: no {FILE_NAME} there", "make one with lutra convert SRC OUT"
    )
