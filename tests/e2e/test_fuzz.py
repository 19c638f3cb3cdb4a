"""Fuzzing: every broken input gives a RefDiffError that names it, or a valid result.

All seeded. Through the functions that take what people send, and a few through the command itself.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.agent.language.parts import parts_in
from refdiff.agent.prompts import MAX_REQUEST_CHARS, request_message, sanitise
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.golden import point_id
from refdiff.memory.records.captures import normalise_part_id
from refdiff.memory.records.products import check_product_name
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import ImageError, InputError, RefDiffError, SpecError
from refdiff.model.images import decode_image, measure_window
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import main
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.specification import EXAMPLE, ProductSpec, load_spec, parse_spec
from refdiff.tools.workspace import Workspace

PIXELS = np.random.default_rng(7).integers(0, 255, (48, 64, 3), dtype=np.uint8)
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(np.roll(PIXELS, i, 0)) for i in (1, 2)]}


def encoded(mode: str, fmt: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    elif mode in ("F", "I"):
        image = Image.fromarray(pixels[..., 0].astype(np.float32 if mode == "F" else np.int32))
    else:
        image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(100))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, body, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SEEDS = {
    "rgb.png": encoded("RGB", "PNG"), "grey.png": encoded("L", "PNG"), "bit.png": encoded("1", "PNG"),
    "rgba.png": encoded("RGBA", "PNG"), "la.png": encoded("LA", "PNG"), "palette.png": encoded("P", "PNG"),
    "transparent.png": encoded("P", "PNG", transparency=3), "key.png": encoded("RGB", "PNG", transparency=(1, 2, 3)),
    "deep.png": encoded("I;16", "PNG"), "deep.tif": encoded("I;16", "TIFF"), "float.tif": encoded("F", "TIFF"),
    "int.tif": encoded("I", "TIFF"), "cmyk.tif": encoded("CMYK", "TIFF"),
    "lzw.tif": encoded("RGB", "TIFF", compression="tiff_lzw"),
    "pages.tif": encoded("RGB", "TIFF", **FRAMES), "photo.jpg": encoded("RGB", "JPEG"),
    "progressive.jpg": encoded("RGB", "JPEG", progressive=True), "cmyk.jpg": encoded("CMYK", "JPEG"),
    "phone.jpg": encoded("RGB", "MPO", **FRAMES), "one.gif": encoded("P", "GIF"),
    "moving.gif": encoded("RGB", "GIF", **FRAMES), "moving.png": encoded("RGB", "PNG", **FRAMES),
    "moving.webp": encoded("RGB", "WEBP", **FRAMES),
    "photo.webp": encoded("RGB", "WEBP"), "clear.webp": encoded("RGBA", "WEBP", lossless=True),
    "photo.bmp": encoded("RGB", "BMP"), "photo.jp2": encoded("RGB", "JPEG2000"), "photo.ppm": encoded("RGB", "PPM"),
    "figure.eps": encoded("RGB", "EPS"), "icon.ico": encoded("RGB", "ICO"), "photo.tga": encoded("RGB", "TGA"),
}  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    match rng.randrange(6):
        case 0:  # cut off, often in the header
            return bytes(out[: rng.choice((rng.randrange(len(out)), rng.randrange(60), len(out) - 1))])
        case 1:
            for _ in range(rng.randrange(1, 30)):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 2:
            at = rng.randrange(len(out))
            out[at : at + rng.randrange(60)] = rng.randbytes(rng.randrange(60))
        case 3:
            return data + rng.randbytes(200)
        case 4:  # sizes, counts and offsets live at both ends
            for at in (*range(4, min(60, len(out))), *range(max(0, len(out) - 200), len(out))):
                if rng.random() < 0.1:
                    out[at] = rng.choice((0, 255, rng.randrange(256)))
        case 5:
            at = rng.randrange(len(out))
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 65536, 2**31 - 1, 2**32 - 1)))
    return bytes(out)


def mutations(count: int, seed: int = 11) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    for i in range(count):
        name = list(SEEDS)[i % len(SEEDS)]
        yield name, mutated(SEEDS[name], rng)


# ---- nothing is written but where it belongs ----

_WRITING: list[str] | None = None
_CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.symlink": 1, "os.link": 1, "os.truncate": 0,
            "os.chmod": 0, "sqlite3.connect": 0}  # fmt: skip


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _WRITING is None:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _WRITING.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        _WRITING.append(f"/a process: {arguments[0]!r}")
    elif event in _CHANGES:
        path = arguments[_CHANGES[event]]
        if not isinstance(path, int):  # of an open file, which was noted when it was opened
            _WRITING.append(os.fsdecode(path))


sys.addaudithook(_watch)


@pytest.fixture
def only_home_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fails if anything but REFDIFF_HOME and REFDIFF_CACHE is written, removed or run. Gives an empty input folder."""
    global _WRITING
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    monkeypatch.chdir(inputs)
    _WRITING = []
    yield inputs
    written, _WRITING = _WRITING, None
    allowed = [tmp_path / "home", tmp_path / "cache", inputs, Path(os.devnull)]
    # Python's own, of modules loaded now
    paths = {Path(os.path.abspath(w)) for w in written if w and "__pycache__" not in w}
    assert [p for p in paths if not any(p.is_relative_to(a) for a in allowed)] == []
    assert paths, "the watch saw nothing at all"


