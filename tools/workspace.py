"""Everything a tool needs, opened once: stores, golden bank, encoder, networks and the caches in memory."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import shlex
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property  # noqa: TID251 (its lock: what is shared is built once)
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakValueDictionary

from cachetools import LRUCache, cachedmethod

from refdiff.memory.golden_bank.golden import IN_USE, Golden, group_of_part
from refdiff.memory.kinds import ProductKind
from refdiff.memory.rows.frames import GoldenPlace
from refdiff.memory.rows.networks import ProductNetworks
from refdiff.model.difference.comparing import Comparing, DistanceOnly, FittedScorer, Network
from refdiff.model.difference.features import FEATURE_VERSION, Encoding, Features
from refdiff.model.errors import DamagedError, InputError, UnavailableError, UnknownRecordError
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal.palettes import coloured
from refdiff.model.wording import few
from refdiff.tools.caches.feature_cache import FeatureCache, Picture, PictureCache
from refdiff.tools.kinds.poses import PoseCache
from refdiff.tools.kinds.readers import reader_of
from refdiff.tools.kinds.reading import How, Look, PlacingReader, Reading
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.registration import Alignment, Matrix, View, align, completed, edge_correlation_at, on_grid

if TYPE_CHECKING:  # what opens databases and runs torch is loaded when it is first used: a device has neither
    from refdiff.memory.golden_bank.bank import GoldenBank
    from refdiff.memory.settings import MemorySettings
    from refdiff.memory.stores import Stores
    from refdiff.model.boards.network import BoardModel
    from refdiff.model.difference.network import DifferenceNetwork
    from refdiff.model.difference.scorer import DifferenceScorer

_IMAGES_KEPT_BYTES = 512 << 20
_VIEWS_KEPT_BYTES = 128 << 20
_WARPED_KEPT_BYTES = 64 << 20
_ALIGNMENTS_KEPT = 512
_NETWORKS_KEPT = 16  # products; about 10 MB each


@dataclass
class Workspace(contextlib.AbstractContextManager["Workspace"]):
    """A context manager; threads may share it. The bank opens on first use, so commands that need none never wait for it."""

    names_defects: ClassVar = True  # findings are compared with those that people named
    stores: Stores
    model_settings: ModelSettings
    settings: ToolsSettings
    shared: bool = False  # whether other processes use the golden bank too

    def __post_init__(self) -> None:
        self._images: LRUCache[tuple[str, How], Reading] = LRUCache(_IMAGES_KEPT_BYTES, attrgetter("nbytes"))
        self._views: LRUCache[tuple[str, str, How], View] = LRUCache(_VIEWS_KEPT_BYTES, attrgetter("nbytes"))
        self._alignments: LRUCache[tuple[str, str, str, How], Alignment] = LRUCache(_ALIGNMENTS_KEPT)
        self._fitted: LRUCache[str, Sequence[Network]] = LRUCache(_NETWORKS_KEPT)
        self._tried: tuple[ProductNetworks, Sequence[Network]] | None = None
        self._lent: WeakValueDictionary[str, RgbImage] = WeakValueDictionary()
        self._cache_lock = threading.Lock()
        self._warped: LRUCache[Any, tuple[Picture, Features]] = LRUCache(_WARPED_KEPT_BYTES, _nbytes)
        self.memo: dict[tuple[str, str], Any] = {}  # what is worked out once from the stores: (what, product) -> it
        self.places: dict[str, GoldenPlace] = {}  # by golden id, those that are known here; they never change
        self._in_colour = False
        self._bank: GoldenBank | None = None
        self._bank_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        memory: MemorySettings | None = None,
        model: ModelSettings | None = None,
        tools: ToolsSettings | None = None,
        *,
        shared: bool = False,
    ) -> Self:
        """Open the stores under `memory.home`; settings that are not given come from the environment.

        shared: beside other processes that share the home's golden bank.
        Raises StorageError if the home folder is not writable.
        """
        from refdiff.memory.stores import Stores

        return cls(Stores.open(memory), model or ModelSettings(), tools or ToolsSettings(), shared)

    @cached_property
    def encoder(self) -> Encoding:
        """The frozen encoder of `model_settings`. Raises StorageError where its weights cannot be read."""
        from refdiff.model.difference.encoder import Encoder

        return Encoder(self.model_settings)

    @property
    def difference(self) -> Comparing:
        """The trained difference network; the distance to the nearest patch alone with an encoder of the customer's own
        (`REFDIFF_ENCODER`) and no weights trained on it.

        Raises StorageError where its weights are damaged, InputError where they were trained on another encoder.
        """
        settings = self.model_settings
        if settings.encoder is not None and settings.difference_weights is None:
            return DistanceOnly()
        return self.trained_difference

    @property
    def trained_difference(self) -> DifferenceScorer:
        """The trained difference network. Raises as `difference`, and InputError where there is none for the encoder."""
        from refdiff.model.difference.scorer import shared_difference

        model = shared_difference(self.model_settings)
        if model.encoder != self.encoder.digest:
            raise InputError(
                "the difference weights were trained with a different encoder; train them for this one "
                "(`refdiff train difference --encoder DIR`) and set REFDIFF_DIFFERENCE_WEIGHTS"
            )
        return model

    def network_as_trained(self) -> DifferenceNetwork:
        """The network of `trained_difference`, to be trained further or exported. Raises as that, and UnavailableError where
        its file has changed since this process read it."""
        from refdiff.model.difference.scorer import PACKAGED, read_network

        net, _, sha256 = read_network(path := self.model_settings.difference_weights or PACKAGED)
        if sha256 != self.trained_difference.sha256:
            raise UnavailableError(f"{path} has changed since this process read it; start it again")
        return net

    def fitted(self, product: str) -> ProductNetworks | None:
        """The networks that were fitted to a product; None where the shared one inspects it."""
        if self._tried is not None and self._tried[0].product == product:
            return self._tried[0]
        known = self.stores.networks.get(product)
        return None if known is None or self.outdated(known) else known

    def __copy__(self) -> Self:
        """The same stores and caches. Not what is bound to this one: itself in colour, and its cached methods, which
        `cachedmethod` keeps in the instance."""
        copied = object.__new__(type(self))
        vars(copied).update(
            (name, value)
            for name, value in vars(self).copy().items()  # other threads add to it meanwhile
            if name != "in_colour" and not callable(inspect.getattr_static(type(self), name, None))
        )
        return copied

    def trying(self, networks: ProductNetworks, scorers: Sequence[Network]) -> Self:
        """The same stores and caches, where the product has these networks already; everywhere else it does not yet."""
        tried = copy.copy(self)
        tried._tried = networks, scorers
        return tried

    def in_float32(self) -> Self:
        """The same stores and caches, whose networks compute in float32, whatever is faster on this machine."""
        exact = copy.copy(self)
        exact.model_settings = self.model_settings.model_copy(update={"number_format": "float32"})
        exact._fitted = LRUCache(_NETWORKS_KEPT)
        return exact

    @cached_property
    def in_colour(self) -> Workspace:
        """The same stores, whose pictures of height maps are their colour photos: what networks compare of them. Frames
        are those of the heights: they are shared, and nothing is registered by colour."""
        _ = self.encoder, self.features, self.pictures, self.bank  # opened once, and shared
        colour = copy.copy(self)
        colour._in_colour = True
        colour._views = LRUCache(_VIEWS_KEPT_BYTES, attrgetter("nbytes"))
        colour._alignments = LRUCache(_ALIGNMENTS_KEPT)
        colour._warped = LRUCache(_WARPED_KEPT_BYTES, _nbytes)
        return colour

    def outdated(self, networks: ProductNetworks) -> str:
        """Why networks of a product are not in use; "" if they are."""
        if networks.shared != self.difference.sha256:
            return "they began from another shared network"
        goldens, defects = self.bank.list(networks.product), networks.confirmed
        # what was retired may have been a defect, which they took for good
        retired = {g.golden_id for g in goldens if g.status == "retired"}
        gone = sorted(retired.intersection(i for half in networks.trained_on for i in half))
        if gone:
            return f"trained on {few(gone)}, retired since"
        if not defects:
            return ""
        # the other way round: they took a good part for a defect
        good = self.stores.adoptions.found_good(networks.product, [d.photo for d in defects])
        if of_good := [d.inspection_id for d in defects if d.photo in good]:
            return f"trained on a defect of inspection {few(of_good)}, whose part a person found good since"
        # no network would be left that has not seen the part
        in_use = [g for g in goldens if g.status in IN_USE]
        photos, groups = {g.sha256 for g in in_use}, {g.group for g in in_use}
        shown = [d.inspection_id for d in defects if d.photo in photos or group_of_part(d.part_id) in groups]
        return (
            f"trained on a defect of inspection {few(shown)}, whose part a golden sample shows since" if shown else ""
        )

    def network(self, product: str, unseen: Collection[str] = ()) -> Comparing:
        """What compares photos of a product: the networks fitted to it, else the shared one.

        unseen: golden samples (ids) that it must not have been trained on. Raises as `difference`, and DamagedError.
        """
        if (known := self.fitted(product)) is None:
            return self.difference
        try:
            networks = self._scorers(known)
        except DamagedError:
            if (newer := self.fitted(product)) == known:
                raise
            if newer is None:  # removed, or replaced, since it was asked for
                return self.difference
            known, networks = newer, self._scorers(newer)
        fair = [n for n, seen in zip(networks, known.trained_on, strict=True) if not {*seen} & {*unseen}]
        # what all have seen is asked about for its own sake, not to learn how good parts score
        return FittedScorer(fair or networks)

    def _scorers(self, networks: ProductNetworks) -> Sequence[Network]:
        if self._tried is not None and self._tried[0] == networks:
            return self._tried[1]
        return self._networks(networks)

    @cachedmethod(attrgetter("_fitted"), key=lambda self, networks: networks.sha256, lock=attrgetter("_cache_lock"))
    def _networks(self, networks: ProductNetworks) -> Sequence[Network]:
        return self.load_networks(networks)

    def load_networks(self, networks: ProductNetworks) -> Sequence[Network]:
        """Networks that were fitted to a product, ready to compare. Raises DamagedError, StorageError."""
        from refdiff.model.difference.scorer import DifferenceScorer, unpack_networks

        weights, shared = self.stores.networks.weights(networks), self.trained_difference
        found = unpack_networks(weights, shared.config)
        return [DifferenceScorer(net, networks.sha256, shared.encoder, self.model_settings) for net in found]

    @property
    def boards(self) -> BoardModel:
        """The network for bare boards. Raises StorageError where its weights are damaged."""
        from refdiff.model.boards.network import PACKAGED, load_boards

        return load_boards(self.model_settings.board_weights or PACKAGED)

    @property
    def bank(self) -> GoldenBank:
        """The golden bank, opened on first use. Raises BankBusyError, UnavailableError, StorageError."""
        with self._bank_lock:
            if self._bank is None:
                from refdiff.memory.golden_bank.bank import GoldenBank

                e = self.encoder
                self._bank = GoldenBank.open(
                    self.stores.settings, e.fingerprint, e.global_dim, e.patch_dim, self.stores.db, self.shared
                )
            return self._bank

    def kind(self, product: str) -> ProductKind:
        """Of what kind the files of a product are."""
        known = self.stores.products.get(product)
        return known.kind if known else "photo"

    def how(self, product: str) -> How:
        """How the files of a product are read."""
        how = replace(How.of(self.stores.products.get(product)), in_colour=self._in_colour)
        if isinstance(reader_of(how.kind), PlacingReader):
            return replace(how, anchor=self.stores.frames.main_anchor(product))
        return how

    def reading(self, sha256: str, product: str, name: str = "image", how: How | None = None) -> Reading:
        """The stored file, read as the product's kind reads it; its arrays are read-only.

        name: what errors call it. how: default, as the product is read now. Raises UnknownRecordError, DamagedError,
        ImageError, StorageError, and InputError for a kind that is not supported yet.
        """
        return self._read(sha256, how or self.how(product), name)

    def image(self, sha256: str, product: str, name: str = "image") -> RgbImage:
        """The picture of a stored file: (H, W, 3) uint8 RGB, read-only. Raises as `reading`."""
        return self.reading(sha256, product, name).picture

    def look(self, product: str) -> Look | None:
        """How the values of a product's files are shown; None where their pictures show themselves."""
        how = self.how(product)
        return reader_of(how.kind).look(how)

    def shown(self, sha256: str, product: str, name: str = "image") -> RgbImage:
        """A stored file as people see it: (H, W, 3) uint8 RGB. Raises as `reading`."""
        reading, look = self.reading(sha256, product, name), self.look(product)
        if look is None or reading.values is None:
            return reading.picture
        return coloured(reading.values, look.span, look.palette)

    def keep_read(self, sha256: str, how: How, reading: Reading) -> None:
        """Take a stored file that was read elsewhere, that way, for `reading` to give."""
        reading.freeze()
        with self._cache_lock, contextlib.suppress(ValueError):  # larger than the cache
            self._images[sha256, how] = reading

    def lend(self, picture: RgbImage) -> tuple[str, RgbImage]:
        """The id by which `picture` finds it, as long as somebody holds the second: it is not stored.

        That is an equal one where another inspection lends it already; it must not end with that.
        """
        picture_id = hashlib.sha256(picture.tobytes()).hexdigest()
        with self._cache_lock:
            return picture_id, self._lent.setdefault(picture_id, picture)

    def picture(self, sha256: str) -> RgbImage:
        """What a model is shown: a lent picture, or a stored one of 8 bits. Raises as `image`."""
        lent = self._lent.get(sha256)
        return decode_image(self.stores.images.get(sha256), settings=self.model_settings) if lent is None else lent

    def golden_image(self, golden: Golden) -> RgbImage:
        """The picture of a golden, as `image` gives it. Raises DamagedError where it is missing or damaged."""
        return self.golden_reading(golden).picture

    def golden_reading(self, golden: Golden, how: How | None = None) -> Reading:
        """The file of a golden, as `reading` gives it. Raises DamagedError where it is missing or damaged."""
        named = f"golden {golden.golden_id} ({golden.filename})" if golden.filename else f"golden {golden.golden_id}"
        try:
            return self.reading(golden.sha256, golden.product, named, how)
        except (UnknownRecordError, DamagedError) as e:
            what = "missing" if isinstance(e, UnknownRecordError) else "damaged"
            raise DamagedError(
                f"{named} of product {golden.product!r}: its photo {self.stores.images.where(golden.sha256)} is {what}; "
                f"enrol the same photo again (refdiff enroll --product {shlex.quote(golden.product)} FILE), or take the "
                f"golden sample out of use: refdiff goldens retire {golden.golden_id} (refdiff doctor names all such photos)"
            ) from e

    def golden_features(self, golden: Golden) -> Features:
        """Features of a golden at its own working size: computed once, kept in memory and under `REFDIFF_CACHE`."""
        how = self.how(golden.product)
        key, on_disk = self.cache_key(golden.sha256, golden.product, how)
        return self.features.get(key, lambda: self.encoder.embed(self.golden_reading(golden, how).picture), on_disk)

    def cache_key(self, sha256: str, product: str, how: How | None = None) -> tuple[str, bool]:
        """The name of a golden's decoded photo in caches, and whether what is made of it may be kept on disk. how: as of
        `reading`."""
        how = how or self.how(product)
        if how.in_colour:  # photos of 8 bits: no window shows them otherwise
            return f"{sha256}-colour", True
        # deep images depend on the window, which is the product's: they stay in memory only
        return (f"{sha256}-{how.window}{how.rules}{how.anchor}", False) if how.window else (sha256, True)

    @cachedmethod(
        attrgetter("_alignments"),
        key=lambda self, query, query_key, sha256, product: (query_key, sha256, product, self.how(product)),
        lock=attrgetter("_cache_lock"),
    )
    def registration(self, query: RgbImage, query_key: str, sha256: str, product: str) -> Alignment:
        """Registration of a golden's stored photo to a photo, computed once per pair. query_key: sha256 of the photo.

        Raises as `image` does.
        """
        reader = reader_of(self.kind(product))
        if isinstance(reader, PlacingReader):
            return reader.alignment(self.reading(query_key, product), self.reading(sha256, product, "golden sample"))
        golden = self._view(sha256, product, lambda: self.image(sha256, product, "golden sample"))
        return align(self._view(query_key, product, lambda: query), golden)

    def edge_correlation(self, query: RgbImage, query_key: str, golden: Golden, matrix: Matrix) -> float:
        """-1..1: how well the edges of a photo fall on those of a golden, where that lies. query_key: sha256 of the photo;
        matrix: (3, 3), golden px -> photo px. Raises as `golden_image`."""
        theirs = self._view(golden.sha256, golden.product, lambda: self.golden_image(golden))
        return edge_correlation_at(self._view(query_key, golden.product, lambda: query), theirs, matrix)

    @cachedmethod(
        attrgetter("_views"),
        key=lambda self, sha256, product, _: (sha256, product, self.how(product)),
        lock=attrgetter("_cache_lock"),
    )
    def _view(self, sha256: str, product: str, image: Callable[[], RgbImage]) -> View:
        return View(image())

    @cachedmethod(
        attrgetter("_warped"),
        key=lambda self, query, query_key, matrix, size, shown, beyond: (query_key, matrix.tobytes(), size, shown),
        lock=attrgetter("_cache_lock"),
    )
    def warped(
        self,
        query: RgbImage,
        query_key: str,
        matrix: Matrix,
        size: tuple[int, int],
        shown: tuple[str, str],
        beyond: Callable[[], RgbImage],
    ) -> tuple[Picture, Features]:
        """A photo on the pixel grid of a frame and its features there, encoded once for retrieval and score.

        matrix: (3, 3), photo px -> grid px. size: (H, W) of the grid, multiples of 32. shown: ids of the frame's anchor and
        of the golden that is shown where the photo ends. beyond: (H, W, 3), that golden on the grid: next to an edge that
        no golden has, features would differ.
        """
        drawn, covered = on_grid(query, matrix, size)
        if not covered.all():
            drawn = completed(drawn, covered, beyond())
        return Picture.of(drawn, covered), self.encoder.embed(drawn, size)

    def close(self) -> None:
        """Close the bank and the stores."""
        with self._bank_lock:
            if self._bank is not None:
                self._bank.close()
                self._bank = None
        self.stores.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    @cached_property
    def features(self) -> FeatureCache:
        """Features of goldens, of this encoder."""
        settings = self.model_settings
        return FeatureCache(
            settings.cache / "features", self.encoder.fingerprint, settings.cache_bytes, self.encoder.as_array
        )

    @cached_property
    def pictures(self) -> PictureCache:
        """Goldens as they are drawn in their frames."""
        settings = self.model_settings
        return PictureCache(settings.cache / "pictures", FEATURE_VERSION, settings.cache_bytes // 10)

    @cached_property
    def file_poses(self) -> PoseCache:
        """Where files lie that are placed in space when they are read."""
        return PoseCache(self.model_settings.cache / "poses")

    @cachedmethod(attrgetter("_images"), key=lambda self, sha256, how, _: (sha256, how), lock=attrgetter("_cache_lock"))
    def _read(self, sha256: str, how: How, name: str) -> Reading:
        reader = reader_of(how.kind)
        if how.anchor and isinstance(reader, PlacingReader):
            reading = self._read(sha256, replace(how, anchor=""), name)  # as it arrived, it has been read before
            if how.anchor == sha256:
                return reading
            pose = self.file_poses.get(sha256, how)
            if pose is None:
                pose = reader.place(reading, self._read(how.anchor, how, "golden sample"))
                self.file_poses.put(sha256, how, pose)
            return reader.placed(reading, pose, how).freeze()
        data = self.stores.images.get(sha256)
        return reader.read(data, name=name, how=how, settings=self.model_settings).freeze()


def _nbytes(warped: tuple[Picture, Features]) -> int:
    picture, features = warped
    return picture.nbytes + sum(m.nbytes for m in features.maps.values())
