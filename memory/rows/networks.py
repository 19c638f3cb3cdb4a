"""Which networks were fitted to a product, as it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from refdiff.memory.timestamps import utc_now


@dataclass(frozen=True)
class LearnedDefect:
    """A defect that a person confirmed and networks were trained on."""

    inspection_id: str
    photo: str  # sha256
    part_id: str


@dataclass(frozen=True)
class ProductNetworks:
    """Networks of one product. No network is asked about a golden sample that it was trained on."""

    product: str
    sha256: str  # of the weights, one safetensors file
    shared: str  # sha256 of the shared network that they began from
    trained_on: list[list[str]]  # of each network: ids of golden samples
    created_at: str = field(default_factory=utc_now)
    seconds: float = 0.0
    # how many synthetic defects were found by the shared network, by the fitted ones, and how many there were, on golden
    # samples that the network did not see
    found: tuple[int, int, int] = (0, 0, 0)
    confirmed: list[LearnedDefect] = field(default_factory=list)  # all of them were trained on these

    @property
    def learned_from(self) -> str:
        """In words."""
        said, n = f"{sum(map(len, self.trained_on))} golden samples", len(self.confirmed)
        return f"{said} and {n} confirmed defect{'' if n == 1 else 's'}" if n else said