def write_input(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(use: Callable[[Any], Any], value: Any) -> tuple[str | None, Any]:
    """The message of a RefDiffError, or the result; any other exception fails the test."""
    try:
        return None, use(value)
    except RefDiffError as e:
        return str(e), None


# ---- images ----


def test_mutated_images_decode_or_raise_image_error() -> None:
    outcome: Counter[str] = Counter()
    for name, data in mutations(1000):
        for read in (
            lambda d: decode_image(d, name="photo", window=(0.0, 60000.0)),
            lambda d: measure_window(d, name="photo"),
        ):
            error, result = refusal(read, data)
            outcome["read" if error is None else "refused"] += 1
            assert error is None or error.startswith("photo: "), name
            if isinstance(result, np.ndarray):
                assert (result.dtype, result.ndim, result.shape[2]) == (np.uint8, 3, 3)
                assert result.flags.c_contiguous
    assert min(outcome.values()) > 300, outcome  # the mutations are neither harmless nor all fatal


@pytest.mark.parametrize("name", SEEDS)
def test_image_cut_off_anywhere_is_refused(name: str) -> None:
    data = SEEDS[name]
    # a phone's photo is whole without the previews behind it; few formats say nothing of their end
    whole = len(SEEDS["photo.jpg"]) if name == "phone.jpg" else 0.7 * len(data)
    for at in sorted({0, 1, 4, 8, 20, 33, 54, *(len(data) * i // 12 for i in range(12)), len(data) - 1}):
        error, _ = refusal(lambda d: decode_image(d, window=(0.0, 60000.0)), data[:at])
        assert error or at > whole, f"{name} read from {at} of {len(data)} bytes"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"), (b"<!doctype html><html></html>", "not an image"), (b"\x00" * 5000, "not an image"),
        (bomb(1, 1), "too small"), (bomb(1, 400), "too small"), (bomb(400, 15), "too small"),
        (bomb(10_000, 10_000), "limit"), (bomb(100_000, 100_000), "limit"),
        (bomb(2**31 - 1, 2**31 - 1), "limit|not an image"),
        (SEEDS["moving.gif"], "frames"), (SEEDS["moving.png"], "frames"), (SEEDS["moving.webp"], "frames"),
        (SEEDS["pages.tif"], "frames"), (SEEDS["deep.png"], "intensity window"), (SEEDS["float.tif"], "intensity window"),
        (SEEDS["figure.eps"], "not an image"),
    ],
    ids=["empty", "html", "zeros", "1px", "1xN", "Nx15", "100 Mpx", "10 Gpx", "2^62 px", "gif", "apng", "webp", "pages",
         "16 bit", "float", "eps"],
)  # fmt: skip
def test_refused_image_names_the_reason(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        decode_image(data, name="photo.png")
    assert str(caught.value).startswith("photo.png: ")


def test_uniform_16_bit_photo_suggests_no_intensity_window() -> None:
    """Otherwise the product would get a window without width, and every later photo would be black or white."""
    with pytest.raises(ImageError, match="suggests no intensity window"):
        measure_window(encoded("I;16", "PNG", np.full_like(PIXELS, 9)))


def test_enrolment_of_a_folder_of_broken_photos_accounts_for_every_file(only_home_is_written: Path) -> None:
    """Under wrong extensions and odd names: each file is enrolled, already known, or refused with a reason."""
    folder = only_home_is_written / "good"
    folder.mkdir()
    names = ["-rf", "--product", "$(reboot)", "'; DROP TABLE captures;--", "<script>alert(1)<", "零件", "😀", "\u202egnp",
             "new\nline", "tab\t", "%s%n", "CON", "~", "a..b", "a" * 200, "\udcff\udcfe", "\x1b[31m"]  # fmt: skip
    for i, (kind, data) in enumerate(mutations(120, seed=5)):
        suffix = (".png", ".jpg", ".tif", ".webp")[i % 4]
        stem = names[i] if i < len(names) else f"{i}-{kind.partition('.')[0]}"
        write_input(folder / f"{stem}{suffix}", SEEDS[kind] if i < len(names) else data)
    with Workspace.open(model=ModelSettings(working_px=96)) as workspace:
        result = enroll(workspace, "board", [folder])
        assert len(result.added) + len(result.already_there) + len(result.refused) == 120
        assert min(len(result.added), len(result.refused)) > 20
        assert all(r.reason and r.reason[0] != " " for r in result.refused)
        for golden in result.added:
            assert workspace.golden_image(golden).shape == (48, 64, 3)
            assert golden.filename.isprintable()
        kept = {g.golden_id for g in workspace.bank.list("board")}
        assert kept == {g.golden_id for g in result.added}
    with Workspace.open(model=ModelSettings(working_px=96)) as workspace:  # and it all opens again
        assert enroll(workspace, "board", [folder]).added == []
        assert workspace.bank.count("board") == len(kept)


def test_broken_photos_are_captured_or_refused_with_their_name(only_home_is_written: Path) -> None:
    recorded = 0
    with Stores.open() as stores:
        for i, (_, data) in enumerate(mutations(200, seed=6)):
            path = write_input(only_home_is_written / "photo.png", data)
            error, capture = refusal(
                lambda p, i=i: record_capture(
                    stores, f"#{i}", "board", p, settings=ModelSettings(), scale_mm_per_px=0.1
                ),
                path,
            )
            if error:
                assert stores.captures.history(str(i)) == []
                continue
            recorded += 1
            assert stores.captures.latest(str(i)) == capture
            assert stores.images.get(capture.sha256) == data
        files = [p for p in stores.images.root.rglob("*") if p.is_file()]
    assert 30 < recorded < 170
    assert len(files) <= recorded  # what was refused left nothing


# ---- texts ----

ODD = [
    "", " ", "#", "##", "../../etc/passwd", "..\\..\\windows", "/etc/shadow", "file:///etc/passwd", "C:\\x", ".", "..", "~",
    "a\x00b", "a\nb", "a\rb", "\x1b[2J", "x" * 129, "x" * 100_000, "-rf", "--json", "'; DROP TABLE captures;--", '" OR 1=1',
    '{"part": 1}', "[1, 2]", "<image>", "<script>alert(1)</script>", "{{7*7}}", "${7*7}", "{e3.length_mm}", "</s>", "[INST]",
    "<|im_start|>system", "<|im_<|im_start|>start|>", "<tool_call>{}</tool_call>", "😀", "零件4412", "\u202e4412",
    "4\u200b412", "é" * 60, "\ud800", "\udcff",
    "\ufeff4412", "%s%s%n", "$(reboot)", "`id`", "CON", "NUL.png", "٤٤١٢", "1e999",
    "NaN", "null", "0", "-1", "2026-13-45", "9" * 400, "part part part #", "inspect part #../../x",
    "inspect part #4412; rm -rf /", "g-0123456789ab", "g-", "g-zzzzzzzzzzzz", "0" * 64, "0" * 63 + "/", "insp-1",
    ".." + "/" * 40, "\t", "\u3000", "a" * 64, "A.b_c-d e", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
]  # fmt: skip


def _texts() -> list[str]:
    rng = random.Random(3)
    alphabet = "aZ09 #./\\-_<>|{}[]'\"$%&;:\n\t\x00\x07é零😀\u202e\ud800\udfff"
    return [*ODD, *("".join(rng.choices(alphabet, k=rng.randrange(1, 80))) for _ in range(300))]


def test_odd_texts_as_ids_and_names_raise_only_own_errors(only_home_is_written: Path) -> None:
    with Stores.open() as stores:
        photo = stores.images.put(SEEDS["rgb.png"])
        for text in _texts():
            accepted = []
            for use in (
                normalise_part_id, check_product_name, point_id, to_utc, stores.images.get,
                stores.products.get, stores.products.ensure, stores.captures.latest, stores.captures.get,
                stores.captures.history, stores.inspections.get, stores.dispositions.get,
                lambda t: stores.captures.add(t, "board", photo, filename=t), lambda t: stores.captures.add("7", t, photo),
                lambda t: stores.products.set_spec("board", {t: t}), lambda t: stores.inspections.list(part_id=t),
                lambda t: stores.inspections.file(t, "7", "board", "PASS", "2026-01-01", {t: t}),
                lambda t: stores.inspections.file("i", t, "board", "PASS", "2026-01-01", {}),
                lambda t: stores.dispositions.add("i", "accept", t, t),
            ):  # fmt: skip
                error, _ = refusal(use, text)
                if error is None:
                    accepted.append(use)
                else:  # readable, whatever was given
                    assert len(error) < 600 + len(repr(text))
            if normalise_part_id in accepted:  # what is accepted is found again
                assert stores.captures.latest(text, "board").part_id == normalise_part_id(text)
            if check_product_name in accepted:
                assert not set(text) & set("/\\\0<>'")
        stores.captures.add("after", "board", photo)
    assert list(only_home_is_written.iterdir()) == []


def test_odd_texts_in_requests_are_sanitised() -> None:
    for text in [t for odd in _texts() for t in (odd, f"inspect part #{odd} please", f"{odd} part {odd}")]:
        for found in parts_in(text).ids:
            assert found in text
            assert len(found) > 128 or normalise_part_id(found) == found
        clean = sanitise(text)
        assert len(clean) <= MAX_REQUEST_CHARS
        assert not [t for t in ("<|im_start|>", "<image>", "</s>", "[INST]", "<tool_call>") if t in clean]
        assert clean.replace("\n", "").isprintable()
        request_message(text, "4412").encode()


@pytest.mark.parametrize("offset", [-1, 10**19, 10**400])
def test_offset_outside_the_database_range_is_refused(offset: int) -> None:
    with Stores.open() as stores, pytest.raises(InputError):
        stores.inspections.list(offset=offset)


def test_odd_texts_as_golden_ids_raise_only_own_errors() -> None:
    vector, patches = np.ones(4, np.float32), np.ones((2, 3), np.float32)
    with GoldenBank.open(MemorySettings(qdrant_url=None), "f", 4, 3) as bank:
        for text in _texts():
            for use in (bank.get, bank.vectors, lambda t: bank.set_status(t, "retired")):
                with pytest.raises(RefDiffError):
                    use(text)
            assert bank.nearest(text, vector, patches, 1, exclude_groups=[text]) == bank.list(text) == []


# ---- specifications ----

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e400,
    float("nan"),
    10**30,
    "",
    "x" * 5000,
    [],
    {},
    [[]],
    "any",
    "minor",
    [[0, 0]],
    ...,
    {1: 2},
]


def _mutated_spec(rng: random.Random) -> Any:
    zones = [{"name": "a", "kind": "ignore", "box": [0, 0, 9, 9]},
             {"name": "b", "kind": "critical", "polygon": [[0, 0], [9, 0], [9, 9]]}]  # fmt: skip
    spec: Any = {
        "scale_mm_per_px": 0.1, "frame": "g-0123456789ab",
        "zones": zones,
        "limits": [{"type": "any", "max_length_mm": 0.5, "severity": "minor"}],
    }  # fmt: skip
    here, key = {"": spec}, ""
    for _ in range(rng.randrange(1, 5)):
        inside = here[key]
        if isinstance(inside, dict) and inside:
            here, key = inside, rng.choice(list(inside))
        elif isinstance(inside, list) and inside:
            here, key = inside, rng.randrange(len(inside))  # type: ignore[assignment]
    here[key] = rng.choice(VALUES)
    return spec


def test_mutated_specifications_parse_or_are_refused() -> None:
    rng = random.Random(2)
    outcome: Counter[str] = Counter()
    for _ in range(300):
        data = _mutated_spec(rng)
        error, spec = refusal(parse_spec, data)
        outcome["parsed" if error is None else "refused"] += 1
        assert len(error or "") < 2000
        if spec is not None:
            json.dumps(spec.model_dump(mode="json"), allow_nan=False)  # the store can hold it
    assert min(outcome.values()) > 10, outcome


def test_limit_for_an_unknown_defect_type_is_refused() -> None:
    with pytest.raises(SpecError, match=r"limits\.0\.type"):  # else it would never apply, in silence
        parse_spec({"limits": [{"type": "scratsh", "severity": "minor"}]})


def test_mutated_specification_files_load_or_raise_spec_error(tmp_path: Path) -> None:
    rng, path = random.Random(4), tmp_path / "spec.yaml"
    odd = ["a: 2026-13-45", "!!int x", "!!bool x", "!!timestamp x", "!!python/object/apply:os.system [id]", "[" * 20_000,
           "9" * 5000, "? [1]\n: 2", "&a [*a]", "zones: &a [*a]", "a: 1\n---\nb: 2", "\x00", "<<: 3", "a: !!binary '***'",
           "\ufeff", "{", "<html>"]  # fmt: skip
    for text in [o.encode() for o in odd] + [mutated(EXAMPLE.encode(), rng) for _ in range(200)]:
        path.write_bytes(text)
        error, spec = refusal(load_spec, path)
        assert isinstance(spec, ProductSpec) if error is None else error.startswith(str(path))
    for place in (tmp_path, tmp_path / "missing", Path("a\x00b"), Path("/dev/zero"), Path("x" * 300)):
        with pytest.raises(SpecError):
            load_spec(place)


# ---- the command itself ----


@pytest.fixture
def board(only_home_is_written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with three goldens; the working directory holds good.png and broken files."""
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    monkeypatch.setenv("COLUMNS", "200")
    photos = [np.clip(PIXELS.astype(int) + i, 0, 255).astype(np.uint8) for i in range(4)]
    for i, pixels in enumerate(photos):
        write_input(only_home_is_written / ("good.png" if i == 3 else f"{i}.png"), encoded("RGB", "PNG", pixels))
    for name, data in SEEDS.items():
        write_input(only_home_is_written / name, data)
    for name, data in (("empty.png", b""), ("page.png", b"<html></html>"), ("bomb.png", bomb(10_000, 10_000)),
                       ("thin.png", bomb(1, 400)), ("cut.jpg", SEEDS["photo.jpg"][:400]),
                       ("spec.yaml", b"zones: [{box: [.inf]}]"), ("date.yaml", b"scale_mm_per_px: 2026-13-45"),
                       ("scripted.jpg", SEEDS["photo.jpg"])):  # fmt: skip
        write_input(only_home_is_written / name, data)
    with Workspace.open() as workspace:
        assert enroll(workspace, "board", [Path(f"{i}.png") for i in range(3)]).n_in_bank == 3
    return only_home_is_written


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The installed entry point, in this process."""
    monkeypatch.setattr(sys, "argv", ["refdiff", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


BAD_PHOTOS = ["empty.png", "page.png", "bomb.png", "thin.png", "cut.jpg", "moving.gif", "moving.png", "moving.webp",
              "pages.tif", "deep.png", "float.tif", "figure.eps", "icon.ico", "missing.png", ".", "/dev/null"]  # fmt: skip
GOOD_PHOTOS = ["cmyk.jpg", "cmyk.tif", "rgba.png", "la.png", "transparent.png", "phone.jpg", "one.gif", "bit.png"]
CAPTURE = ["capture", "--part", "7", "--product", "board"]
COMMANDS: list[tuple[list[str], int]] = [
    (["inspect", "--part", "1", "--image", "cut.jpg", "--product", "board"], 65),
    (["inspect", "--part", "nobody"], 65),
    (["inspect", "--part", "", "--image", "good.png", "--product", "board"], 65),
    (["inspect", "--part", "a\nb"], 65),
    (["inspect", "--part", "\udcff", "--image", "good.png", "--product", "board"], 65),
    (["inspect", "--part", "1", "--image", "good.png", "--product", "../../x"], 65),
    (["inspect", "--part", "1", "--image", "good.png", "--product", "board'; DROP TABLE captures;--"], 65),
    (["inspect", "--part", "1", "--image", "good.png", "--product", "board", "--scale-mm-per-px", "1e999"], 64),
    (["enroll", "--product", "x" * 65, "good.png"], 65),
    (["enroll", "--product", "new", "page.png", "empty.png", "missing"], 65),
    (["enroll", "--product", "new", "--part-group", "\x1b[2J", "good.png"], 65),
    (["product", "set", "board", "--spec", "spec.yaml"], 65),
    (["product", "set", "board", "--spec", "date.yaml"], 65),
    (["product", "set", "board", "--spec", "photo.jpg"], 65),
    (["product", "set", "../x", "--spec", "."], 65),
    (["product", "show", "<script>"], 65),
    (["goldens", "retire", "../../x"], 65),
    (["goldens", "retire", "g-0123456789ab", "\udcff"], 65),
    (["inspections", "show", "\udcff../x"], 65),
    (["inspections", "list", "--offset", "9" * 30], 65),
    (["inspections", "list", "--part", "\x07"], 65),
    (["review", "../../x", "--accept", "--reason", "ok"], 65),
    (["ask", "\u202e"], 0),
    (["ask", "inspect part #../../etc/passwd"], 0),
    (["evaluate", "photo.jpg"], 65),
    (["-rf"], 64),
]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [*COMMANDS, *(([*CAPTURE, name], 65) for name in BAD_PHOTOS), *(([*CAPTURE, name], 0) for name in GOOD_PHOTOS)],
    ids=lambda v: " ".join(v).encode("unicode_escape").decode()[:70] if isinstance(v, list) else str(v),
)
def test_command_ends_with_its_exit_code_and_json_document(
    board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    ended = command(monkeypatch, *arguments, "--json")
    written = capsys.readouterr()
    document = json.loads(written.out)
    assert ended == code, written.err
    assert "Traceback" not in written.err
    assert not (board.parent / "home" / "logs").exists()
    if code:
        assert document["error"]["exit_code"] == code
        assert len(document["error"]["message"]) > 10


def test_markup_in_a_part_id_is_shown_as_text(
    board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = "<script>alert('4412')</script>"
    arguments = [
        "inspect",
        "--part",
        part,
        "--image",
        "scripted.jpg",
        "--product",
        "board",
        "--html",
        "page.html",
        "--json",
    ]
    assert command(monkeypatch, *arguments) == 2  # three goldens are too few for more than a review
    report = json.loads(capsys.readouterr().out)
    assert report["part_id"] == part
    page = (board / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    home = board.parent / "home"
    assert all(Path(p).is_relative_to(home) and Path(p).is_file() for p in report["artefacts"].values())
