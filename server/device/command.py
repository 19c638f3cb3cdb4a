"""The `refdiff-edge` command: inspect photos by an export, on a device that has no torch.

0 PASS or done, 1 FAIL, 2 REVIEW (only of one photo), 64 usage, 65 bad input, 69 unavailable, 70 internal, 130 Ctrl-C: as
`refdiff` has them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from refdiff.agent.device.device import Device
    from refdiff.tools.exported.signing import Keys

USAGE, INTERNAL, INTERRUPTED = 64, 70, 130
VERDICT_CODES = {"PASS": 0, "FAIL": 1, "REVIEW": 2}

# Set before numpy loads: its products are small here, and its own threads spin after each of them
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_MOST_THREADS = 1024  # as `ModelSettings` has it
_LONGEST = 1e6  # minutes or seconds


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}. See: {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = _Parser(prog="refdiff-edge", description="Inspect parts by an export of `refdiff export`, without torch.")
    root.add_argument("--version", action="store_true", help="show the version and exit")
    commands = root.add_subparsers(dest="command", parser_class=_Parser, metavar="COMMAND")
    one = commands.add_parser("inspect", help="inspect photos and print the verdicts")
    one.add_argument("export", type=Path, metavar="EXPORT", help="file of `refdiff export`")
    one.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="photo of a part")
    one.add_argument("--part", metavar="ID", help="part id; default: the photo's name without suffix")
    one.add_argument("--scale-mm-per-px", type=_scale, metavar="S", help="size of one pixel in mm, if known")
    one.add_argument("--json", action="store_true", help="write the reports as JSON, one line each")
    _threads(one)
    line = commands.add_parser("watch", help="inspect each photo that appears in a folder, exactly once")
    line.add_argument("export", type=Path, metavar="EXPORT", help="file of `refdiff export`")
    line.add_argument("directory", type=Path, metavar="DIR", help="folder that the camera writes to")
    line.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where reports are kept, and what waits to be sent"
    )
    line.add_argument("--server", metavar="URL", help="send reports and photos there (REFDIFF_API_KEY: role inspector)")
    line.add_argument(
        "--updates-every", type=_duration, default=10.0, metavar="MIN",
        help="ask the server for a newer export every so many minutes; 0: never",
    )  # fmt: skip
    line.add_argument("--name", default="device", metavar="NAME", help="of this device, in reports")
    line.add_argument("--scale-mm-per-px", type=_scale, metavar="S", help="size of one pixel in mm, if known")
    line.add_argument("--once", action="store_true", help="stop when the folder is empty")
    line.add_argument(
        "--drain-s", type=_duration, default=10.0, metavar="S", help="how long to wait for the server at the end"
    )
    _threads(line)
    back = commands.add_parser("rollback", help="go back to the export before the one in use, also while `watch` runs")
    back.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of `refdiff-edge watch`")
    check = commands.add_parser("verify", help="check an export: every part, signature and version")
    check.add_argument("export", type=Path, metavar="EXPORT", help="file of `refdiff export`")
    return root


def _threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=_count, metavar="N", help="threads of the networks; default: one per core")


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MOST_THREADS):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {_MOST_THREADS}")
    return int(text)


def _duration(text: str) -> float:
    value = _float(text)
    if not 0 <= value <= _LONGEST:  # NaN neither
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {_LONGEST:,.0f}")
    return value


def _scale(text: str) -> float:
    from refdiff.memory.rows.products import check_scale
    from refdiff.model.errors import InputError

    value = _float(text)
    try:
        check_scale(value)
    except InputError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from e


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    from refdiff.model.errors import RefDiffError
    from refdiff.model.files import outage

    try:
        return _run(parser().parse_args(arguments))
    except SystemExit as e:  # argparse has said why
        return int(e.code or 0)
    except RefDiffError as e:
        _say(str(e))
        return e.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was inspected before is kept")
        return INTERRUPTED
    except Exception as e:
        if (lacking := outage(e)) is not None:
            _say(str(lacking))
            return lacking.exit_code
        traceback.print_exc()  # the last resort
        _say(f"internal error ({type(e).__name__}: {e})")
        return INTERNAL


def _run(given: argparse.Namespace) -> int:
    if given.version:
        from refdiff.model.settings import software_version

        print(f"refdiff-edge {software_version()}")
        return 0
    if given.command is None:
        parser().print_help(sys.stderr)
        return USAGE
    return {"inspect": _inspect, "watch": _watch, "verify": _verify, "rollback": _rollback}[given.command](given)


def _verify(given: argparse.Namespace) -> int:
    from refdiff.agent.device.device import Device

    with Device.open(given.export) as device:
        export = device.workspace.export
        signature = "not signed"
        if export.is_signed:
            signature = "signature right" if export.signed else "signature not checked (no key is set)"
        parts = len(export.manifest.parts)
        print(f"{given.export}: product {export.manifest.product}, {parts} parts as exported, "
              f"{export.manifest.number_format}, {signature}")  # fmt: skip
        print(f"export {export.digest} of {export.manifest.created_at}")
    return 0


def _rollback(given: argparse.Namespace) -> int:
    from refdiff.server.device.exports import KeptExports

    out = given.out.expanduser().absolute()
    state = KeptExports(out).rollback()
    print(f"{out}: back to export {state.current}; the one after it is not fetched again")
    return 0


def _inspect(given: argparse.Namespace) -> int:
    from refdiff.model.errors import InputError

    if given.part and len(given.photos) > 1:
        raise InputError("--part names one part, and there are several photos; leave it out to use their names")
    with _opened(given.export, threads=given.threads) as device:
        _say_if_unchecked(device)
        for photo in given.photos:
            part_id = given.part or photo.stem
            report = device.inspect(photo, part_id, scale_mm_per_px=given.scale_mm_per_px, filename=photo.name)
            print(report.model_dump_json() if given.json else _line(report), flush=True)
    return VERDICT_CODES[report.verdict] if len(given.photos) == 1 else 0


def _watch(given: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from refdiff.memory.locks import hold_lock
    from refdiff.model.errors import UnavailableError
    from refdiff.model.files import make_folder
    from refdiff.server.device.delivery import Delivery
    from refdiff.server.device.exports import ExportInUse, KeptExports
    from refdiff.server.device.settings import DeviceSettings
    from refdiff.server.device.spool import Spool
    from refdiff.server.device.updates import Updates
    from refdiff.server.device.watcher import DeviceWatcher
    from refdiff.server.signals import stopping
    from refdiff.server.watch.folder import WatchedFolder
    from refdiff.tools.exported.signing import ExportSettings

    folder, out = WatchedFolder(given.directory), make_folder(given.out.expanduser().absolute())
    with ExitStack() as stack:
        busy = UnavailableError(f"{out} is in use by another refdiff-edge; stop that one first, or name another folder")
        stack.enter_context(hold_lock(out / "device.lock", busy))
        watched = UnavailableError(f"{folder.root} is watched by another refdiff-edge; stop that one first")
        stack.enter_context(hold_lock(folder.root / ".refdiff-edge.lock", watched))
        spool, delivery = Spool(out, sends=given.server is not None), None
        kept, keys = KeptExports(out), ExportSettings.read().keys
        opened = partial(_opened, keys=keys, threads=given.threads)
        export = stack.enter_context(ExportInUse(kept, given.export, opened, _say))
        _say_if_unchecked(export.device())  # once: with a key, none that is unsigned comes to be used
        if given.server is not None:
            secret = DeviceSettings().api_key
            key = secret.get_secret_value() if secret else None
            delivery = stack.enter_context(Delivery(spool, given.server, key, _say))
            if given.updates_every > 0:
                product, every_s = export.device().manifest.product, 60 * given.updates_every
                stack.enter_context(Updates(kept, product, given.server, key, _say, keys=keys, every_s=every_s))
        watcher = DeviceWatcher(folder, export, spool, delivery=delivery, scale_mm_per_px=given.scale_mm_per_px,
                                requested_by=given.name, note=_say)  # fmt: skip
        with stopping(watcher.stop) as interrupted:
            _say(f"watching {folder.root} by export {export.device().digest[:12]}; Ctrl-C stops")
            state = watcher.run(once=given.once)
        if delivery:
            delivery.drain(given.drain_s)
        counts = {
            "export": export.device().digest,
            "verdicts": dict(state.verdicts),
            "quarantined": state.quarantined,
            **spool.counts(),
        }
        print(json.dumps(counts))
    return INTERRUPTED if interrupted() else 0


def _opened(path: Path, *, threads: int | None, keys: Keys | None = None) -> Device:
    import cv2

    cv2.setNumThreads(threads or 1)
    from refdiff.agent.device.device import Device

    return Device.open(path, keys, threads)


def _say_if_unchecked(device: Device) -> None:
    export = device.workspace.export
    if not export.signed:
        _say(f"the signature of {export.path.name} is not checked: nobody has signed it, or no key is set")


def _line(report: Any) -> str:
    boxes = [[f.location.x0, f.location.y0, f.location.x1, f.location.y1] for f in report.findings]
    p = "" if report.p_value is None else f", p {report.p_value:.3g}"
    found = f", {len(boxes)} findings {json.dumps(boxes)}" if boxes else ""
    return f"{report.part_id}: {report.verdict}, score {report.image_score:.4f}{p}{found}\n  {report.verdict_reason}"


def _say(text: str) -> None:
    print(f"refdiff-edge: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
