"""Backup of a home folder while it is in use, and its restoration.

A backup is a folder, or a tar file, of the home's files under their own names, and `manifest.json` with size and sha256 of
each. Databases are copied with SQLite's online backup: a consistent copy, which blocks no writer. Records on a server are
copied from one snapshot into the file that they would be in without one, so it can be restored with a server or without. The
other files are never changed once they are written, and are written before the row that names them. So the order makes the
copies fit together:

1. the audit head, which the chain that is copied later must hold;
2. the journals: what they say is done is then in the main database;
3. the main database, and after it the golden bank: what was learned according to the one is in the other;
4. photos, and the files of the inspections that the copied database holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from refdiff.memory.audit_head import NAME as AUDIT_HEAD
from refdiff.memory.database.database import Database
from refdiff.memory.photos.image_store import ImageStore
from refdiff.memory.schema import MAIN, MOVED, open_server
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import PHOTOS, check_bucket
from refdiff.memory.timestamps import utc_now
from refdiff.memory.upkeep.contents import STAGING, check_database, files, is_database, is_kept, reading
from refdiff.memory.upkeep.move import check_empty, copy_to_file, move_records
from refdiff.model.errors import InputError, RefDiffError, StorageError, UnknownRecordError
from refdiff.model.files import make_folder, scratch_folder, storage_error
from refdiff.model.progress import Progress, silent
from refdiff.model.wording import few

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20
_ARCHIVES = tuple(ending for _, endings, _ in shutil.get_unpack_formats() for ending in endings)


@dataclass(frozen=True)
class BackedUpFile:
    path: str  # relative to the home, with forward slashes
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """What a backup holds."""

    made_at: str = field(default_factory=utc_now)
    software: str = field(default_factory=lambda: version("refdiff"))
    files: list[BackedUpFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # sha256 of photos of parts that the home does not have

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(f.bytes for f in self.files)

    @property
    def damaged(self) -> list[str]:
        """Photos that were damaged already when they were copied: their sha256 is not their name."""
        photos = (f for f in self.files if f.path.startswith(f"{PHOTOS}/"))
        return [f.path for f in photos if f.path.rpartition("/")[2] != f.sha256]


# ---- backup ----


def back_up(
    home: Path,
    target: Path,
    progress: Progress = silent,
    server: Database | None = None,
    images: ImageStore | None = None,
) -> Manifest:
    """Copy all of `home` to `target`: a tar file if its name ends in .tar, else a folder. Nothing is there before all is.

    server: the open database of a home whose records are on a server. images: the photos of one that has them in a bucket.
    The goldens of a Qdrant server are not in the home, and not in the backup; neither are checkpoints in Postgres.
    Raises InputError (the target exists, or lies in the home), StorageError (a damaged database, a full disk, photos in a
    bucket without `images`, one that was removed meanwhile),
    UnavailableError (a server does not answer).
    """
    home, target = home.absolute(), target.expanduser().absolute()
    if images is None:
        check_bucket(home, None)
    if server is None and not (home / MAIN).exists():
        raise InputError(f"{home}: no home of refdiff (it has no {MAIN}); set REFDIFF_HOME")
    if os.path.lexists(target):
        raise InputError(f"{target}: already there; name a new file or folder")
    packed = target.name.lower().endswith(_ARCHIVES)
    if packed and target.suffix.lower() != ".tar":
        raise InputError(f"{target}: a backup is a file whose name ends in .tar, or a folder; compress it afterwards")
    if target.resolve().is_relative_to(home.resolve()):
        raise InputError(f"{target}: inside the home folder {home}; back up to another place")
    make_folder(target.parent)
    try:
        with scratch_folder(target.parent) as scratch:
            made = scratch / "backup"
            with _TarWriter(made) if packed else _FolderWriter(made) as writer:
                manifest = _write(home, server, images, scratch, writer, progress)
            _sync()
            made.rename(target)
            _sync()
            return manifest
    except (OSError, tarfile.TarError) as e:
        raise storage_error(target, e) from e


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file of the home. Raises StorageError."""
    try:
        file = path.open("rb")
    except FileNotFoundError as e:
        raise _removed_meanwhile(path) from e
    except OSError as e:
        raise StorageError(f"{path}: cannot be read ({e.strerror}); check its owner and permissions") from e
    with file:
        yield file


def _removed_meanwhile(place: Path | str) -> StorageError:
    return StorageError(f"{place}: removed meanwhile (refdiff prune?); back up again")


