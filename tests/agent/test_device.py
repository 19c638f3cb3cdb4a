"""A device decides as the installation that wrote its export, without torch; and refuses what is not that export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from edge_parity import ABSENT, Parity, device_reports, installation_reports, on_device, opened, parity
from safetensors.numpy import load

from refdiff.agent.device import int8
from refdiff.agent.device.device import Device
from refdiff.agent.device.int8 import export_int8
from refdiff.agent.report.schema import DefectReport
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.sessions import GRAPH_FORMATS, GraphFormat
from refdiff.model.errors import DamagedError, InputError, RefDiffError, TamperedError, UnavailableError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, Pose, render
from refdiff.server.device.command import run
from refdiff.tools.exported.archive import Export
from refdiff.tools.exported.export import export_product
from refdiff.tools.exported.signing import ExportSettings, Keys
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import calibrate, measured_again
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

KEY = Keys(b"a key of sixteen letters")
SPEC = {
    "scale_mm_per_px": 0.1,
    "zones": [{"name": "corner", "kind": "ignore", "box": [0, 0, 40, 40]},
              {"name": "middle", "kind": "critical", "box": [130, 90, 190, 150]}],
    "limits": [{"type": "any", "max_length_mm": 2.0, "severity": "minor"},
               {"type": "any", "severity": "major", "reject": True}],
}  # fmt: skip


def _turned(instance: int, angle: float, *defects: DefectSpec, size: tuple[int, int] = (240, 320)) -> bytes:
    pose = Pose(angle_deg=angle)
    return encode_png(render("moulded", 7, instance, size=size, pose=pose, noise_sigma=1.5, noise_seed=instance,
                             defects=list(defects)).image)  # fmt: skip


@dataclass
class Made:
    """A product, its exports by format, photos of parts, and what the installation reports of them."""

    root: Path
    exports: dict[GraphFormat, Path]
    photos: list[Path]
    reports: list[DefectReport]


def _made(root: Path, photos: dict[str, bytes], goldens: list[bytes], spec: dict | None = None) -> Made:
    for folder, files in (("good", dict(enumerate(goldens))), ("photos", photos)):
        (root / folder).mkdir(parents=True)
        for name, data in files.items():
            (root / folder / f"{name}.png").write_bytes(data)
    paths = [root / "photos" / f"{name}.png" for name in photos]
    with opened(root) as workspace:
        if spec is not None:
            workspace.stores.products.set_spec("part", parse_spec(spec).model_dump(mode="json"), by="test")
        enroll(workspace, "part", [root / "good"])
        reports = installation_reports(workspace, "part", paths)
        exports: dict[GraphFormat, Path] = {}
        for graphs in GRAPH_FORMATS:
            exports[graphs] = root / f"{graphs}.refdiff"
            export_product(workspace, "part", exports[graphs], graphs=graphs, keys=KEY)
    return Made(root, exports, paths, reports)


@pytest.fixture(scope="module")
def number_format() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFDIFF_NUMBER_FORMAT", "float32")
        yield


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory, number_format: None) -> Made:
    """A moulded part that lies at any angle, with zones and limits; 22 golden samples."""
    defects = [DefectSpec("scratch", size_mm=4.0), DefectSpec("dent", size_mm=2.0), DefectSpec("missing_component")]
    photos = {f"good{i}": _turned(100 + i, 47.0 * i) for i in range(3)}
    photos |= {f"bad{i}": _turned(200 + i, 31.0 + 95.0 * i, d) for i, d in enumerate(defects)}
    photos["other"] = encode_png(render("label", 3, 1, size=(240, 320)).image)
    goldens = [_turned(i, 16.4 * i) for i in range(22)]
    return _made(tmp_path_factory.mktemp("turned"), photos, goldens, SPEC)


def test_modules_that_decide_load_without_what_a_device_lacks() -> None:
    code = f"import sys\nfor m in {ABSENT!r}: sys.modules[m] = None\n"
    code += "import refdiff.agent.device.device, refdiff.server.device.command\nprint('loaded')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "loaded\n", done.stderr


def _assert_same(found: Parity) -> None:
    assert (found.verdicts, found.reasons, found.findings, found.corner_px) == (0, 0, 0, 0), found
    assert found.p == 0
    assert found.score < 1e-3, found


@pytest.mark.parametrize("graphs", GRAPH_FORMATS)
def test_turned_parts_get_the_same_verdicts_boxes_and_p_values(turned: Made, graphs: GraphFormat) -> None:
    theirs = device_reports(turned.exports[graphs], turned.photos, "--threads", "1")
    found = parity(turned.reports, theirs)
    print(graphs, found)
    _assert_same(found)
    assert {r.verdict for r in theirs} >= {"PASS", "FAIL"}, "the photos are too alike to show anything"
    assert all(r.judge.via == "fallback" and r.software.weights == turned.reports[0].software.weights for r in theirs)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory, number_format: None) -> Made:
    """Photos that are compared in four tiles and as a whole; 4 golden samples, so nothing fails."""
    photos = {
        "good": _turned(300, 5.0, size=(720, 720)),
        "bad": _turned(301, -9.0, DefectSpec("scratch"), size=(720, 720)),
    }
    goldens = [_turned(i, 3.0 * i, size=(720, 720)) for i in range(4)]
    return _made(tmp_path_factory.mktemp("tiled"), photos, goldens)


@pytest.mark.parametrize("graphs", GRAPH_FORMATS)
def test_parts_compared_in_tiles_get_the_same_scores(tiled: Made, graphs: GraphFormat) -> None:
    _assert_same(parity(tiled.reports, device_reports(tiled.exports[graphs], tiled.photos, "--threads", "1")))
    with Export(tiled.exports[graphs]) as export:
        features = [name for name in export.manifest.parts if name.startswith("features/")]
    # each golden sample as it is, its tiles, and the whole in its frame; the anchor lies in its own as it is
    assert len(features) == 4 * (1 + 4 + 1) - 1


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, number_format: None) -> Made:
    """Solar cells of the demo; 22 golden samples."""
    demo = pytest.importorskip("refdiff.server.cli.demo")
    pytest.importorskip("elpv_dataset")
    goldens, parts = demo.choose(demo.read_cells())
    chosen = {i: c.path.read_bytes() for i, c in parts.items() if c.kind == "mono"}
    good = [c.path.read_bytes() for c in goldens["solar-cell-mono"][:22]]
    return _made(tmp_path_factory.mktemp("cells"), chosen, good)


@pytest.mark.parametrize("graphs", GRAPH_FORMATS)
def test_solar_cells_get_the_same_verdicts_boxes_and_p_values(cells: Made, graphs: GraphFormat) -> None:
    found = parity(cells.reports, device_reports(cells.exports[graphs], cells.photos, "--threads", "1"))
    print(graphs, found)
    _assert_same(found)


def test_report_differs_from_the_installations_only_in_what_no_tool_was_asked_for(turned: Made) -> None:
    [theirs] = device_reports(turned.exports["openvino"], turned.photos[3:4], "--threads", "1")
    ours = turned.reports[3].model_dump(mode="json")
    own = {"inspection_id", "created_at", "requested_by", "request", "evidence", "tool_trace", "timings_ms", "judge",
           "artefacts", "image_score", "findings"}  # fmt: skip
    device = theirs.model_dump(mode="json")
    with Export(turned.exports["openvino"], parts=False) as export:
        assert device["software"].pop("export") == export.digest
    assert device["software"].pop("number_format") == "float32"
    similar = [[r.pop("similarity") for r in report["references"]] for report in (device, ours)]
    assert similar[0] == pytest.approx(similar[1], abs=2e-6)  # rounded to six places, and another program multiplies
    assert {k: v for k, v in device.items() if k not in own} == {k: v for k, v in ours.items() if k not in own}
    cited = {"evidence", "confidence", "reasoning", "expected", "moved"}
    for one, other in zip(device["findings"], ours["findings"], strict=True):
        assert {k: v for k, v in one.items() if k not in cited} == {k: v for k, v in other.items() if k not in cited}


def test_python_call_inspects_files_bytes_and_arrays_alike(turned: Made) -> None:
    photo = turned.photos[3]
    image = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    with Device.open(turned.exports["openvino"], KEY) as device:
        reports = [device.inspect(p, "4412") for p in (photo, photo.read_bytes(), np.asarray(image, np.uint8))]
    assert len({(r.verdict, r.image_score, r.verdict_reason) for r in reports}) == 1
    assert reports[0].part_id == "4412"


# ---- what is not the export ----


def _copy(made: Made, name: str) -> Path:
    return Path(shutil.copy(made.exports["openvino"], made.root / name))


def _rewritten(path: Path, part: str, change: bytes) -> Path:
    """The export with another content of one member, its zip checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    members[part] = change
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def _cut_off(made: Made) -> Path:
    path = _copy(made, "cut.refdiff")
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _changed_byte(made: Made) -> Path:
    path = _copy(made, "changed.refdiff")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return path


