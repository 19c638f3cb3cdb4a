"""Copies of a report's files, where a person wants them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.model.errors import InputError
from refdiff.model.files import storage_error
from refdiff.server.cli.options import clean

if TYPE_CHECKING:
    from refdiff.agent.report.schema import DefectReport


def check_targets(html: Path | None, out: Path | None) -> None:
    """Create the folders that copies go to. Raises InputError where that fails."""
    for option, target, folder in (("--html", html, html and html.absolute().parent), ("--out", out, out)):
        if target is None or folder is None:
            continue
        if option == "--html" and target.is_dir():
            raise InputError(f"--html {clean(str(target))}: a folder; name the file to write")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{option} {clean(str(target))}: cannot be made ({e.strerror}); name another place") from e
        if not os.access(folder, os.W_OK | os.X_OK) or (target.is_file() and not os.access(target, os.W_OK)):
            raise InputError(f"{option} {clean(str(target))}: cannot be written; name another place")


def copy_artefacts(report: DefectReport, html: Path | None, out: Path | None) -> list[Path]:
    """Copy the page to `html`, and everything to the folder `out`; the files written. Raises StorageError."""
    artefacts = report.artefacts.model_dump(exclude_none=True)
    wanted = [(Path(artefacts["html"]), html)] if html else []
    if out:
        wanted += [(Path(path), out / Path(path).name) for path in artefacts.values()]
    written = []
    for source, target in wanted:
        assert target is not None
        try:
            shutil.copyfile(source, target)
        except OSError as e:
            error = storage_error(target, e)
            error.add_note(f"inspection {report.inspection_id} is filed")
            raise error from e
        written.append(target)
    if out and "report" not in artefacts:
        target = out / "report.json"
        target.write_text(report.model_dump_json(indent=2), encoding="utf-8")
        written.append(target)
    return written
