"""What an export says of its product, as JSON: the record, golden samples, their places, calibration and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.rows.calibrations import Calibration, MarksFound, packed_components, unpacked_components
from refdiff.memory.rows.frames import GoldenPlace, place_from
from refdiff.memory.rows.networks import LearnedDefect, ProductNetworks
from refdiff.memory.rows.products import Product

CONTENT = "product.json"
VECTORS = "vectors.safetensors"  # golden id + "/global" or "/patches" -> float32
FEATURES, PHOTOS = "features", "photos"


@dataclass(frozen=True)
class Content:
    """Everything that decides, besides networks, photos and features."""

    product: Product
    goldens: Sequence[Golden]  # of all statuses, oldest first
    places: Sequence[GoldenPlace]
    calibration: Calibration
    networks: ProductNetworks | None  # fitted to the product, if any
    settings: Mapping[str, Any]  # working_px, tiles, max_pixels, max_bytes, references, alpha
    encoder: Mapping[str, Any]  # digest, channels
    difference: str  # sha256 of the shared network
    found_good: Sequence[str] = field(default=())  # photos (sha256) of confirmed defects that people found good since

    def encode(self) -> bytes:
        """As the part `product.json`."""
        calibration = asdict(self.calibration) | {"components": packed_components(self.calibration.components)}
        del calibration["maps"]  # of height maps, which are not exported
        document = {
            "product": asdict(self.product),
            "goldens": [asdict(g) for g in self.goldens],
            "places": [asdict(p) for p in self.places],
            "calibration": calibration,
            "networks": None if self.networks is None else asdict(self.networks),
            "settings": dict(self.settings),
            "encoder": dict(self.encoder),
            "difference": self.difference,
            "found_good": list(self.found_good),
        }
        return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def decode(cls, document: Mapping[str, Any]) -> Content:
        """Of the parsed part. Raises KeyError, TypeError, ValueError for anything else."""
        product, calibration, networks = document["product"], document["calibration"], document["networks"]
        window = product["intensity_window"]
        return cls(
            product=Product(**product | {"intensity_window": None if window is None else tuple(window)}),
            goldens=[Golden(**g) for g in document["goldens"]],
            places=[place_from(p) for p in document["places"]],
            calibration=Calibration(
                **calibration
                | {
                    "components": unpacked_components(calibration["components"]),
                    "marks": [MarksFound(**m) for m in calibration["marks"]],
                }
            ),
            networks=None if networks is None else ProductNetworks(**networks | {
                "confirmed": [LearnedDefect(**d) for d in networks["confirmed"]], "found": tuple(networks["found"]),
            }),
            settings=document["settings"],
            encoder=document["encoder"],
            difference=document["difference"],
            found_good=document["found_good"],
        )  # fmt: skip