def _write(
    home: Path,
    server: Database | None,
    images: ImageStore | None,
    scratch: Path,
    writer: _Writer,
    progress: Progress,
) -> Manifest:
    manifest = Manifest()
    head = _read_if_there(home / AUDIT_HEAD)
    copies = {}
    databases = {*filter(_is_kept_database, files(home)), Path(MAIN)}
    for number, place in enumerate(sorted(databases, key=_when)):
        copies[place] = scratch / f"{number}.sqlite"
        if place == Path(MAIN) and server is not None:
            copy_to_file(server, copies[place], progress)
        else:
            _copy_database(home / place, copies[place])
    filed, captured = (
        _names(copies[Path(MAIN)], of) for of in ("inspection_id FROM inspections", "sha256 FROM captures")
    )
    others = [
        place
        for place in files(home)
        if is_kept(place) and not is_database(place) and place.name != AUDIT_HEAD and _belongs(place, filed)
    ]
    photos = [] if images is None else sorted(images.ids())
    manifest.missing = sorted(captured - {place.name for place in others} - {*photos})
    total = len(copies) + len(others) + len(photos) + (head is not None)

    def add(place: Path, source: IO[bytes]) -> None:
        manifest.files.append(writer.add(place.as_posix(), source))
        progress("files", len(manifest.files), total)

    def add_copy(place: Path, source: io.BufferedIOBase) -> None:
        """Of what may break off, or is no file."""
        with tempfile.TemporaryFile(dir=scratch) as kept:
            shutil.copyfileobj(source, kept)
            kept.seek(0)
            add(place, kept)

    for place, copy in copies.items():
        with copy.open("rb") as source:
            add(place, source)
        copy.unlink()
    if head is not None:
        add_copy(Path(AUDIT_HEAD), io.BytesIO(head))
    for place in others:
        with _opened(home / place) as other:
            add(place, other)
    if images is not None:
        for sha256 in photos:
            try:
                with images.opened(sha256) as photo:
                    add_copy(Path(PHOTOS, sha256[:2], sha256), photo)
            except UnknownRecordError as e:
                raise _removed_meanwhile(images.where(sha256)) from e
    text = json.dumps({"refdiff_backup": FORMAT} | asdict(manifest), indent=1) + "\n"
    with tempfile.TemporaryFile(dir=scratch) as listed:
        listed.write(text.encode())
        listed.seek(0)
        writer.add(MANIFEST, listed)
    return manifest


def _is_kept_database(place: Path) -> bool:
    return is_kept(place) and is_database(place)


def _when(place: Path) -> tuple[int, Path]:
    """When a database is copied: the journals, the main database, the bank."""
    is_bank = place.name == "goldens.sqlite" or place.parts[0] == "qdrant"
    return (2 if is_bank else int(place == Path(MAIN)), place)


def _copy_database(source: Path, target: Path) -> None:
    with reading(source) as conn, contextlib.closing(sqlite3.connect(target)) as copy:
        conn.backup(copy)  # all in one step: one consistent state
        copy.execute("PRAGMA journal_mode=DELETE")  # one file
    if wrong := check_database(target):
        raise StorageError(f"{source}: the file is damaged ({wrong}); see `refdiff doctor`")


def _names(main: Path, what: str) -> set[str]:
    with reading(main) as conn:
        return {row[0] for row in conn.execute(f"SELECT {what}")}


def _belongs(place: Path, filed: set[str]) -> bool:
    """False for files of an inspection that was not filed yet: it is resumed, and writes them anew."""
    return place.parts[0] != "inspections" or place.parts[1] in filed


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


class _Writer(Protocol):
    def add(self, name: str, source: IO[bytes]) -> BackedUpFile:
        """Copy a file, and say what was copied."""


class _FolderWriter(contextlib.AbstractContextManager["_FolderWriter"]):
    def __init__(self, folder: Path) -> None:
        self._folder = make_folder(folder)

    def __exit__(self, *error: object) -> None: ...

    def add(self, name: str, source: IO[bytes]) -> BackedUpFile:
        if not self._folder.is_dir():  # what is left of it would look like a whole backup
            raise StorageError(f"{self._folder}: removed while it was written; back up again")
        path = self._folder / name
        make_folder(path.parent)
        return _copy(name, source, path)


class _TarWriter(contextlib.AbstractContextManager["_TarWriter"]):
    def __init__(self, path: Path) -> None:
        self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b")  # noqa: SIM115
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._tar.close()

    def add(self, name: str, source: IO[bytes]) -> BackedUpFile:
        about = os.fstat(source.fileno())
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = about.st_size, int(about.st_mtime), 0o600
        digest = hashlib.sha256()
        self._tar.addfile(entry, _Hashing(source, digest.update))
        return BackedUpFile(name, entry.size, digest.hexdigest())


class _Hashing:
    """A file that shows all that is read of it to `seen`."""

    def __init__(self, source: IO[bytes], seen: Callable[[bytes], None]) -> None:
        self._source, self._seen = source, seen

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._seen(data)
        return data


def _copy(name: str, source: IO[bytes], path: Path) -> BackedUpFile:
    """Write a new file, for its owner alone."""
    digest, size = hashlib.sha256(), 0
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
    return BackedUpFile(name, size, digest.hexdigest())


# ---- restore ----


