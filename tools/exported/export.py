"""Write a product as an export: what it takes to decide its parts on a device, with the numbers that decide them here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.memory.rows.calibrations import Calibration
from refdiff.memory.timestamps import utc_now
from refdiff.model.difference.encoder import encoder_graph
from refdiff.model.difference.features import Features
from refdiff.model.difference.graph_files import graph_files
from refdiff.model.difference.scorer import PlainNetwork, folded, unpack_networks
from refdiff.model.difference.sessions import GraphFormat
from refdiff.model.errors import InputError, unknown_product
from refdiff.model.number_format import number_format
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import software_version
from refdiff.tools.caches.feature_cache import pack_features
from refdiff.tools.exported.archive import Manifest, write_export
from refdiff.tools.exported.content import CONTENT, FEATURES, PHOTOS, VECTORS, Content
from refdiff.tools.exported.networks import graph_parts
from refdiff.tools.exported.signing import NO_KEYS, Keys
from refdiff.tools.framing.frames import place_goldens, place_of
from refdiff.tools.framing.photos import golden_tiles
from refdiff.tools.inspection.calibration import current_calibration, measured_again, requested_alpha
from refdiff.tools.inspection.fineness import working_px
from refdiff.tools.inspection.methods import check_networks
from refdiff.tools.inspection.overview import product_names
from refdiff.tools.inspection.zones import product_spec, zone_golden
from refdiff.tools.workspace import Workspace

DEVICES_COMPUTE_IN = "float32"


@dataclass(frozen=True)
class Exported:
    """What was written. digest: names the export, see `Export`. golden_samples: those in use.

    rounding: where this installation does not compute as the device does, by how much the score of a golden sample
    differs at most between both; else 0.
    """

    path: Path
    manifest: Manifest
    digest: str
    golden_samples: int
    parts: int
    signed: bool
    rounding: float


def export_product(
    workspace: Workspace,
    product: str,
    path: Path,
    *,
    graphs: GraphFormat = "openvino",
    keys: Keys = NO_KEYS,
    by: str = "",
    progress: Progress = silent,
) -> Exported:
    """Write a product as one file. keys: sign it.

    Everything is taken as it is now; a stale calibration is redone first. Devices compute in float32: for an installation
    that does not, the export's calibration is measured in float32, and the installation keeps its own. Raises
    UnknownProductError, InputError (a kind that no network compares, an encoder of one's own, too few good parts to
    calibrate, a package that is missing), DamagedError (the photo of a golden sample), StorageError.
    """
    record = workspace.stores.products.get(product)
    if record is None:
        raise unknown_product(product, product_names(workspace))
    product = record.name
    check_networks(workspace, product, "exporting it")
    if workspace.model_settings.encoder is not None:
        raise InputError(
            f"exporting {product!r}: an encoder of your own (REFDIFF_ENCODER) cannot be exported; unset it"
        )
    in_use = workspace.bank.list(product, IN_USE)
    if not in_use:
        raise workspace.bank.no_goldens(product)
    calibration = current_calibration(workspace, product, progress=progress, by=by or "refdiff")
    if calibration is None:
        raise InputError(
            f"product {product!r} has no calibration, and an export without one could only say REVIEW; enrol good samples "
            "of two parts or more first: refdiff enroll"
        )
    here = str(number_format(workspace.model_settings)).removeprefix("torch.")
    kept, rounding = calibration, 0.0
    if here != DEVICES_COMPUTE_IN:  # a score is only comparable with those that were rounded as it is
        calibration = measured_again(workspace.in_float32(), product, kept, progress)
        rounding = largest_difference(kept, calibration)
    networks = workspace.fitted(product)
    place_goldens(workspace, product, progress)
    goldens = workspace.bank.list(product)
    places = [p for g in goldens if (p := workspace.stores.frames.get(g.golden_id)) is not None]
    model, encoder = workspace.model_settings, workspace.encoder
    content = Content(
        product=record,
        goldens=goldens,
        places=places,
        calibration=replace(calibration, marks=[]),
        networks=networks,
        settings={
            "working_px": model.working_px,
            "tiles": model.tiles,
            "max_pixels": model.max_pixels,
            "max_bytes": model.max_bytes,
            "references": workspace.settings.references,
            "alpha": requested_alpha(workspace, calibration),
        },
        encoder={"digest": encoder.digest, "channels": {str(s): c for s, c in encoder.channels.items()}},
        difference=workspace.difference.sha256,
        found_good=sorted(
            workspace.stores.adoptions.found_good(product, [d.photo for d in networks.confirmed]) if networks else ()
        ),
    )
    parts = {CONTENT: content.encode(), VECTORS: _vectors(workspace, in_use)}
    parts |= _photos(workspace, product, in_use)
    parts |= golden_features(workspace, product, in_use, progress)
    parts |= _graphs(workspace, content, graphs)
    about = {
        "product": product,
        "kind": record.kind,
        "graphs": graphs,
        "software": software_version(),
        "created_at": utc_now(),
        "created_by": by,
        "calibration_key": calibration.key,
        "number_format": DEVICES_COMPUTE_IN,
        "installation_number_format": here,
    }
    manifest, digest = write_export(path, about, parts, keys)
    return Exported(path, manifest, digest, len(in_use), len(parts), keys.signs, rounding)


def largest_difference(one: Calibration, other: Calibration) -> float:
    """Of the scores of the golden samples that both have; by order of size where an earlier version kept no names."""
    theirs = dict(zip(other.golden_ids, other.scores, strict=True))
    if one.golden_ids:
        pairs = [(s, theirs[i]) for i, s in zip(one.golden_ids, one.scores, strict=True) if i in theirs]
    else:
        pairs = list(zip(one.scores, other.scores, strict=False))
    return max((abs(a - b) for a, b in pairs), default=0.0)


def _vectors(workspace: Workspace, goldens: Iterable[Golden]) -> bytes:
    arrays = {}
    for golden in goldens:
        arrays[f"{golden.golden_id}/global"], arrays[f"{golden.golden_id}/patches"] = workspace.bank.vectors(
            golden.golden_id
        )
    return save(arrays)


def _photos(workspace: Workspace, product: str, in_use: Iterable[Golden]) -> dict[str, bytes]:
    """Those that are compared, the anchors of their frames, and the one that zones are drawn on."""
    spec, wanted = product_spec(workspace, product), {}
    for golden in in_use:
        workspace.golden_image(golden)  # says which one is damaged
        wanted[golden.sha256] = True
        wanted.setdefault(place_of(workspace, golden).anchor_sha256, False)
    if spec.zones:
        zone = zone_golden(workspace, product, spec)
        workspace.golden_image(zone)
        wanted[zone.sha256] = True
        wanted.setdefault(place_of(workspace, zone).anchor_sha256, False)
    found = {}
    for sha256, needed in wanted.items():
        try:
            found[f"{PHOTOS}/{sha256}"] = workspace.stores.images.get(sha256)
        except InputError:  # an anchor out of use may be lost: then it is so on the device too
            if needed:
                raise
    return found


def golden_features(workspace: Workspace, product: str, in_use: list[Golden], progress: Progress) -> dict[str, bytes]:
    """Features of the golden samples, as photos are compared with them."""
    kept: dict[str, Features] = {}
    watched = copy.copy(workspace)
    watched.__dict__["features"] = _Recorder(workspace, kept)
    spec = product_spec(workspace, product)
    for done, golden in enumerate(in_use, start=1):
        watched.golden_features(golden)
        finest = working_px(workspace, spec, golden)
        for px in {finest, workspace.model_settings.working_px}:
            for _ in golden_tiles(watched, golden, px):
                pass
        progress("encoding golden samples", done, len(in_use))
    return {f"{FEATURES}/{key}.safetensors": save(pack_features(features)) for key, features in kept.items()}


class _Recorder:
    """The cache of golden features, which remembers what was asked for."""

    def __init__(self, workspace: Workspace, kept: dict[str, Features]) -> None:
        self._real, self._kept = workspace.features, kept

    def get(self, key: str, encode: Callable[[], Features], on_disk: bool) -> Features:
        self._kept[key] = found = self._real.get(key, encode, on_disk)
        return found


def _graphs(workspace: Workspace, content: Content, graphs: GraphFormat) -> dict[str, bytes]:
    parts = graph_parts("encoder", graph_files(*encoder_graph(), graphs))
    shared = workspace.network_as_trained()
    parts |= _network("difference", shared, graphs)
    if content.networks is not None:
        weights = workspace.stores.networks.weights(content.networks)
        for i, net in enumerate(unpack_networks(weights, shared.config)):
            parts |= _network(f"fitted-{i}", net, graphs)
    return parts


def _network(name: str, net: Any, graphs: GraphFormat) -> Mapping[str, bytes]:
    plain = PlainNetwork(folded(net))
    return graph_parts(name, graph_files(plain, plain.example(), graphs))
