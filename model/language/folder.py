"""The folder of the language model: where it lies, what it is made from, whether it is there. Loads no network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from refdiff.model.difference.encoder import WEIGHTS_SHA256
from refdiff.model.difference.scorer import PACKAGED as DIFFERENCE
from refdiff.model.errors import StorageError
from refdiff.model.language.base_weights import WHEEL_SHA256
from refdiff.model.settings import ModelSettings
from refdiff.model.weights_file import WEIGHTS

PACKAGED = WEIGHTS / "language.safetensors"
CHAT_TEMPLATE = WEIGHTS / "chat_template.jinja"
CARD = "refdiff.json"
_FORMAT = "1"  # raise when the folder's layout or the network's code changes


def model_folder(settings: ModelSettings) -> Path:
    """Where the folder of these settings' weights is, whether or not it was built. Raises StorageError, InputError."""
    language, difference = sources(settings)
    parts = [_FORMAT, WHEEL_SHA256, WEIGHTS_SHA256, _card_sha(language), _card_sha(difference),
             hashlib.sha256(CHAT_TEMPLATE.read_bytes()).hexdigest()]  # fmt: skip
    name = hashlib.sha256(":".join(parts).encode()).hexdigest()[:16]
    return settings.cache / "models" / f"refdiff-{name}"


def sources(settings: ModelSettings) -> tuple[Path, Path]:
    """The weights in use: of the language model, and of the difference network that it sees with.

    That is the one it was trained with, beside it; weights of before that have none use that of the inspections.
    """
    language = settings.language_weights or PACKAGED
    own = own_difference(language)
    return language, own if own.is_file() else settings.difference_weights or DIFFERENCE


def own_difference(language: Path) -> Path:
    """Where language weights keep the difference network that they were trained with."""
    return language.with_name(f"{language.stem}_difference.safetensors")


def _card_sha(path: Path) -> str:
    try:
        return str(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError) as e:
        raise StorageError(f"{path.with_suffix('.json')} cannot be read ({e}); reinstall or retrain") from e


def unfit(settings: ModelSettings) -> str | None:
    """Why the language weights in use do not go with the other settings, None if they do. Raises StorageError."""
    if settings.encoder is not None:
        return "the language model reads the packaged encoder's features, not those of REFDIFF_ENCODER"
    language, difference = sources(settings)
    try:
        trained_with = json.loads(language.with_suffix(".json").read_text(encoding="utf-8")).get("difference_sha256")
    except (OSError, ValueError) as e:
        raise StorageError(f"{language.with_suffix('.json')} cannot be read ({e}); reinstall or retrain") from e
    if trained_with != _card_sha(difference):
        return (
            "the language weights were trained with another difference network than is in use, and it is not beside them; "
            f"put it there as {own_difference(language).name}, or train them again"
        )
    return None


def is_built(folder: Path) -> bool:
    """Whether the folder is there."""
    return (folder / CARD).is_file()


def built_sha256(folder: Path) -> str:
    """sha256 of the trained language weights that a built folder holds. Raises StorageError."""
    try:
        return str(json.loads((folder / CARD).read_text(encoding="utf-8"))["language"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StorageError(f"{folder}: its card cannot be read ({e}); run: refdiff model build --again") from e
