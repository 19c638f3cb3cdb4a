"""The export file: a zip of parts, a manifest with the sha256 of each, and a signature of the manifest.

Nothing in it is executed or unpickled: JSON, arrays, photos and network graphs. A file is checked as a whole when it is
opened, and each part again when it is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refdiff.model.errors import DamagedError, InputError
from refdiff.model.files import atomic_path, storage_error
from refdiff.tools.exported.signing import NO_KEYS, Keys, Signature

SUFFIX = ".refdiff"
FORMAT = 1  # of the file: raise when an earlier version cannot read it
_MANIFEST, _SIGNATURE = "manifest.json", "signature.json"
_MOST_BYTES = 8 << 30  # of a part: more is no export of ours
_MOST_JSON = 64 << 20
_DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8"}  # as safetensors files name them
_WAY_OUT = "copy it again, or export the product again: refdiff export"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int = Field(ge=0, le=_MOST_BYTES)


class Manifest(BaseModel):
    """What an export says of itself."""

    model_config = ConfigDict(extra="allow", frozen=True)  # a later version may say more

    format: int
    product: str
    kind: str
    graphs: Literal["openvino", "onnx"]
    software: str  # version of RefDiff that wrote it
    created_at: str  # ISO 8601, UTC
    created_by: str
    calibration_key: str  # what scores depend on; see `calibration.calibration_key`
    number_format: str = "float32"  # that a device computes and is calibrated in: float32, or int8
    installation_number_format: str = "float32"  # that the installation which wrote it computes in
    parts: dict[str, Part]

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts.values())


def write_export(path: Path, about: Mapping[str, Any], parts: Mapping[str, bytes], keys: Keys) -> tuple[Manifest, str]:
    """Write an export, all of it or nothing; its manifest, and the sha256 of that as it is in the file.

    about: the manifest without its parts. keys: sign it. Raises InputError for what is no key, StorageError.
    """
    listed = {name: Part(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in parts.items()}
    manifest = Manifest.model_validate({"format": FORMAT, "parts": listed, **about})
    text = manifest.model_dump_json(indent=1).encode()
    files = {_MANIFEST: text, _SIGNATURE: keys.sign(text).model_dump_json().encode(), **parts}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(path) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):  # stored: nothing in it shrinks
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
    except OSError as e:
        raise storage_error(path, e) from e
    return manifest, hashlib.sha256(text).hexdigest()


class Export(AbstractContextManager["Export"]):
    """An open export file. Threads may share it; the file may be replaced meanwhile, what is open stays what it was.

    `digest`: sha256 (hex) of the manifest as it is in the file, which names the export. `signed`: by one of the keys.
    """

    def __init__(self, path: Path, keys: Keys = NO_KEYS, *, parts: bool = True, shown: str = "") -> None:
        """Open and check it. keys: with any, only what one of them signed is opened. parts: also check each part, now.
        shown: what errors call the file; default: its path.

        Raises InputError (no such file, no export, of another version), DamagedError (cut off, or changed), TamperedError
        (not signed by the key), StorageError.
        """
        self.path, self._shown = path, shown or str(path)
        try:
            self._file: IO[bytes] = path.open("rb")
        except OSError as e:
            if isinstance(e, FileNotFoundError | IsADirectoryError):
                raise InputError(f"{self._shown}: no such file; export the product first: refdiff export") from e
            raise storage_error(path, e) from e
        with contextlib.ExitStack() as opened:
            opened.callback(self._file.close)
            try:
                self._archive = zipfile.ZipFile(self._file)
            except (zipfile.BadZipFile, ValueError, OSError) as e:
                cause = e.__context__ if isinstance(e, zipfile.BadZipFile) else e  # it says no more of a failed read
                if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):  # a place before the file
                    raise storage_error(path, cause) from e
                raise DamagedError(f"{self._shown}: no export, or cut off ({e}); {_WAY_OUT}") from e
            self.manifest, self.digest, self.signed = self._checked_manifest(keys)
            for name in self.manifest.parts if parts else ():
                self.read(name)
            opened.pop_all()

    def __exit__(self, *error: object) -> None:
        self._archive.close()
        self._file.close()

    def read(self, name: str) -> bytes:
        """A part. Raises DamagedError where it is missing or not what the manifest says."""
        part = self.manifest.parts.get(name)
        if part is None:
            raise DamagedError(f"{self._shown}: has no part {name}; {_WAY_OUT}")
        data = self._raw(name, part.bytes)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise DamagedError(f"{self._shown}: {name} is not what was exported; {_WAY_OUT}")
        return data

    def json(self, name: str) -> Any:
        """A part that is JSON."""
        return json.loads(self.read(name))

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """A part that is a safetensors file; the arrays are read-only. Raises DamagedError."""
        try:
            return _arrays(self.read(name))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DamagedError(f"{self._shown}: {name} cannot be read ({e}); {_WAY_OUT}") from e

    def _raw(self, name: str, most: int) -> bytes:
        try:
            info = self._archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
                raise DamagedError(f"{self._shown}: {name} is not what was exported; {_WAY_OUT}")
            return self._archive.read(info)
        except (KeyError, zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as e:
            raise DamagedError(f"{self._shown}: {name} is missing or damaged ({e}); {_WAY_OUT}") from e
        except OSError as e:
            raise storage_error(self.path, e) from e

    def _checked_manifest(self, keys: Keys) -> tuple[Manifest, str, bool]:
        """The manifest, its sha256, and whether it is signed by one of the keys."""
        text = self._raw(_MANIFEST, _MOST_JSON)
        try:
            signature = Signature.model_validate_json(self._raw(_SIGNATURE, _MOST_JSON))
            version = json.loads(text).get("format")
            if version != FORMAT:
                raise InputError(
                    f"{self._shown}: an export of format {version!r}, and this version reads {FORMAT}; export the product "
                    "again with the version of RefDiff that the device has, or update the device"
                )
            manifest = Manifest.model_validate_json(text)
        except (ValidationError, ValueError, AttributeError) as e:
            raise DamagedError(f"{self._shown}: its manifest cannot be read; {_WAY_OUT}") from e
        return manifest, hashlib.sha256(text).hexdigest(), keys.check(self._shown, text, signature)

    @property
    def is_signed(self) -> bool:
        """Whether somebody signed it, whether or not the key is known here."""
        return Signature.model_validate_json(self._raw(_SIGNATURE, _MOST_JSON)).algorithm != "none"


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file, without its package, which a device does not have. Raises ValueError."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        first, last = about["data_offsets"]
        kind = _DTYPES[about["dtype"]]
        found[name] = np.frombuffer(data[start + first : start + last], kind).reshape(about["shape"])
    return found
