"""The workspace of an export: what inspections ask for, answered from one file, without torch and without a database."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE, Golden, GoldenHit, GoldenStatus
from refdiff.memory.golden_bank.similarity import candidates_of, ranked, unit_rows
from refdiff.memory.rows.calibrations import Calibration
from refdiff.memory.rows.frames import GoldenPlace
from refdiff.memory.rows.networks import ProductNetworks
from refdiff.memory.rows.products import Product
from refdiff.model.arrays import Array
from refdiff.model.difference.comparing import Comparing, Network
from refdiff.model.difference.features import Features
from refdiff.model.difference.sessions import Run
from refdiff.model.errors import DamagedError, InputError, UnknownProductError, UnknownRecordError, no_goldens
from refdiff.model.settings import ModelSettings, software_version
from refdiff.tools.caches.feature_cache import PictureCache, rounded, unpack_features
from refdiff.tools.exported.archive import Export
from refdiff.tools.exported.content import CONTENT, FEATURES, PHOTOS, VECTORS, Content
from refdiff.tools.exported.networks import ExportedNetwork, exported_encoder, open_network
from refdiff.tools.exported.signing import NO_KEYS, Keys
from refdiff.tools.inspection.calibration import calibration_key
from refdiff.tools.kinds.reading import How
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

# a device has little memory; what does not fit is read, drawn or decoded again
_IMAGES_KEPT_BYTES = 8 << 20
_VIEWS_KEPT_BYTES = 8 << 20
_DIRECTIONS_KEPT_BYTES = 32 << 20  # of the features of about 140 tiles: what takes longest to compute anew
_PICTURES_KEPT_BYTES = 8 << 20
_WARPED_KEPT_BYTES = 8 << 20  # of photos, which are inspected once
_OTHER_VERSION = (
    "{path}: was exported by RefDiff {theirs}, whose scores are computed in another way than those of {ours}, which is "
    "installed here; export the product again with the version of the device, or update the device"
)


class ExportedProducts:
    """The one product."""

    def __init__(self, product: Product) -> None:
        self._product = product

    def get(self, name: str) -> Product | None:
        return self._product if name.strip().lower() == self._product.name.lower() else None

    def name_of(self, name: str) -> str:
        found = self.get(name)
        if found is None:
            raise UnknownProductError(f"no product {name!r} in this export, which is of {self._product.name!r}")
        return found.name


class ExportedCalibrations:
    """The one calibration."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def get(self, product: str, key: str) -> Calibration:
        # never measured anew: a device has what the golden samples scored, and decides by that or not at all
        if key != self._calibration.key:
            raise InputError(f"the calibration of {product!r} is not of what this export holds; export it again")
        return self._calibration

    def latest(self, product: str) -> Calibration:
        return self._calibration


class ExportedPlaces:
    """Where the golden samples lie."""

    def __init__(self, places: Sequence[GoldenPlace]) -> None:
        self._places = {p.golden_id: p for p in places}

    def get(self, golden_id: str) -> GoldenPlace | None:
        return self._places.get(golden_id)

    def of(self, product: str) -> dict[str, str]:
        return {i: p.anchor_id for i, p in self._places.items()}


class ExportedNetworks:
    """Which networks are fitted to the product."""

    def __init__(self, networks: ProductNetworks | None) -> None:
        self._networks = networks

    def get(self, product: str) -> ProductNetworks | None:
        return self._networks


class ExportedPhotos:
    """The photos of golden samples by sha256, and the last ones that arrived here."""

    _KEPT = 4

    def __init__(self, export: Export) -> None:
        self._export = export
        self._arrived: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self._arrived.pop(sha256, None)
        self._arrived[sha256] = data
        while len(self._arrived) > self._KEPT:
            del self._arrived[next(iter(self._arrived))]
        return sha256

    def get(self, sha256: str) -> bytes:
        if (data := self._arrived.get(sha256)) is not None:
            return data
        name = f"{PHOTOS}/{sha256}"
        if name not in self._export.manifest.parts:
            raise UnknownRecordError(f"no photo {sha256[:12]} in {self._export.path}")
        return self._export.read(name)

    def where(self, sha256: str) -> str:
        return str(self._export.path / PHOTOS / sha256)


