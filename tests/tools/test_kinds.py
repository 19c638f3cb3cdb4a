"""Products of a kind: set with the first golden sample, refused where it does not fit, compared by its own method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import ImageError, InputError, SpecError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.model.synthesis.thermal import Assembly, centikelvin_tiff
from refdiff.tools.framing.photos import Query
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import is_due
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.against_golden import AgainstGolden
from refdiff.tools.inspection.calibration import calibrate, calibration_key
from refdiff.tools.inspection.detectable import check_enough_parts
from refdiff.tools.inspection.fineness import check_specification, product_fineness
from refdiff.tools.inspection.inspection import inspect_photo
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.kinds.conditions import parse_conditions
from refdiff.tools.workspace import Workspace

ASSEMBLY = Assembly(2, size=(120, 160))
RULES = {"thermal": {"gain": 0.01, "emissivity": 0.95}}


def rendered(seed: int, **how: float) -> bytes:
    return centikelvin_tiff(ASSEMBLY.render(np.random.default_rng(seed), **how).celsius)  # type: ignore[arg-type]


def photo() -> bytes:
    return encode_png(render("circuit", 1, 1, size=(96, 128), noise_seed=1).image)


def with_rules(workspace: Workspace, product: str = "assembly", **more: object) -> None:
    rules = {"thermal": RULES["thermal"] | more}
    workspace.stores.products.set_spec(product, parse_spec(rules).model_dump(mode="json"))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=tmp_path / "cache", working_px=96)
    with Workspace.open(memory=memory, model=model) as workspace:
        yield workspace


def enrolled(workspace: Workspace, n: int = 6) -> None:
    with_rules(workspace)
    result = enroll(workspace, "assembly", [Upload(f"{i}.tiff", rendered(i)) for i in range(n)], kind="thermal")
    assert len(result.added) == n, result.refused


def test_kind_is_set_by_the_first_golden_sample_and_audited(workspace: Workspace) -> None:
    enrolled(workspace, 2)
    product = workspace.stores.products.get("assembly")
    assert product is not None
    assert (product.kind, product.document["kind"], product.state["kind"]) == ("thermal", "thermal", "thermal")
    lo, hi = product.intensity_window or (0, 0)
    assert lo < 22 < 60 < hi, "in °C"
    assert enroll(workspace, "assembly", [Upload("3.tiff", rendered(3))]).n_in_bank == 3, "said once"
    with pytest.raises(InputError, match="is of kind 'thermal'"):
        enroll(workspace, "assembly", [Upload("p.png", photo())], kind="photo")


def test_photo_product_has_no_kind_in_its_record(workspace: Workspace) -> None:
    enroll(workspace, "board", [Upload("p.png", photo())])
    product = workspace.stores.products.get("board")
    assert product is not None
    assert product.kind == "photo"
    assert "kind" not in product.document
    assert "kind" not in product.state


def test_kind_that_is_not_supported_is_refused_and_makes_no_product(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="kind"):
        enroll(workspace, "x", [Upload("p.png", photo())], kind="sonar")
    assert workspace.stores.products.get("x") is None


def test_photo_among_thermal_files_and_the_reverse_are_refused(workspace: Workspace) -> None:
    enrolled(workspace, 2)
    refused = enroll(workspace, "assembly", [Upload("p.png", photo())]).refused
    assert "without temperatures" in refused[0].reason
    with pytest.raises(ImageError, match="without temperatures"):
        record_capture(workspace.stores, "1", "assembly", Upload("p.png", photo()), settings=workspace.model_settings)
    enroll(workspace, "board", [Upload("p.png", photo())])
    with pytest.raises(ImageError, match="intensity window"):
        record_capture(workspace.stores, "1", "board", Upload("t.tiff", rendered(1)), settings=workspace.model_settings)
    with pytest.raises(InputError, match="nothing is to be stated with a photo"):
        record_capture(
            workspace.stores, "1", "board", Upload("p.png", photo()), settings=workspace.model_settings,
            conditions={"emissivity": 0.9},
        )  # fmt: skip


def test_csv_files_in_a_folder_are_enrolled_for_a_thermal_product_alone(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    celsius = ASSEMBLY.render(np.random.default_rng(1)).celsius
    np.savetxt(folder / "1.csv", celsius, "%.2f", delimiter=";")
    workspace.stores.products.set_spec("assembly", {"thermal": {"gain": 1, "offset_c": 0}})
    assert [p.name for p in enroll(workspace, "board", [folder]).others] == ["1.csv"]
    result = enroll(workspace, "assembly", [folder], kind="thermal")
    (golden,) = result.added
    values = workspace.golden_reading(golden).values
    assert values is not None
    assert np.abs(values - celsius).max() < 0.006


def test_hot_spot_is_found_measured_and_described_and_a_good_part_is_not(workspace: Workspace) -> None:
    enrolled(workspace, 8)
    calibrate(workspace, "assembly")

    def inspected(part: str, data: bytes, **conditions: float):  # type: ignore[no-untyped-def]
        capture = record_capture(
            workspace.stores, part, "assembly", Upload("p.tiff", data), settings=workspace.model_settings,
            conditions=conditions,
        )  # fmt: skip
        return inspect_photo(workspace, capture)

    bad = inspected("bad", rendered(100, spot_k=12.0, spot_px=14.0, ambient_k=4.0))
    strongest = bad.regions[0]
    delta = strongest.described.quantities[0]
    assert strongest.described.called == "hot_spot"
    assert delta.name == "delta_k"
    assert delta.uncertainty is not None
    assert abs(delta.value - 12.0) <= 2 * delta.uncertainty
    assert bad.comparison.difference.score > 3 * inspected("good", rendered(101)).comparison.difference.score
    assert all(r.golden == AgainstGolden() for r in bad.regions), "no edges or outlines: they are of the warmth"
    assert any("removed from all differences" in note for note in bad.remarks.notes)
    assert [(c.name, c.value, c.source) for c in bad.remarks.conditions] == [("emissivity", 0.95, "product")]
    stated = inspected("stated", rendered(101), emissivity=0.7)
    assert [(c.value, c.source) for c in stated.remarks.conditions] == [(0.7, "capture")]
    assert any("0.7 here and 0.95" in note for note in stated.remarks.notes)
    hot = inspected("hot", rendered(102, ambient_k=25.0))
    assert any("max_ambient_k" in problem for problem in hot.problems)


def test_what_scores_depend_on_makes_a_calibration_stale_and_pictures_do_not(workspace: Workspace) -> None:
    enrolled(workspace, 2)
    before = calibration_key(workspace, "assembly", 4)
    with_rules(workspace, palette="grey", span_c=[0, 99])
    assert calibration_key(workspace, "assembly", 4) == before
    with_rules(workspace, remove_ambient=False)
    assert calibration_key(workspace, "assembly", 4) != before


def test_what_only_networks_do_is_refused_for_a_thermal_product(workspace: Workspace) -> None:
    enrolled(workspace, 2)
    assert not is_due(workspace, "assembly")
    assert product_fineness(workspace, "assembly") is None
    with pytest.raises(InputError, match="no network compares"):
        check_enough_parts(workspace, "assembly")


@pytest.mark.parametrize(
    ("product", "spec", "said"),
    [
        ("board", {"thermal": {}}, "one of photos"),
        ("board", {"limits": [{"max_delta_k": 4, "severity": "minor"}]}, "max_delta_k"),
        ("assembly", {"thermal": {"gain": 0.04}}, "cannot change"),
        ("assembly", {"thermal": {"gain": 0.01}, "smallest_defect_px": 9}, "rule for photos"),
    ],
)
def test_rules_that_do_not_fit_the_kind_are_refused(
    workspace: Workspace, product: str, spec: dict[str, object], said: str
) -> None:
    enrolled(workspace, 1)
    enroll(workspace, "board", [Upload("p.png", photo())])
    with pytest.raises(SpecError, match=said):
        check_specification(workspace, product, parse_spec(spec))
    check_specification(
        workspace, "assembly", parse_spec(RULES | {"limits": [{"max_delta_k": 4, "severity": "minor"}]})
    )


def test_limit_for_an_unknown_zone_is_refused() -> None:
    with pytest.raises(SpecError, match="no zone 'fuse'"):
        parse_spec({"limits": [{"zone": "fuse", "max_delta_k": 4, "severity": "minor"}]})


def test_specification_of_photos_is_written_as_before() -> None:
    plain = parse_spec({"limits": [{"severity": "minor"}]}).model_dump(mode="json")
    assert "thermal" not in plain
    assert set(plain["limits"][0]) == {
        "type", "max_length_mm", "max_width_mm", "max_length_px", "max_area_px", "severity", "reject",
    }  # fmt: skip


def test_conditions_are_read_from_text() -> None:
    assert parse_conditions(" emissivity = 0.9, distance_m=2 ") == {"emissivity": 0.9, "distance_m": 2.0}
    assert parse_conditions("") == {}
    for wrong in ("emissivity", "emissivity=", "=3", "emissivity=a", "emissivity=1,emissivity=1"):
        with pytest.raises(InputError, match="NAME=NUMBER"):
            parse_conditions(wrong)


def test_golden_sample_of_the_same_variant_is_retrieved_by_its_temperatures(workspace: Workspace) -> None:
    """Two variants, of which one has a component that gets 6 K warmer."""
    warmer = Assembly(2, size=(120, 160))
    warmer._components[0] = replace(warmer._components[0], rise_k=warmer._components[0].rise_k + 6)
    variants = (ASSEMBLY, warmer)

    def made(variant: int, seed: int) -> Upload:
        celsius = variants[variant].render(np.random.default_rng((variant, seed)), ambient_k=float(seed % 5)).celsius
        return Upload(f"{variant}", centikelvin_tiff(celsius))

    with_rules(workspace)
    goldens = [made(variant, seed) for seed in range(3) for variant in range(2)]
    assert len(enroll(workspace, "assembly", goldens, kind="thermal").added) == 6
    for variant, seed in ((0, 100), (1, 101), (0, 102), (1, 103)):
        capture = record_capture(
            workspace.stores, f"{seed}", "assembly", made(variant, seed), settings=workspace.model_settings
        )
        picture = workspace.image(capture.sha256, "assembly")
        query = Query(picture, capture.sha256, workspace.encoder.embed(picture))
        found = nearest_goldens(workspace, query, "assembly", 3)
        assert [hit.golden.filename for hit in found] == [f"{variant}"] * 3
