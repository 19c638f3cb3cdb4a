"""All stores of one home folder except the golden bank, which only one process may open."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from refdiff.memory.audit_head import AuditHead
from refdiff.memory.audit_store import AuditStore
from refdiff.memory.database.database import Database
from refdiff.memory.journals.batches import BatchStore
from refdiff.memory.journals.jobs import JobStore
from refdiff.memory.photos.image_store import FolderImages, ImageStore
from refdiff.memory.records.adoptions import AdoptionStore
from refdiff.memory.records.api_keys import KeyStore
from refdiff.memory.records.blind_checks import BlindCheckStore
from refdiff.memory.records.calibrations import CalibrationStore
from refdiff.memory.records.captures import CaptureStore
from refdiff.memory.records.defect_names import DefectNameStore
from refdiff.memory.records.dispositions import DispositionStore
from refdiff.memory.records.frames import FrameStore
from refdiff.memory.records.inspections import InspectionStore
from refdiff.memory.records.networks import NetworkStore
from refdiff.memory.records.products import ProductStore
from refdiff.memory.records.published_exports import PublishedExports
from refdiff.memory.records.sign_ins import SignInStore
from refdiff.memory.schema import open_main
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import StorageError
from refdiff.model.files import is_read_only, open_folder, storage_error, write_atomic

PHOTOS = "images"  # their folder in the home
PHOTOS_MOVED = f"{PHOTOS}-moved"  # its name after `refdiff move-photos`
PHOTOS_MOVING = f"{PHOTOS}-moving"  # ... until all that arrived meanwhile are in the bucket, too
PHOTOS_URL = "photos-url"  # file that says in which bucket they are instead


def open_images(settings: MemorySettings) -> ImageStore:
    """The photos of a home, in its folder or in a bucket, which is asked and noted the first time.

    Raises StorageError where they are elsewhere, UnavailableError.
    """
    home, url = settings.home, settings.objects_url
    folder, before = home / PHOTOS, check_bucket(home, url)
    try:
        in_folder = (home / PHOTOS_MOVING).exists() or (folder.is_dir() and any(folder.iterdir()))
    except OSError as e:
        raise storage_error(home, e) from e
    if url is None:
        return FolderImages(folder)
    if in_folder:
        raise StorageError(
            f"{home}: it has photos in {PHOTOS}/, not in the bucket of REFDIFF_OBJECTS_URL; move them there "
            "(refdiff move-photos), unset that, or set REFDIFF_HOME to another folder"
        )
    from refdiff.memory.photos.bucket_images import BucketImages  # takes a while to import

    images = BucketImages(url)
    if before is None and not is_read_only(home):
        images.ask()  # no name of a bucket that does not exist is to be kept
        note_bucket(home, url)
    return images


def check_bucket(home: Path, url: str | None) -> str | None:
    """Where a home has its photos, if in a bucket. Raises StorageError if that is another than `url`."""
    kept = home / PHOTOS_URL
    try:
        before = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
    except OSError as e:
        raise storage_error(home, e) from e
    if before is not None and before != url:
        raise StorageError(
            f"{home}: its photos are in {before}; set REFDIFF_OBJECTS_URL to that (it is {url or 'unset'}), or, if that was "
            f"a slip and no photo went there, delete {kept}"
        )
    return before


def note_bucket(home: Path, url: str) -> None:
    """Let no command look for the photos elsewhere from now on. Raises StorageError."""
    write_atomic(home / PHOTOS_URL, f"{url}\n".encode())


@dataclass(frozen=True)
class Stores(AbstractContextManager["Stores"]):
    """The open stores; a context manager. Safe to share between threads and between processes."""

    images: ImageStore
    db: Database
    products: ProductStore
    captures: CaptureStore
    calibrations: CalibrationStore
    networks: NetworkStore
    inspections: InspectionStore
    dispositions: DispositionStore
    audit: AuditStore
    blind_checks: BlindCheckStore
    adoptions: AdoptionStore
    frames: FrameStore
    defect_names: DefectNameStore
    keys: KeyStore
    sign_ins: SignInStore
    jobs: JobStore
    batches: BatchStore
    exports: PublishedExports
    settings: MemorySettings

    @classmethod
    def open(cls, settings: MemorySettings | None = None) -> Self:
        """Open the stores under `settings.home`, made (mode 0700) if new. settings: default from the environment.

        A read-only folder is opened for reading. Raises StorageError if the folder cannot be made, or the database is
        damaged, or lost while other stores remain; UnavailableError where a server of `database_url` does not answer.
        """
        settings = settings or MemorySettings()
        home = open_folder(settings.home)
        db = open_main(settings)
        try:
            images = open_images(settings)
        except BaseException:
            db.close()
            raise
        return cls(
            images=images,
            db=db,
            products=ProductStore(db),
            captures=CaptureStore(db),
            calibrations=CalibrationStore(db),
            networks=NetworkStore(db),
            inspections=InspectionStore(db),
            dispositions=DispositionStore(db),
            audit=AuditStore(db, images, home, settings.audit_key, AuditHead(home)),
            blind_checks=BlindCheckStore(db),
            adoptions=AdoptionStore(db),
            frames=FrameStore(db),
            defect_names=DefectNameStore(db),
            keys=KeyStore(db, home),
            sign_ins=SignInStore(db),
            jobs=JobStore(db),
            batches=BatchStore(db),
            exports=PublishedExports(home / "exports", db),
            settings=settings,
        )

    def free_bytes(self) -> int:
        """What is free on the disk of the home folder. Raises StorageError."""
        try:
            return shutil.disk_usage(self.settings.home).free
        except OSError as e:
            raise storage_error(self.settings.home, e) from e

    def check_free(self) -> None:
        """Raises StorageError if no new photo should be taken: accepted inspections need the rest of the disk."""
        free, floor = self.free_bytes(), self.settings.min_free_bytes
        if free < floor:
            raise StorageError(
                f"{self.settings.home}: only {free / 1e6:.0f} MB are free, and {floor / 1e6:.0f} MB are kept for accepted "
                "inspections; free some space, or lower REFDIFF_MIN_FREE_BYTES"
            )

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def __exit__(self, *error: object) -> None:
        self.close()