class NothingSince:
    """What people did since the export is known to the server alone."""

    def __init__(self, found_good: Collection[str]) -> None:
        self._found_good = found_good

    def found_good(self, product: str, photos: Iterable[str]) -> set[str]:
        return {*self._found_good} & {*photos}

    def confirmed(self, product: str, days: int, except_part: str | None = None) -> list[Any]:
        return []


class ExportedStores:
    """The stores that an inspection reads."""

    def __init__(self, export: Export, content: Content) -> None:
        self.images = ExportedPhotos(export)
        self.products = ExportedProducts(content.product)
        self.calibrations = ExportedCalibrations(content.calibration)
        self.frames = ExportedPlaces(content.places)
        self.networks = ExportedNetworks(content.networks)
        self.adoptions = NothingSince(content.found_good)
        self._export = export

    def close(self) -> None:
        self._export.__exit__()


class ExportedBank:
    """The golden samples of the product, searched as the golden bank searches them."""

    def __init__(self, goldens: Sequence[Golden], vectors: dict[str, NDArray[Any]]) -> None:
        self._goldens = {g.golden_id: g for g in goldens}
        self._searched = [g for g in goldens if f"{g.golden_id}/global" in vectors]
        self._globals = np.stack([vectors[f"{g.golden_id}/global"] for g in self._searched])
        self._patches = [vectors[f"{g.golden_id}/patches"] for g in self._searched]

    def nearest(
        self,
        product: str,
        global_vec: NDArray[np.float32],
        patches: NDArray[np.float32],
        k: int,
        exclude_ids: Iterable[str] = (),
        exclude_groups: Iterable[str] = (),
        statuses: Sequence[GoldenStatus] = IN_USE,
    ) -> builtins.list[GoldenHit]:
        """As `GoldenBank.nearest`."""
        if k < 1:
            raise InputError(f"{k} references: ask for 1 or more")
        cosines, without, groups = self._globals @ unit_rows(global_vec), {*exclude_ids}, {*exclude_groups}
        fitting = [
            i
            for i in np.argsort(-cosines, kind="stable").tolist()
            if self._searched[i].golden_id not in without
            and self._searched[i].part_group not in groups
            and self._searched[i].status in statuses
        ]
        found = [(self._searched[i], float(cosines[i]), self._patches[i]) for i in fitting[: candidates_of(k)]]
        return ranked(found, patches, k)

    def list(self, product: str | None = None, statuses: Sequence[GoldenStatus] | None = None) -> builtins.list[Golden]:
        return [g for g in self._goldens.values() if statuses is None or g.status in statuses]

    def get(self, golden_id: str) -> Golden:
        if (golden := self._goldens.get(golden_id)) is None:
            raise UnknownRecordError(f"no golden {golden_id} in this export")
        return golden

    def count(self, product: str | None = None, statuses: Sequence[GoldenStatus] | None = None) -> int:
        return len(self.list(product, statuses))

    def products(self) -> builtins.list[str]:
        return sorted({g.product for g in self._goldens.values()})

    def no_goldens(self, product: str, part_id: str | None = None) -> UnknownProductError:
        return no_goldens(product, self.products(), part_id)

    def close(self) -> None:
        """It holds nothing open."""