def _changed_part(made: Made) -> Path:
    path = _copy(made, "part.refdiff")
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read("product.json"))
    content["calibration"]["scores"] = [s + 1 for s in content["calibration"]["scores"]]
    return _rewritten(path, "product.json", json.dumps(content).encode())


def _other_format(made: Made) -> Path:
    path = _copy(made, "format.refdiff")
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return _rewritten(path, "manifest.json", json.dumps(manifest | {"format": 99}).encode())


def _forged(made: Made) -> Path:
    path = _copy(made, "forged.refdiff")
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return _rewritten(path, "manifest.json", json.dumps(manifest | {"created_by": "somebody"}).encode())


def _no_zip(made: Made) -> Path:
    path = made.root / "text.refdiff"
    path.write_text("not a zip")
    return path


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (_cut_off, DamagedError, "cut off"),
        (_changed_byte, DamagedError, "(not what was exported|damaged)"),
        (_changed_part, DamagedError, "product.json is not what was exported"),
        (_other_format, InputError, "format 99"),
        (_forged, TamperedError, "not signed by the key"),
        (_no_zip, DamagedError, "no export"),
        (lambda made: made.root / "none.refdiff", InputError, "no such file"),
    ],
)
def test_what_is_not_as_exported_is_refused(turned: Made, spoil, error: type[RefDiffError], says: str) -> None:
    with pytest.raises(error, match=says):
        Device.open(spoil(turned), KEY)


