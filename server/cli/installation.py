"""Whether this installation can work: what `refdiff doctor` looks at besides the contents of the home folder.

Nothing here changes anything, and nothing that is said holds a secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import BankBusyError, RefDiffError
from refdiff.model.wording import few
from refdiff.server.cli.invocation import open_workspace
from refdiff.server.cli.options import shown_path

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.agent.settings import AgentSettings
    from refdiff.memory.upkeep.doctor import BankContents, Examination
    from refdiff.model.settings import ModelSettings
    from refdiff.server.settings import ServerSettings, Settings
    from refdiff.tools.workspace import Workspace

Status = Literal["ok", "off", "warning", "broken"]

_ANSWER_S = 5.0  # longest wait for the endpoint of a language model
_CLOCKS_DIFFER = timedelta(minutes=2)  # between machines that file into one database
_SOON = timedelta(days=14)  # keys that expire within it are named
_SHOWN = 5  # names


@dataclass(frozen=True)
class Check:
    """What was found about one thing that inspections need."""

    name: str
    status: Status  # "warning": inspections work all the same
    says: str  # in words
    remedy: str = ""  # the way out, where the status is not "ok"


@dataclass
class Bank:
    """What the golden bank says of itself, and which calibrations no longer fit it."""

    contents: BankContents | str  # in words why it is not known
    status: Status = "broken"  # where it is not known: "warning" if nothing says that the bank itself is broken
    calibrated: list[str] = field(default_factory=list)  # products
    stale: list[str] = field(default_factory=list)  # of those
    differences: list[str] = field(default_factory=list)  # of a server's collection from what would be made now


def look_at_bank(memory: MemorySettings) -> Bank:
    """Open the golden bank if no other process holds it."""
    from refdiff.memory.schema import MAIN, other_stores
    from refdiff.memory.upkeep.doctor import BankContents

    if memory.database_url is None and not (memory.home / MAIN).exists():
        if memory.home.exists() and other_stores(memory.home):
            return Bank("without the main database, the bank is not opened", "warning")
        if memory.qdrant_url is None:
            return Bank(BankContents([], []))  # nothing is there yet, and nothing is made
    with contextlib.ExitStack() as opened:
        try:
            workspace = opened.enter_context(open_workspace(bank_wait_s=0.0))
        except RefDiffError as e:
            return Bank(f"not opened, as the records cannot be read: {e}", "warning")
        try:
            return _look(workspace)
        except BankBusyError as e:
            return Bank(str(e), "warning")
        except RefDiffError as e:
            return Bank(str(e))


def _look(workspace: Workspace) -> Bank:
    """Raises BankBusyError, StorageError, UnavailableError."""
    from refdiff.memory.upkeep.doctor import BankContents
    from refdiff.tools.inspection.calibration import calibration_key

    bank, calibrations = workspace.bank, workspace.stores.calibrations
    goldens = [*bank.list(), *bank.of_other_encoders()]
    found = Bank(
        BankContents(goldens, [f"{d.name}: {d.reason}" for d in bank.damaged()]), differences=bank.differences()
    )
    for product in sorted({g.product for g in goldens}):
        if calibrations.latest(product) is not None:
            found.calibrated.append(product)
            if calibrations.get(product, calibration_key(workspace, product, workspace.settings.references)) is None:
                found.stale.append(product)
    return found


def check_installation(settings: Settings, found: Examination, bank: Bank) -> list[Check]:
    """All checks, in the order in which things depend on each other. Whatever is down, the others are made."""
    memory, model = settings.memory, settings.model
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("home folder", lambda: _home(memory)),
        ("cache", lambda: _cache(model)),
        ("database", lambda: _database(memory, found)),
        ("audit trail", lambda: _audit(found)),
        ("clock", lambda: _clock(found)),
        ("API keys", lambda: _keys(found)),
        ("golden bank", lambda: _bank(memory, bank)),
        ("weights", lambda: _weights(model)),
        ("arithmetic", lambda: _arithmetic(model)),
        ("language model", lambda: _language_model(settings.agent, model)),
        ("calibrations", lambda: _calibrations(bank)),
    )
    if settings.server.oidc_issuer is not None:
        checks += (("sign-in", lambda: check_sign_in(settings.server)),)
    return [_made(name, check) for name, check in checks]


def _made(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except RefDiffError as e:
        return Check(name, "broken", str(e), "see the message")
    except OSError as e:
        said = f"{e.filename or name}: {e.strerror or type(e).__name__}"
        return Check(name, "broken", said, "check owner and permissions")


def _home(memory: MemorySettings) -> Check:
    name, home = "home folder", memory.home
    if not home.exists():
        return Check(
            name, "warning", f"{shown_path(home)} does not exist yet", "the first command makes it (REFDIFF_HOME)"
        )
    if not _writable(home):
        return Check(name, "broken", f"{shown_path(home)} cannot be written: reports can be read, and nothing inspected",
                     "check its owner and permissions, or set REFDIFF_HOME")  # fmt: skip
    free = shutil.disk_usage(home).free
    said = f"{shown_path(home)}, {_mb(free)} free"
    if free < memory.min_free_bytes:
        return Check(name, "broken", f"{said}: below {_mb(memory.min_free_bytes)} no photo is accepted",
                     "free some space (refdiff prune), or lower REFDIFF_MIN_FREE_BYTES")  # fmt: skip
    if free < 5 * memory.min_free_bytes:
        return Check(name, "warning", said, "free some space (refdiff prune)")
    return Check(name, "ok", said)


def _cache(model: ModelSettings) -> Check:
    folder = model.cache
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if _writable(nearest):
        return Check("cache", "ok", shown_path(folder))
    return Check("cache", "warning", f"{shown_path(folder)} cannot be written: features are computed again each time",
                 "check its owner and permissions, or set REFDIFF_CACHE")  # fmt: skip


def _writable(folder: Path) -> bool:
    """By writing: modes do not tell of read-only disks and quotas."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError:
        return False
    return True


