"""Settings of the network: encoder, working resolution, image limits. Environment prefix `REFDIFF_`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# How every room reads its settings. An empty variable counts as unset: `QDRANT_URL= refdiff ...` switches back.
ENVIRONMENT = SettingsConfigDict(env_prefix="REFDIFF_", env_ignore_empty=True, extra="ignore", populate_by_name=True)

Engine = Literal["auto", "torch", "openvino"]


@cache
def software_version() -> str:
    """Of the package that this code was installed from. Looking it up takes milliseconds."""
    try:
        return version("refdiff")
    except PackageNotFoundError:
        return version("refdiff-edge")  # the part of it that a device has


class ModelSettings(BaseSettings):
    """Explicit argument > environment > default."""

    model_config = ENVIRONMENT

    cache: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("refdiff")),
        description="Rebuildable files (golden features, model folders).",
    )
    cache_bytes: int = Field(
        default=10_000_000_000,
        ge=0,
        description="Most that features of golden samples take in `cache`, in bytes; those used longest ago go first.",
    )
    working_px: int = Field(
        default=320,
        ge=96,
        le=1024,
        description="Long side, in px, of retrieval, and the least at which pairs are compared.",
    )
    tiles: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Most tiles of 320 px in which photos are compared, besides once as a whole, where nothing says how "
        "small a defect matters; 1: only as a whole.",
    )
    max_pixels: int = Field(
        default=64_000_000, ge=1_000_000, description="Largest image, and most decoded at once, in pixels."
    )
    max_bytes: int = Field(default=100_000_000, ge=1_000_000, description="Largest image file that is read, in bytes.")
    encoder: Path | None = Field(
        default=None, description="Folder of a transformers backbone instead of the packaged encoder."
    )
    difference_weights: Path | None = Field(
        default=None, description="Weights of `refdiff train difference`; default: those of the package."
    )
    board_weights: Path | None = Field(
        default=None, description="Weights of `refdiff train boards`; default: those of the package."
    )
    language_weights: Path | None = Field(
        default=None, description="Weights of `refdiff train language`; default: those of the package."
    )
    number_format: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="What networks compute in; default: what this CPU multiplies faster, measured once."
    )
    engine: Engine = Field(
        default="torch",
        description="What runs encoder and difference network; auto (serve, watch and mcp): OpenVINO where it is faster.",
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="torch threads; default: torch's own choice.")
