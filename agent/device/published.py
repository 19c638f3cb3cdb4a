"""Exports for devices at the server: checked as a device checks them, kept, and recorded in the audit trail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.model.difference.sessions import GraphFormat
from refdiff.model.errors import DamagedError, InputError, unknown_product
from refdiff.model.progress import Progress, silent
from refdiff.model.wording import few
from refdiff.tools.exported.archive import Export, Manifest
from refdiff.tools.exported.content import CONTENT, Content
from refdiff.tools.exported.export import export_product
from refdiff.tools.exported.signing import ExportSettings
from refdiff.tools.inspection.overview import product_names
from refdiff.tools.workspace import Workspace

Made = TypeVar("Made")


@dataclass(frozen=True)
class Published:
    """The export that devices of a product fetch. digest: names it, see `Export`."""

    path: Path
    digest: str
    manifest: Manifest

    @property
    def about(self) -> dict[str, Any]:
        """What it says of itself, without its parts, as JSON data."""
        said = self.manifest.model_dump(mode="json", exclude={"parts"})
        return {"sha256": self.digest, "bytes": self.manifest.nbytes} | said


def published(workspace: Workspace, product: str) -> Published | None:
    """The newest export of a product; None where none was published. Raises UnknownProductError, DamagedError."""
    name = _known(workspace, product)
    path = workspace.stores.exports.path(name)
    return _at(path) if path.is_file() else None


def publish(workspace: Workspace, product: str, file: Path, *, by: str) -> Published:
    """Make a file the export that devices of the product fetch; it is moved. Nothing changes where it is refused.

    Raises UnknownProductError, DamagedError, TamperedError (where keys are set), and InputError for one of another product,
    or with golden samples that are not those of this server, which would refuse the reports.
    """
    name, stores = _known(workspace, product), workspace.stores
    with Export(file, ExportSettings.read().keys, shown="the export") as export:
        manifest, digest = export.manifest, export.digest
        try:
            content = Content.decode(export.json(CONTENT))
        except (KeyError, TypeError, ValueError) as e:
            raise DamagedError(f"the export says nothing that can be used of its product ({e}); export it again") from e
    if manifest.product != name or content.product.name != name:
        raise InputError(f"the export is of product {manifest.product!r}, and was sent as one of {name!r}")
    here = {g.golden_id: g.sha256 for g in workspace.bank.list(name)}
    strange = [g.golden_id for g in content.goldens if g.status in IN_USE and here.get(g.golden_id) != g.sha256]
    if strange:
        raise InputError(
            f"the export has golden samples that this server does not have ({few(strange)}), so it would refuse the "
            "reports; publish it at the server that has them, or export the product here"
        )
    with stores.exports.publishing(name):
        path = stores.exports.path(name)
        before = _state(path)
        new = Published(path, digest, manifest)
        stores.exports.replace(name, file, before, new.about, by)
    return new


def export_and_publish(
    workspace: Workspace, product: str, graphs: GraphFormat, *, by: str, progress: Progress = silent
) -> Published:
    """Export a product as it is now, and publish that. Raises as `export_product` and `publish`."""

    def write(file: Path) -> None:
        keys = ExportSettings.read().keys
        export_product(workspace, product, file, graphs=graphs, keys=keys, by=by, progress=progress)

    return write_and_publish(workspace, product, write, by=by)[1]


def write_and_publish(
    workspace: Workspace, product: str, write: Callable[[Path], Made], *, by: str
) -> tuple[Made, Published]:
    """Publish what `write` writes to the path that it is given; also what it returns. Raises as both do."""
    with workspace.stores.exports.arriving() as file:
        made = write(file)
        return made, publish(workspace, product, file, by=by)


def _known(workspace: Workspace, product: str) -> str:
    if (record := workspace.stores.products.get(product)) is None:
        raise unknown_product(product, product_names(workspace))
    return record.name


def _at(path: Path) -> Published:
    with Export(path, parts=False) as export:
        return Published(path, export.digest, export.manifest)


def _state(path: Path) -> dict[str, Any] | None:
    """What is published now; one that cannot be read is replaced without a word about it."""
    try:
        return _at(path).about
    except (InputError, DamagedError):
        return None