def _database(memory: MemorySettings, found: Examination) -> Check:
    from refdiff.memory.schema import NEWEST

    kind = "SQLite" if memory.database_url is None else "Postgres"
    if found.schema == NEWEST:
        return Check("database", "ok", f"{kind}, schema {found.schema} (the newest), {found.filed:,} inspections filed")
    unread = next((f for f in found.findings if f.kind in ("unreadable", "missing", "damaged")), None)
    if unread is None and found.schema is None:
        return Check("database", "warning", "no records yet", "enrol golden samples: refdiff enroll")
    said = f"schema {found.schema}, not {NEWEST}" if unread is None else f"{unread.what}: {unread.names[0]}"
    return Check("database", "broken", f"{kind}: {said}", "upgrade refdiff" if unread is None else unread.remedy)


def _audit(found: Examination) -> Check:
    wrong = next((f for f in found.findings if f.what == "the audit trail"), None)
    if wrong is not None:
        return Check("audit trail", "broken", wrong.names[0], wrong.remedy)
    if found.schema is None:
        return Check("audit trail", "warning", "not checked, as there are no records to read", "see the database")
    if found.audited < found.audit_records:
        newest = f"the newest {found.audited:,} of {found.audit_records:,} records hold"
        return Check("audit trail", "ok", f"{newest}; --deep checks all")
    return Check("audit trail", "ok", f"all {found.audit_records:,} records hold")


def _clock(found: Examination) -> Check:
    now = datetime.now(UTC)
    newest = None if found.newest_at is None else datetime.fromisoformat(found.newest_at)
    if newest is not None and newest > now + _CLOCKS_DIFFER:
        return Check("clock", "warning", f"the newest record is dated {newest:%Y-%m-%d %H:%M} UTC, now is {now:%d %H:%M}",
                     "set the clock of this machine, or of the one that filed it")  # fmt: skip
    return Check("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC, not before the newest record")


def _keys(found: Examination) -> Check:
    """Of a name that has a newer valid key, that one counts: the older one was replaced."""
    from refdiff.memory.records.api_keys import person
    from refdiff.memory.timestamps import to_utc

    if found.schema is None:
        return Check("API keys", "warning", "not checked, as there are no records to read", "see the database")
    now = datetime.now(UTC)
    newest = {person(k.name): k for k in sorted(found.keys, key=lambda k: k.created_at)}.values()
    ends = {k: datetime.fromisoformat(k.expires_at) for k in newest if k.expires_at}
    expired = [f"{k.name} ({k.key_id})" for k, end in ends.items() if end <= now]
    soon = [f"{k.name} ({k.key_id}, {end:%Y-%m-%d})" for k, end in ends.items() if now < end <= now + _SOON]
    said = f"{sum(k.valid(to_utc(now)) for k in found.keys)} valid"
    if not expired and not soon:
        return Check("API keys", "ok", said)
    parts = [
        said,
        *([f"expired: {few(expired, _SHOWN)}"] if expired else ()),
        *([f"expire soon: {few(soon, _SHOWN)}"] if soon else ()),
    ]
    return Check("API keys", "warning", "; ".join(parts), "refdiff keys rotate KEY, or refdiff keys revoke KEY")


