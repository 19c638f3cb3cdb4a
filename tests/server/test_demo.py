"""The demo: real images from a fixed disjoint selection, its own folder, an index with a link to every report."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from refdiff.model.errors import InputError
from refdiff.server.cli import demo, demo_cloud, demo_thermal, main
from refdiff.server.settings import load_settings


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    pytest.importorskip("elpv_dataset", reason="elpv-dataset is not installed: pip install 'refdiff[demo]'")


def test_demo_goldens_and_parts_are_fixed_and_disjoint() -> None:
    cells = demo.read_cells()
    goldens, parts = demo.choose(cells)
    assert {p: len(g) for p, g in goldens.items()} == {"solar-cell-mono": 30, "solar-cell-poly": 30}
    assert not any(c.defective for chosen in goldens.values() for c in chosen)
    enrolled = {c.path for chosen in goldens.values() for c in chosen}
    assert not enrolled & {c.path for c in parts.values()}
    assert len({c.path for c in parts.values()}) == 6
    assert [(i, c.kind, c.defective) for i, c in parts.items()] == [
        ("4412", "mono", True), ("4413", "mono", False), ("4414", "mono", True),
        ("4415", "poly", False), ("4416", "poly", True), ("4417", "poly", True),
    ]  # fmt: skip
    for product, chosen in goldens.items():  # from the beginning to the end of the data set
        good = [c for c in cells if c.product == product and not c.defective]
        places = [good.index(c) for c in chosen]
        assert max(b - a for a, b in itertools.pairwise(places)) <= 2 * -(-len(good) // len(chosen))
    assert demo.choose(cells) == (goldens, parts)


def test_demo_writes_reports_and_an_index_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "GOLDENS_PER_PRODUCT", 3)
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    # nothing of the user's is touched: neither a server nor a checkpoint database that do not answer are asked
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("REFDIFF_CHECKPOINT_URL", "postgresql://127.0.0.1:1/x")
    monkeypatch.setenv("REFDIFF_DATABASE_URL", "postgresql://127.0.0.1:1/x")
    out = tmp_path / "out"
    for _ in range(2):  # the second time afresh
        assert main.run(["demo", "--out", str(out), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "home").exists()
    made = {p.name for p in (tmp_path / "cache").iterdir()} if (tmp_path / "cache").exists() else set()
    assert made <= {"features", "pictures", "thumbnails", "number-format.json"}  # what can be made again, nothing else
    assert document["goldens"] == {"solar-cell-mono": 3, "solar-cell-poly": 3}
    assert [p["part_id"] for p in document["parts"]] == [str(n) for n in range(4412, 4418)]
    assert {p["verdict"] for p in document["parts"]} <= {"PASS", "REVIEW"}  # three samples cannot fail a part
    index = Path(document["index"]).read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', index)
    assert len(links) == 6
    assert all((out / link).is_file() for link in links)
    assert index.count("data:image/") == 6
    assert "http" not in index.replace('http-equiv="Content-Security-Policy"', "")
    assert not re.search(r"\d mm", index)  # no scale is known
    for part in document["parts"]:
        assert part["truth"] in index


def test_thermal_demo_files_reports_in_kelvin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_thermal, "GOLDENS", 3)
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    monkeypatch.setenv("REFDIFF_LLM", "off")
    assert main.run(["demo", "--thermal", "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["goldens"] == {"assembly": 3}
    assert [p["truth"] for p in document["parts"]].count("good") == 2
    index = Path(document["index"]).read_text(encoding="utf-8")
    for part in document["parts"]:
        assert part["truth"] in index
        page = Path(part["page"]).read_text(encoding="utf-8")
        assert "this shift is removed from all differences" in page
    scores = {p["part_id"]: p["image_score"] for p in document["parts"]}
    assert scores["4417"] > 10 > scores["4413"], "in kelvin: 18 K against none"


def test_cloud_demo_files_reports_in_mm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
    monkeypatch.setattr(demo_cloud, "GOLDENS", 3)
    monkeypatch.setattr(demo_cloud, "_POINTS", 8000)
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    monkeypatch.setenv("REFDIFF_LLM", "off")
    assert main.run(["demo", "--cloud", "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["goldens"] == {"bracket": 3}
    truths = {p["part_id"]: p["truth"] for p in document["parts"]}
    scores = {p["part_id"]: p["image_score"] for p in document["parts"]}
    good = max(score for part, score in scores.items() if truths[part] == "good")
    assert all(score > good for part, score in scores.items() if truths[part].startswith(("hole", "missing")))


def test_demo_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="did not make"):
        demo.run_demo(tmp_path, load_settings())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_demo_without_images_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.model.training.sources.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'refdiff\[demo\]'"):
        demo.read_cells()


@pytest.mark.parametrize(
    ("verdict", "defective", "words"),
    [
        ("FAIL", True, "right"),
        ("PASS", False, "right"),
        ("PASS", True, "wrong: missed"),
        ("FAIL", False, "wrong: false reject"),
        ("REVIEW", True, "asks a person"),
    ],
)
def test_demo_calls_wrong_verdicts_wrong(verdict: str, defective: bool, words: str) -> None:
    from types import SimpleNamespace

    cell = demo.Cell(Path("x.png"), "mono", float(defective))
    item = demo.InspectedCell("1", cell, SimpleNamespace(verdict=verdict), "", 0.0)  # type: ignore[arg-type]
    assert demo.agreement(item) == words
