"""Points in time, kept as ISO 8601 text in UTC with microseconds: text order is time order."""

from __future__ import annotations

from datetime import UTC, datetime

from refdiff.model.errors import InputError


def utc_now() -> str:
    """Now, e.g. `2026-11-22T23:45:01.000000+00:00`."""
    return to_utc(datetime.now(UTC))


def to_utc(moment: datetime | str) -> str:
    """An ISO 8601 text or a datetime (naive means UTC) in the stored form. Raises InputError."""
    shown = moment
    try:
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError) as e:  # OverflowError: in UTC before the year 1 or after 9999
        raise InputError(f"{shown!r} is not a point in time; write it as ISO 8601") from e


def seconds_between(earlier: str, later: str) -> float:
    """Between two points in time as they are stored."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