def _bank(memory: MemorySettings, bank: Bank) -> Check:
    name, kind = "golden bank", "embedded" if memory.qdrant_url is None else "Qdrant server"
    if isinstance(bank.contents, str):
        return Check(
            name, bank.status, f"{kind}: {bank.contents}", "see the message; its golden samples were not checked"
        )
    goldens, damaged = bank.contents.goldens, bank.contents.damaged
    said = f"{kind}, {len(goldens)} golden samples of {len({g.product for g in goldens})} products"
    if damaged:
        return Check(
            name, "broken", f"{said}; {len(damaged)} are damaged: {few(damaged, _SHOWN)}", "refdiff goldens reenroll"
        )
    if not goldens:
        return Check(name, "warning", f"{said}: nothing to compare with", "refdiff enroll --product P FOLDER")
    if bank.differences:
        return Check(name, "warning", f"{said}; {'; '.join(bank.differences)}", "docs/operations.md, Qdrant server")
    return Check(name, "ok", said)


def _weights(model: ModelSettings) -> Check:
    from refdiff.model.boards import network as boards
    from refdiff.model.difference import encoder, scorer
    from refdiff.model.language.folder import sources

    files = [model.difference_weights or scorer.PACKAGED, model.board_weights or boards.PACKAGED, *sources(model)]
    wrong = [said for path in dict.fromkeys(files) if (said := _unlike_card(path))]
    if model.encoder is None:
        path = encoder.weights_path()
        if _digest(path) != encoder.WEIGHTS_SHA256:
            wrong.append(f"{path.name} is not what the package shipped")
    elif not model.encoder.is_dir():
        wrong.append(f"{shown_path(model.encoder)} (REFDIFF_ENCODER) is no folder")
    if wrong:
        return Check(
            "weights", "broken", "; ".join(wrong), "reinstall refdiff, or correct the settings of your own weights"
        )
    return Check("weights", "ok", f"{len(dict.fromkeys(files)) + 1} files, each with its sha256")


