"""Where the stores live. Environment prefix `REFDIFF_`, plus Qdrant's own usual names."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Literal, Self

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from refdiff.model.settings import ENVIRONMENT


def login_name() -> str:
    """The name of the account that runs this process, or "unknown"."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # containers run as users without a name
        return "unknown"


class MemorySettings(BaseSettings):
    """Where the stores live and how to open them. An explicit argument beats the environment, which beats the default."""

    model_config = ENVIRONMENT

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("refdiff")),
        description="Folder of everything that must be kept (REFDIFF_HOME).",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="Postgres database of the records, postgresql://user:password@host/name (REFDIFF_DATABASE_URL); "
        "without it they are in SQLite under `home`.",
    )
    objects_url: str | None = Field(
        default=None,
        description="Bucket of the photos in an object store, s3://bucket/prefix (REFDIFF_OBJECTS_URL); without it they are "
        "under `home`.",
    )
    qdrant_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("QDRANT_URL", "REFDIFF_QDRANT_URL"),
        description="Qdrant server or cluster; without it the golden bank is embedded under `home`.",
    )
    qdrant_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("QDRANT_API_KEY", "REFDIFF_QDRANT_API_KEY"),
        description="API key of the Qdrant server.",
    )
    qdrant_quantization: Literal["none", "int8"] = Field(
        default="none",
        description="How a server keeps a second, small copy of the vectors that it searches, in memory "
        "(REFDIFF_QDRANT_QUANTIZATION); for a collection that is made.",
    )
    qdrant_on_disk: bool = Field(
        default=False,
        description="Whether a server reads the vectors themselves from disk (REFDIFF_QDRANT_ON_DISK); as above.",
    )
    qdrant_shards: int | None = Field(
        default=None,
        ge=1,
        description="Shards of a collection, or of each product (REFDIFF_QDRANT_SHARDS); without it the server decides.",
    )
    qdrant_replicas: int | None = Field(
        default=None, ge=1, description="Copies of each shard in a cluster (REFDIFF_QDRANT_REPLICAS)."
    )
    qdrant_shard_by_product: bool = Field(
        default=False,
        description="Whether each product has shards of its own (REFDIFF_QDRANT_SHARD_BY_PRODUCT); needs a cluster.",
    )
    min_free_bytes: int = Field(
        default=200_000_000,
        ge=0,
        description="Free disk space below which no new photo is accepted, in bytes (REFDIFF_MIN_FREE_BYTES).",
    )
    bank_wait_s: float = Field(
        default=30.0,
        ge=0,
        description="How long to wait for another process that holds the embedded bank, in s.",
    )

    audit_key: SecretStr | None = Field(
        default=None,
        description="Secret that seals audit exports; kept away from the machine that files (REFDIFF_AUDIT_KEY).",
    )

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        scheme, separator, rest = url.get_secret_value().partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not separator:
            raise ValueError("write postgresql://user:password@host/name, or leave it out for SQLite")
        return SecretStr(f"postgresql://{rest}")

    @field_validator("objects_url")
    @classmethod
    def _bucket(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w./-]*)?", url):
            raise ValueError("write s3://bucket or s3://bucket/prefix, or leave it out for the home folder")
        return url

    @classmethod
    def of_folder(cls, home: Path) -> Self:
        """Everything in a folder, whatever servers the environment names: for homes that are made in passing."""
        return cls(home=home, database_url=None, objects_url=None, qdrant_url=None, qdrant_api_key=None)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        # a later chdir must not move the stores
        return home.expanduser().absolute()