def restore(source: Path, home: Path, progress: Progress = silent) -> Manifest:
    """Restore a backup into `home`, which must be missing or empty.

    All files are copied and compared with the manifest before the first one takes its place; the main database takes its
    place last, and without it no command opens the home. Raises InputError (the home is not empty, this is no whole and
    unchanged backup), StorageError.
    """
    source, home = source.expanduser().absolute(), home.absolute()
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; name a backup made by `refdiff backup`")
    if home.exists() and not home.is_dir():
        raise InputError(f"{home}: a file; restore into a new folder: set REFDIFF_HOME")
    staging = home / STAGING
    there = {p.name for p in home.iterdir()} - {STAGING} if home.exists() else set()
    # beside a staging folder and without a main database, it is what a restore put there that was killed
    begun = there if staging.exists() and MAIN not in there else set()
    if there - begun:
        raise _not_empty(home, there)
    if source.is_relative_to(home):
        raise InputError(f"{source}: inside the home folder {home}; move the backup elsewhere")
    make_folder(home)
    try:
        shutil.rmtree(staging, ignore_errors=True)
        make_folder(staging)
        manifest = _stage(source, staging, progress)
        for listed in manifest.files:
            if is_database(Path(listed.path)) and (wrong := check_database(staging / listed.path)):
                raise InputError(f"{source}: {listed.path} is damaged ({wrong}); use another backup")
        if begun - {p.name for p in staging.iterdir()}:
            raise _not_empty(home, begun)
        if (home / MAIN).exists():  # made meanwhile
            raise _not_empty(home, {MAIN})
        _sync()
        for entry in sorted(staging.iterdir(), key=lambda p: p.name == MAIN):
            if entry.name in begun:
                _remove(home / entry.name)
            entry.rename(home / entry.name)
        staging.rmdir()
    except BaseException as e:
        shutil.rmtree(staging, ignore_errors=True)
        if begun and not (home / MAIN).exists():  # the next one must see that, too
            with contextlib.suppress(RefDiffError):
                make_folder(staging)
        if isinstance(e, tarfile.TarError):
            said = "no whole tar file; use another backup, or unpack it first if it is compressed"
            raise InputError(f"{source}: {said} ({e})") from e
        if isinstance(e, OSError):
            raise storage_error(home, e) from e
        raise
    return manifest


def restore_to_server(source: Path, settings: MemorySettings, progress: Progress = silent) -> Manifest:
    """As `restore`, with the records in the database of `settings.database_url`, which must have none.

    Raises also UnavailableError. If it is interrupted once the files are there, `move_records` does the rest.
    """
    home, url = settings.home, settings.database_url
    assert url is not None
    with open_server(home, url, lost="") as server, server.connection() as conn:
        check_empty(conn)
    manifest = restore(source, home, progress)
    move_records(settings, progress)
    (home / MOVED).unlink(missing_ok=True)
    return manifest


def _not_empty(home: Path, there: set[str]) -> InputError:
    return InputError(f"{home}: not empty ({few(sorted(there))}); restore into a new folder: set REFDIFF_HOME")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync() -> None:
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


def _stage(source: Path, staging: Path, progress: Progress) -> Manifest:
    """Copy all files of a backup to `staging`, and compare them with its manifest."""
    copied: dict[str, BackedUpFile] = {}
    manifest: Manifest | None = None
    for name, total, file in _entries(source):
        if name in copied:
            raise InputError(f"{source}: holds {name} twice; this is no backup made by `refdiff backup`")
        if name == MANIFEST:
            manifest = _parse(source, file.read())
            continue
        path = staging / _safe(source, name)
        make_folder(path.parent)
        copied[name] = _copy(name, file, path)
        progress("files", len(copied), total)
    if manifest is None:
        raise InputError(f"{source}: no {MANIFEST} in it; it is no backup, or was cut off")
    listed = {f.path: f for f in manifest.files}
    for word, names in (
        ("missing", listed.keys() - copied.keys()),
        ("not in the manifest", copied.keys() - listed.keys()),
        ("changed", {n for n in listed.keys() & copied.keys() if listed[n] != copied[n]}),
    ):
        if names:
            raise InputError(f"{source}: {len(names)} files are {word} ({few(sorted(names))}); use another backup")
    if MAIN not in listed:
        raise InputError(f"{source}: no {MAIN} in it; use another backup")
    return manifest


def _entries(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, number of all files or 0 if unknown, content) of each file of a backup."""
    if source.is_dir():
        names = list(files(source))
        for name in names:
            if (source / name).is_symlink():
                raise InputError(f"{source}: {name} is a link; this is no backup made by `refdiff backup`")
            with (source / name).open("rb") as file:
                yield name.as_posix(), len(names), file
        return
    with tarfile.open(source, "r:") as tar:
        for entry in tar:
            opened = tar.extractfile(entry) if entry.isreg() else None
            if opened is None:
                raise InputError(f"{source}: {entry.name!r} is no file; this is no backup made by `refdiff backup`")
            with opened as file:
                yield entry.name, 0, file


def _safe(source: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise InputError(f"{source}: {name!r} would leave the home; this is no backup made by `refdiff backup`")
    return path


def _parse(source: Path, text: bytes) -> Manifest:
    try:
        data = json.loads(text)
        if data["refdiff_backup"] != FORMAT:
            raise InputError(f"{source}: written by another version of refdiff ({data['software']}); use that one")
        return Manifest(data["made_at"], data["software"], [BackedUpFile(**f) for f in data["files"]])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(f"{source}: its {MANIFEST} cannot be read ({e}); use another backup") from e