class ExportedFeatures:
    """Features of golden samples by key: those of the export, and what is computed here because it depends on the photo.

    None are kept: the next photo has other golden samples, and a tile takes 5 MB.
    """

    def __init__(self, export: Export) -> None:
        self._export = export
        self._directions: LRUCache[str, Array] = LRUCache(_DIRECTIONS_KEPT_BYTES, attrgetter("nbytes"))

    def get(self, key: str, encode: Callable[[], Features], on_disk: bool) -> Features:
        """As `FeatureCache.get`; for one thread at a time."""
        name = f"{FEATURES}/{key}.safetensors"
        return self._read(key, name) if name in self._export.manifest.parts else rounded(encode())

    def _read(self, key: str, name: str) -> Features:
        features = unpack_features(lambda array: array, self._export.arrays(name))
        if (known := self._directions.get(key)) is not None:
            features.maps.take_directions(known)
        self._directions[key] = features.maps.directions
        return features


class ExportedWorkspace(Workspace):
    """See `Workspace`; of one export, whose settings count, whatever the environment says."""

    names_defects: ClassVar = False  # names decide nothing, and people give them at the server

    def __init__(self, export: Export, threads: int | None = None) -> None:
        """Raises InputError, DamagedError where the export is not one that this version decides by."""
        try:
            content = Content.decode(export.json(CONTENT))
            known, vectors = dict(content.settings), export.arrays(VECTORS)
            tools = ToolsSettings(references=known.pop("references"), alpha=known.pop("alpha"))
            model = ModelSettings(**known, threads=threads)
            stores = ExportedStores(export, content)
        except (KeyError, TypeError, ValueError) as e:
            raise DamagedError(
                f"{export.path}: says nothing that can be used of its product ({e}); export it again"
            ) from e
        super().__init__(cast(Any, stores), model, tools)
        self.export, self.content, self.threads = export, content, threads
        self._bank = cast(Any, ExportedBank(content.goldens, vectors))
        self._images = LRUCache(_IMAGES_KEPT_BYTES, attrgetter("nbytes"))
        self._views = LRUCache(_VIEWS_KEPT_BYTES, attrgetter("nbytes"))
        self._warped = LRUCache(_WARPED_KEPT_BYTES, self._warped.getsizeof)
        self.__dict__["encoder"] = exported_encoder(self.network_run("encoder"), content.encoder, model.working_px)
        self.__dict__["features"] = ExportedFeatures(export)
        self.__dict__["pictures"] = PictureCache(Path(), "", 0, kept=_PICTURES_KEPT_BYTES)
        self._shared = ExportedNetwork(self.network_run("difference"), content.difference)

    @classmethod
    def of_file(cls, path: Path, keys: Keys = NO_KEYS, threads: int | None = None) -> Self:
        """Open and check an export, ready to inspect. Raises as `Export`, InputError for one of another version,
        and UnavailableError where the package that runs its networks is not installed."""
        export = Export(path, keys)
        try:
            workspace = cls(export, threads)
            workspace.check()
        except BaseException:
            export.__exit__()
            raise
        return workspace

    def cache_key(self, sha256: str, product: str, how: How | None = None) -> tuple[str, bool]:
        """As `Workspace.cache_key`; a device keeps no cache on its disk."""
        return super().cache_key(sha256, product, how)[0], False

    def check(self) -> None:
        """Raises InputError where this version would compute other scores than the calibration is of."""
        product = self.content.product.name
        if calibration_key(self, product, self.settings.references) != self.content.calibration.key:
            theirs, ours = self.export.manifest.software, software_version()
            raise InputError(_OTHER_VERSION.format(path=self.export.path, theirs=theirs, ours=ours))

    @property
    def difference(self) -> Comparing:
        """The shared difference network, as exported."""
        return self._shared

    def load_networks(self, networks: ProductNetworks) -> Sequence[Network]:
        """Networks that were fitted to the product, as exported."""
        count = range(len(networks.trained_on))
        return [ExportedNetwork(self.network_run(f"fitted-{i}"), networks.sha256) for i in count]

    def network_run(self, name: str) -> Run:
        """A network of the export, ready to run. Raises DamagedError, UnavailableError."""
        return open_network(self.export, name, self.threads)