def _unlike_card(path: Path) -> str:
    """What is wrong with weights beside their card; "" if nothing is."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        return "" if _digest(path) == expected else f"{path.name}: not the sha256 of {path.stem}.json"
    except (OSError, ValueError, KeyError, TypeError) as e:
        return f"{path.name} or its card cannot be read ({type(e).__name__})"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arithmetic(model: ModelSettings) -> Check:
    from propcache.api import cached_property

    from refdiff.model.difference.compiled import uses_openvino
    from refdiff.model.number_format import measured

    # propcache falls back on functools, whose property has one lock for all objects until Python 3.12
    if cached_property.__module__ == "functools" and sys.version_info < (3, 12):
        said = "propcache is here without its compiled part, so threads wait for each other"
        return Check("arithmetic", "warning", said, "install a wheel of propcache, and unset PROPCACHE_NO_EXTENSIONS")
    engine = "OpenVINO" if uses_openvino(model) else "torch"
    if model.number_format != "auto":
        return Check("arithmetic", "ok", f"{model.number_format} (REFDIFF_NUMBER_FORMAT), {engine}")
    if (kept := measured(model.cache)) is None:
        return Check("arithmetic", "ok", f"not measured on this machine yet: the first inspection does; {engine}")
    return Check("arithmetic", "ok", f"{kept}, measured on this machine; {engine}")


def _language_model(agent: AgentSettings, model: ModelSettings) -> Check:
    from refdiff.model.language.folder import built_sha256, is_built, model_folder, unfit

    name = "language model"
    if agent.llm == "off":
        return Check(name, "off", "switched off by REFDIFF_LLM: a script drives inspections")
    if agent.llm_base_url:
        return _endpoint(agent, agent.llm_base_url)
    if reason := unfit(model):
        return Check(name, "warning", reason, "a script drives inspections meanwhile")
    folder = model_folder(model)
    if not is_built(folder):
        return Check(name, "warning", "embedded, not built yet: a script drives inspections", "refdiff model build")
    return Check(name, "ok", f"embedded, sha256 {built_sha256(folder)[:12]}...")


def _endpoint(agent: AgentSettings, url: str) -> Check:
    """Whether it answers; its key and its text are never shown."""
    import httpx2

    name, parts = "language model", urlsplit(url)
    shown = f"endpoint {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    key = {} if agent.llm_api_key is None else {"Authorization": f"Bearer {agent.llm_api_key.get_secret_value()}"}
    meanwhile = "; a script drives inspections meanwhile"
    try:
        with httpx2.Client(timeout=min(_ANSWER_S, agent.llm_timeout_s)) as client:
            status = client.get(f"{url.rstrip('/')}/models", headers=key).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
        return Check(name, "warning", f"{shown} does not answer ({type(e).__name__}){meanwhile}",
                     "start it, or correct REFDIFF_LLM_BASE_URL, or set REFDIFF_LLM=off")  # fmt: skip
    if status in (401, 403):
        return Check(name, "warning", f"{shown} refuses the key ({status}){meanwhile}", "set REFDIFF_LLM_API_KEY")
    if status >= 500:
        return Check(name, "warning", f"{shown} fails ({status}){meanwhile}", "see its log")
    return Check(name, "ok", f"{shown}, model {agent.llm_model}")


def check_sign_in(server: ServerSettings) -> Check:
    """Whether people can sign in: asks the identity provider what it says of itself."""
    from refdiff.server.settings import ConfigurationError
    from refdiff.server.web.errors import Refused
    from refdiff.server.web.identity_provider import IdentityProvider

    name = "sign-in"
    try:
        IdentityProvider(server).told()
    except Refused as e:
        return Check(
            name, "warning", str(e.detail), "start it, or correct REFDIFF_OIDC_ISSUER; API keys work meanwhile"
        )
    except ConfigurationError as e:
        return Check(name, "broken", str(e), "refdiff serve does not start until it is corrected")
    return Check(name, "ok", f"{server.oidc_issuer} answers, its keys can be read")


def _calibrations(bank: Bank) -> Check:
    if isinstance(bank.contents, str):
        return Check("calibrations", "warning", "not checked, as the golden bank was not opened", "see the golden bank")
    if bank.stale:
        return Check("calibrations", "warning", f"stale: {few(bank.stale, _SHOWN)}: the next inspection measures them again",
                     "refdiff calibrate --product P does it now")  # fmt: skip
    return Check("calibrations", "ok", f"{len(bank.calibrated)} products, none stale")


# -- disk use

_GROWS = {
    "images": "each photo", "refdiff.sqlite": "each inspection", "records in Postgres": "each inspection",
    "inspections": "each `inspect` and `ask`", "goldens.sqlite": "each golden sample", "lines": "each watched photo",
    "checkpoints.sqlite": "each unfinished inspection", "logs": "each internal error",
}  # fmt: skip
_PER_INSPECTION = ("images", "refdiff.sqlite", "records in Postgres", "inspections", "lines")


@dataclass(frozen=True)
class Use:
    """What takes how much disk, in bytes."""

    home: dict[str, int]  # largest first
    cache: dict[str, int]
    grows: dict[str, str]  # with what
    inspections: int
    bytes_per_inspection: int | None  # photo, records and files; None without inspections
    inspections_a_day: float  # lately
    days_left: int | None  # until the disk is full, if that goes on; None if it does not grow


def disk_use(found: Examination, cache: Path, home: Path) -> Use:
    """Disk use of home and cache, and what is to be expected."""
    from refdiff.memory.upkeep.doctor import LATELY_DAYS

    own = dict(sorted(found.bytes.items(), key=lambda item: -item[1]))
    growing = sum(own.get(name, 0) for name in _PER_INSPECTION)
    each = growing // found.inspections if found.inspections else None
    daily = found.lately / LATELY_DAYS
    left = None
    with contextlib.suppress(OSError):
        if each and daily:
            left = int(shutil.disk_usage(home).free / (each * daily))
    cached = dict(sorted(_sizes(cache), key=lambda item: -item[1]))
    grows = {name: _GROWS[name] for name in own if name in _GROWS}
    return Use(own, cached, grows, found.inspections, each, round(daily, 2), left)


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            yield entry.name, _size(Path(entry.path))


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # another process made room
                total += Path(folder, name).lstat().st_size
    return total


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