def test_wrong_key_and_missing_signature_are_refused(turned: Made) -> None:
    with pytest.raises(TamperedError, match="not signed by the key"):
        Device.open(turned.exports["onnx"], Keys(b"another key of letters"))
    with opened(turned.root) as workspace:
        export_product(workspace, "part", turned.root / "plain.refdiff")
    with pytest.raises(TamperedError, match="is not signed"):
        Device.open(turned.root / "plain.refdiff", KEY)
    Device.open(turned.root / "plain.refdiff").workspace.close()


def _openssl(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key, made as the page says."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def test_ed25519_signature_is_checked_by_the_public_key_alone(
    turned: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = _openssl(tmp_path, "one")
    _, other = _openssl(tmp_path, "other")
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", rsa], check=True, capture_output=True)
    path = Path(shutil.copy(turned.exports["openvino"], tmp_path / "ed.refdiff"))
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read("manifest.json")
    signer = Keys(b"a secret beside it, unused", private.read_bytes())
    signature = signer.sign(manifest)
    assert signature.algorithm == "ed25519"
    _rewritten(path, "signature.json", signature.model_dump_json().encode())
    for keys in (Keys(public=public.read_bytes()), Keys(private=private.read_bytes()), signer):
        with Export(path, keys, parts=False) as export:
            assert export.signed
    with Export(path, parts=False) as export:
        assert (export.signed, export.is_signed) == (False, True)
    wrong = {
        "not signed by the key in REFDIFF_EXPORT_PUBLIC_KEY": Keys(public=other.read_bytes()),
        "which REFDIFF_EXPORT_KEY cannot check": KEY,
    }
    for says, keys in wrong.items():
        with pytest.raises(TamperedError, match=says):
            Export(path, keys)
    with pytest.raises(TamperedError, match="set REFDIFF_EXPORT_KEY"):
        Export(turned.exports["openvino"], Keys(public=public.read_bytes()))
    forged = json.dumps(json.loads(manifest) | {"created_by": "somebody"}).encode()
    with pytest.raises(TamperedError, match="not signed by"):
        Export(_rewritten(path, "manifest.json", forged), Keys(public=public.read_bytes()))
    for pem in (public, rsa, tmp_path / "one.pub.pem"):
        with pytest.raises(InputError, match="REFDIFF_EXPORT_PRIVATE_KEY"):
            Keys(private=pem.read_bytes()).sign(manifest)
    monkeypatch.setenv("REFDIFF_EXPORT_PUBLIC_KEY", str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match="cannot be read"):
        _ = ExportSettings().keys
    monkeypatch.setenv("REFDIFF_EXPORT_PUBLIC_KEY", str(public))
    assert ExportSettings().keys == Keys(public=public.read_bytes())


def test_ed25519_key_without_its_package_says_what_to_install(turned: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography.hazmat.primitives.serialization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"refdiff-edge\[ed25519\]"):
        Keys(private=b"any").sign(b"manifest")
    with pytest.raises(UnavailableError, match=r"refdiff-edge\[ed25519\]"):
        Keys(public=b"any").ready()


def test_export_of_a_bfloat16_installation_is_calibrated_as_devices_compute(
    turned: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", "bfloat16")
    root = Path(shutil.copytree(turned.root / "home", turned.root / "rounded" / "home")).parent
    settings = ModelSettings(cache=root / "cache", number_format="bfloat16", engine="torch", threads=1)
    path = root / "rounded.refdiff"
    with Workspace.open(MemorySettings.of_folder(root / "home"), settings, ToolsSettings()) as workspace:
        rounded = calibrate(workspace, "part")
        made = export_product(workspace, "part", path)
        assert workspace.stores.calibrations.latest("part").scores == rounded.scores, "the installation keeps its own"
        ours = installation_reports(workspace, "part", turned.photos)
    assert (made.manifest.number_format, made.manifest.installation_number_format) == ("float32", "bfloat16")
    with Export(turned.exports["openvino"]) as exact, Export(path) as export:
        one, other = (e.json("product.json")["calibration"] for e in (exact, export))
    assert other["scores"] == pytest.approx(one["scores"], abs=1e-6), (
        "as an installation that computes in float32 measures"
    )
    theirs = dict(zip(other["golden_ids"], other["scores"], strict=True))
    apart = max(abs(s - theirs[i]) for i, s in zip(rounded.golden_ids, rounded.scores, strict=True))
    assert made.rounding == apart > 1e-5, "bfloat16 does round"
    found = device_reports(path, turned.photos, "--threads", "1")
    _assert_same(parity(turned.reports, found))
    assert [r.verdict for r in found] == [r.verdict for r in ours]


@pytest.mark.long
@pytest.mark.parametrize("graphs", ["openvino", "onnx"])
def test_export_in_int8_is_calibrated_by_its_networks_and_finds_as_much(turned: Made, graphs: GraphFormat) -> None:
    path = turned.root / f"{graphs}-int8.refdiff"
    with opened(turned.root) as workspace:
        made, beside = export_int8(workspace, "part", path, graphs=graphs, keys=KEY)
    assert (made.manifest.number_format, made.manifest.graphs) == ("int8", graphs)
    assert beside.good == 22
    assert beside.interval[0] <= beside.gained <= beside.interval[1]
    assert beside.mb[1] < 0.5 * beside.mb[0]
    with Export(turned.exports[graphs]) as exact, Export(path, KEY) as export:
        assert export.manifest.parts.keys() == exact.manifest.parts.keys()
        one, other = (e.json("product.json")["calibration"] for e in (exact, export))
        assert other["key"] == one["key"]
        assert np.abs(np.subtract(other["scores"], one["scores"])).max() > 1e-4 < made.rounding
    with Device.open(path, KEY, threads=1) as device:
        again = measured_again(device.workspace, "part", device.workspace.content.calibration)
        kept = device.workspace.content.calibration
        assert again.scores == pytest.approx(kept.scores, abs=1e-6), "the device computes what it is calibrated by"
    reports = device_reports(path, turned.photos, "--threads", "1")
    assert {r.software.number_format for r in reports} == {"int8"}
    failed = [p for p, r in zip(turned.photos, turned.reports, strict=True) if r.verdict == "FAIL"]
    found = [r.part_id for r in reports if r.verdict != "PASS"]
    assert failed
    assert {p.stem for p in failed} <= {*found}
    assert ", int8, " in on_device("verify", path).stdout


@pytest.mark.parametrize(
    ("interval", "escapes", "newly_missed", "refused"),
    [((-0.09, -0.01), (5, 5), 0, True), ((-0.04, 0.01), (5, 5), 0, False),
     ((-0.04, 0.01), (5, 15), 10, True), ((-0.04, 0.01), (5, 6), 2, False)],
)  # fmt: skip
def test_int8_is_refused_where_chance_does_not_explain_what_it_loses(
    interval: tuple[float, float], escapes: tuple[int, int], newly_missed: int, refused: bool
) -> None:
    said = nullcontext() if not refused else pytest.raises(InputError, match="finds fewer defects than float32: of 40")
    with said:
        int8._check("part", _beside(interval, escapes, newly_missed))


def _beside(interval: tuple[float, float], escapes: tuple[int, int], newly_missed: int) -> int8.Beside:
    return int8.Beside(
        good=22, defects=40, auroc=(0.95, 0.93), gained=-0.02, interval=interval, attained=0.05, escapes=escapes,
        newly_missed=newly_missed, ms=(20.0, 10.0), mb=(15.0, 5.0),
    )  # fmt: skip


def test_int8_that_finds_less_is_not_written(
    tmp_path: Path, number_format: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good").mkdir()
    for i in range(4):
        (tmp_path / "good" / f"{i}.png").write_bytes(_turned(i, 3.0 * i, size=(96, 128)))
    monkeypatch.setattr(int8, "_beside", lambda *_: _beside((-0.09, -0.01), (5, 5), 0))
    with opened(tmp_path) as workspace:
        enroll(workspace, "part", [tmp_path / "good"])
        calibrate(workspace, "part")
        with pytest.raises(InputError, match="'part' is not exported in int8"):
            export_int8(workspace, "part", tmp_path / "worse.refdiff")
    assert not list(tmp_path.glob("*.refdiff"))


def test_export_of_a_version_that_scores_otherwise_is_refused(turned: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.model.difference.patch_distance.VERSION", "fused-next")
    with pytest.raises(InputError, match="scores are computed in another way"):
        Device.open(turned.exports["openvino"])


def test_product_without_calibration_or_of_heat_is_not_exported(tmp_path: Path, number_format: None) -> None:
    (tmp_path / "one.png").write_bytes(_turned(1, 0))
    with opened(tmp_path) as workspace:
        enroll(workspace, "single", [tmp_path / "one.png"])
        with pytest.raises(InputError, match="no calibration"):
            export_product(workspace, "single", tmp_path / "single.refdiff")
        for kind in ("thermal", "depth", "cloud"):
            workspace.stores.products.set_kind(kind, kind)
            with pytest.raises(InputError, match="no network"):
                export_product(workspace, kind, tmp_path / f"{kind}.refdiff")
        with pytest.raises(InputError, match="no product"):
            export_product(workspace, "nothing", tmp_path / "nothing.refdiff")
    assert not list(tmp_path.glob("*.refdiff"))


def test_command_says_what_is_wrong_with_exit_codes(turned: Made, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    export = turned.exports["openvino"]
    assert "signature not checked (no key is set)\n" in on_device("verify", export).stdout
    wrong = {
        ("verify", _cut_off(turned)): (65, "cut off"),
        ("inspect", export, tmp_path / "bad.png"): (65, "not an image"),
        ("inspect", export, tmp_path / "none.png"): (65, "cannot be read"),
        ("inspect", export): (64, "PHOTO"),
        ("nothing",): (64, "nothing"),
        ("verify", export, "--threads", "1"): (64, "--threads"),
    }
    for arguments, (code, says) in wrong.items():
        done = on_device(*arguments, check=False)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    for verdict, code in (("PASS", 0), ("FAIL", 1)):
        photo = next(p for p, r in zip(turned.photos, turned.reports, strict=True) if r.verdict == verdict)
        assert on_device("inspect", export, photo, check=False).returncode == code


_SHORT_OF_MEMORY = """
import resource, sys
import refdiff.agent.device.device, {package}
from refdiff.server.device.command import run
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ({more} << 20), -1))
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does")
@pytest.mark.parametrize(
    ("graphs", "package", "more"),
    # while the file is read, a network is opened, a photo is inspected: OpenVINO says nothing of the last one
    [("openvino", "openvino", 10), ("openvino", "openvino", 150), ("openvino", "openvino", 420),
     ("onnx", "onnxruntime", 10), ("onnx", "onnxruntime", 80)],
)  # fmt: skip
def test_too_little_memory_is_unavailable_and_no_damaged_export(
    turned: Made, graphs: GraphFormat, package: str, more: int
) -> None:
    command = [sys.executable, "-c", _SHORT_OF_MEMORY.format(package=package, more=more)]
    command += ["inspect", str(turned.exports[graphs]), str(turned.photos[0]), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 69, done.stdout + done.stderr
    assert "not enough memory; close other programs or give it more\n" in done.stderr


@pytest.mark.parametrize(
    ("option", "values", "right"),
    [("--threads", ("0", "-1", "1025", "two"), "1"), ("--updates-every", ("nan", "inf", "-1", "often"), "0"),
     ("--drain-s", ("nan", "inf", "-1"), "0"), ("--scale-mm-per-px", ("nan", "inf", "0", "-1"), "0.1")],
)  # fmt: skip
def test_numbers_out_of_range_are_a_mistake_in_the_command(
    option: str, values: tuple[str, ...], right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "line").mkdir()
    watch = ["watch", str(tmp_path / "none.refdiff"), str(tmp_path / "line"), "--out", str(tmp_path / "out")]
    for value in values:
        assert run([*watch, f"{option}={value}"]) == 64
        assert f"argument {option}: " in capsys.readouterr().err
    assert run([*watch, f"{option}={right}"]) == 65
    assert "no such file" in capsys.readouterr().err


def test_export_holds_nothing_unlisted_and_no_format_that_executes(turned: Made) -> None:
    with Export(turned.exports["onnx"], KEY) as export, zipfile.ZipFile(export.path) as archive:
        names = set(archive.namelist())
        assert names == {*export.manifest.parts, "manifest.json", "signature.json"}
        assert {Path(n).suffix for n in names} == {"", ".json", ".safetensors", ".onnx"}
        read = export.arrays("vectors.safetensors")
        right = load(archive.read("vectors.safetensors"))
        assert all(np.array_equal(read[name], value) for name, value in right.items())
        assert read.keys() == right.keys()


def test_a_key_that_is_too_short_is_told_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_EXPORT_KEY", "s3cret")
    with pytest.raises(InputError, match="too short") as told:
        ExportSettings.read()
    assert "s3cret" not in str(told.value)
    assert told.value.__suppress_context__


def test_unsigned_export_is_used_with_a_word_about_it(turned: Made) -> None:
    assert "is not checked" in on_device("inspect", turned.exports["openvino"], turned.photos[0]).stderr
