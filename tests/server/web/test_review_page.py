"""The review page in a real Chromium, over a real server."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.memory.audit_export import verify_export
from refdiff.memory.rows.calibrations import Calibration, Component
from refdiff.model.images import encode_png
from refdiff.model.synthesis.height import Stain, xyz_tiff
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.server.settings import ServerSettings
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.identity_provider import IdentityProvider
from refdiff.server.web.serve import access_to
from refdiff.server.web.sign_in import PeopleSignIn
from refdiff.tools.golden_samples import fit as fit_module
from tests.server.cloud_parts import BULGE, PART, enrol_scans, scanned

from .conftest import Running, start
from .provider import Provider

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make test-browser)")
pytestmark = pytest.mark.browser
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, server: Running) -> Iterator[Callable[..., Any]]:
    """Opens a page; afterwards: no error, nothing blocked by the policy, nothing asked of any other host."""
    problems: list[str] = []
    contexts = []

    def opener(path: str = "", url: str = "", watched: bool = True, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        if not url:
            context.add_cookies([server.cookie()])
        page = context.new_page()
        page.set_default_timeout(60_000)
        base = url or server.url
        if not watched:
            page.goto(f"{base}/{path}")
            return page
        page.on("pageerror", lambda e: problems.append(f"error: {e}"))
        page.on("dialog", lambda d: problems.append(f"dialog: {d.message}"))
        page.on("console", lambda m: problems.append(m.text) if _is_problem(m) else None)
        page.on("request", lambda r: None if r.url.startswith((base, "blob:")) else problems.append(f"asked {r.url}"))
        page.goto(f"{base}/{path}")
        page.wait_for_selector("h1, dialog[open]")
        return page

    yield opener
    hacked = [p.evaluate("window.hacked") for c in contexts for p in c.pages]
    for context in contexts:
        context.close()
    assert problems == []
    assert not any(hacked)


def _is_problem(message: Any) -> bool:
    # Chromium tells of every answer that is no success; those are asserted where they are meant
    return message.type == "error" and "the server responded with a status of" not in message.text


@pytest.fixture
def fail(server: Running, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A filed FAIL that nobody has decided about."""
    return server.inspected("bad.png", f"fail {request.node.name}"[:100])


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.textContent || document.activeElement.tagName"))


def test_inspection_can_be_judged_by_keyboard_alone(
    server: Running, open_page: Callable[..., Any], fail: dict[str, Any]
) -> None:
    page = open_page()
    page.wait_for_selector("table.list")
    page.keyboard.press("j")
    assert focused(page) == fail["part_id"]  # the newest comes first
    page.keyboard.press("Enter")
    page.wait_for_selector(".viewer[data-loaded]")
    assert page.locator("h1").inner_text() == f"Part {fail['part_id']}"
    assert page.locator(".head .verdict").inner_text().endswith("FAIL")
    page.keyboard.press("1")
    assert "current" in page.locator(".findings li").first.get_attribute("class")
    page.keyboard.press("0")
    page.keyboard.press("+")
    zoomed = "e => Number(getComputedStyle(e).getPropertyValue('--zoom'))"
    assert page.locator(".canvas").evaluate(zoomed) == 1.5
    page.keyboard.press("0")
    assert page.locator(".canvas").evaluate(zoomed) == 1
    before = page.locator("input[type=range]").first.input_value()
    page.keyboard.press("ArrowRight")
    assert int(page.locator("input[type=range]").first.input_value()) == int(before) + 5
    page.keyboard.press("r")
    assert page.locator(".query").evaluate("e => getComputedStyle(e).visibility") == "hidden"
    page.keyboard.press("Space")
    assert page.locator(".query").evaluate("e => getComputedStyle(e).visibility") == "visible"
    page.keyboard.press("m")
    assert page.locator(".heat").evaluate("e => getComputedStyle(e).opacity") == "0"
    page.keyboard.press("?")
    assert page.locator("dialog[open] h2").inner_text() == "Keyboard shortcuts"
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.keyboard.type("scratched, as reported: a j 1 ?")  # letters in a text field are no shortcuts
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".decided")
    assert "accepted by ann" in page.locator(".decided").inner_text()
    made = server.service.stores.dispositions.get(fail["inspection_id"])
    assert made is not None
    assert (made.by, made.judged, made.reason) == ("ann", "bad", "scratched, as reported: a j 1 ?")
    page.keyboard.press("u")
    page.wait_for_selector("table.list")


def test_finding_is_named_corrected_and_forgotten_beside_it(
    server: Running, open_page: Callable[..., Any], fail: dict[str, Any]
) -> None:
    page = open_page(f"#/inspections/{fail['inspection_id']}")
    item = page.locator(".findings li").first
    names = server.service.stores.defect_names
    for name in ("dust", "oil 'spot'"):
        item.locator(".naming input").fill(name)
        page.keyboard.press("Enter")
        page.wait_for_function("n => document.querySelector('.naming strong')?.textContent === n", arg=name)
    made = names.of(fail["inspection_id"])["f1"]
    assert (made.name, made.before, made.by) == ("oil 'spot'", "dust", "ann")
    item.locator(".naming input").fill("<b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#said.bad")
    page.locator("#said").get_by_text("letters, digits").wait_for()
    item.locator("button", has_text="Remove").click()
    page.wait_for_selector(".naming:not(:has(strong))")
    assert names.of(fail["inspection_id"]) == {}


def colours(png: bytes) -> tuple[int, int]:
    """How many px show a point, and how many a red one: extra material."""
    px = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    shown = np.abs(px - (0x20, 0x24, 0x2A)).max(2) > 40
    return int(shown.sum()), int((shown & (px[..., 0] - px[..., 1:].max(2) > 40)).sum())


def test_height_map_with_a_colour_photo_shows_both(server: Running, open_page: Callable[..., Any]) -> None:
    rules = {"depth": {"unit_mm": 1, "values": "distance", "colour": True}}
    assert server.client.put("/v1/products/coloured/spec", json=rules).status_code == 200
    files = [("images", (f"{i}.{end}", data)) for i in range(2) for end, data in painted(i).items()]
    answer = server.client.post("/v1/goldens", files=files, data={"product": "coloured", "kind": "depth"})
    assert len(answer.json()["added"]) == 2, answer.text
    part = painted(100, Stain(36.0, 17.0, 5.0))
    sent = {"image": ("bad.tiff", part["tiff"]), "colour": ("bad.png", part["png"])}
    data = {"part_id": "coloured-1", "product": "coloured"}
    answer = server.client.post("/v1/inspections?wait_s=60", files=sent, data=data)
    assert answer.status_code == 200, answer.text
    page = open_page(f"#/inspections/{answer.json()['inspection_id']}")
    page.wait_for_selector(".viewer[data-loaded]")
    page.wait_for_selector(".colours img:nth-child(1)[data-loaded]")
    page.wait_for_selector(".colours img:nth-child(2)[data-loaded]")
    for image in page.locator(".colours img").all():
        image.evaluate("img => img.decode()")
        assert image.evaluate("img => img.naturalHeight > img.naturalWidth / 2")
    assert "Found in" in page.locator(".findings").inner_text()


def painted(seed: int, stain: Stain | None = None) -> dict[str, bytes]:
    """A height map and its colour photo, by the ends of their names."""
    rng = np.random.default_rng((9, seed))
    made = PART.height_map(rng, size=(128, 128), mm_per_px=0.9)
    return {"tiff": xyz_tiff(made.mm, 0.9), "png": encode_png(PART.colour_photo(made, rng, stain))}


def test_cloud_of_an_inspection_is_shown_in_its_colours_and_turned_by_pointer_and_keys(
    server: Running, open_page: Callable[..., Any]
) -> None:
    pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
    enrol_scans(server.service, goldens=3)
    answer = server.client.post("/v1/inspections?wait_s=60", files={"image": ("bad.ply", scanned(100, BULGE))},
                                data={"part_id": "scan-1", "product": "scan"})  # fmt: skip
    assert answer.status_code == 200, answer.text
    page = open_page(f"#/inspections/{answer.json()['inspection_id']}")
    page.wait_for_selector(".viewer[data-loaded]")
    canvas = page.locator(".cloud canvas")
    assert not canvas.is_visible()  # nothing of 3D is loaded until it is asked for
    page.get_by_role("button", name="Turn the cloud").click()
    canvas.wait_for(state="visible")
    assert "red: extra material" in page.locator(".cloud [role=status]").inner_text()
    assert canvas.evaluate("c => c.getContext('webgl2') instanceof WebGL2RenderingContext")  # null of any other kind

    def seen() -> bytes:
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return bytes(canvas.screenshot())

    views = [seen()]
    shown, red = colours(views[0])
    assert shown > 20_000
    assert 0 < red < shown / 4  # the bulge, and not the part
    canvas.focus()
    page.keyboard.press("ArrowRight")
    views.append(seen())
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y + 40, steps=5)
    page.mouse.up()
    views.append(seen())
    page.mouse.wheel(0, -300)
    views.append(seen())
    assert len(set(views)) == 4
    assert colours(views[3])[0] > 1.1 * colours(views[2])[0]  # nearer
    assert f"#/inspections/{answer.json()['inspection_id']}" in page.url  # the keys were the cloud's


def test_override_with_consent_makes_the_photo_a_golden(server: Running, open_page: Callable[..., Any]) -> None:
    stain = DefectSpec("stain", size_px=30, where=(64, 48), contrast=1.0)
    photo = render("circuit", 1, 500, size=(96, 128), noise_seed=500, defects=[stain]).image  # of this test alone
    server.photos["dusty.png"] = encode_png(photo)
    filed = server.inspected("dusty.png", "dusty")
    page = open_page(f"#/inspections/{filed['inspection_id']}")
    consent = page.get_by_label("The photo may become a golden sample")
    page.get_by_label("Accept").check()
    assert not consent.is_visible()  # a defective part is no reference
    page.get_by_label("Override").check()
    consent.check()
    page.get_by_label("Reason", exact=True).fill("dust only")
    page.get_by_role("button", name="Decide").click()
    page.wait_for_selector(".decided")
    text = page.locator(".decision").inner_text()
    assert "overridden by ann" in text
    adoption = server.service.stores.adoptions.get(filed["inspection_id"])
    assert adoption is not None
    assert f"golden sample: {adoption.outcome} ({adoption.golden_id})" in text
    assert adoption.outcome.startswith("enrolled")


def test_second_decision_on_the_page_shows_the_first(
    server: Running, open_page: Callable[..., Any], fail: dict[str, Any]
) -> None:
    page = open_page(f"#/inspections/{fail['inspection_id']}")
    page.wait_for_selector(".decision form")
    server.service.people.dispose(fail["inspection_id"], "accept", "bob", "I was first")
    page.get_by_label("Override").check()
    page.get_by_label("Reason", exact=True).fill("me too")
    page.get_by_role("button", name="Decide").click()
    page.wait_for_selector(".decided")
    assert "accepted by bob" in page.locator(".decided").inner_text()
    page.locator("#said").get_by_text("the first decision stands").wait_for()  # said in the next frame


def test_markup_in_names_is_shown_as_text_on_the_page(server: Running, open_page: Callable[..., Any]) -> None:
    found = server.inspected("bad.png", EVIL)
    server.client.post("/v1/captures", files={"image": (EVIL, server.photos["good.png"])},
                       data={"part_id": EVIL, "product": "board"})  # fmt: skip
    server.service.people.dispose(found["inspection_id"], "accept", EVIL, EVIL)
    page = open_page()
    page.wait_for_selector("table.list")
    assert page.get_by_role("link", name=EVIL).count() == 1
    page.get_by_role("link", name=EVIL).click()
    page.wait_for_selector(".viewer[data-loaded]")
    assert EVIL in page.locator("blockquote").inner_text()
    assert page.locator("img[src=x], main script").count() == 0


def test_content_security_policy_blocks_injected_html_and_requests(open_page: Callable[..., Any]) -> None:
    """Should a script ever get markup or code in, the browser refuses to run it."""
    page = open_page(watched=False)
    page.wait_for_selector("table.list, .notice")
    assert page.evaluate("try { document.body.innerHTML = '<b>x</b>'; 'ran' } catch (e) { e.name }") == "TypeError"
    blocked = page.evaluate("""() => new Promise((done) => {
        addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));
        fetch('https://example.invalid/').catch(() => {});
        setTimeout(() => done('nothing'), 5000);
    })""")
    assert blocked == "connect-src"


def test_blind_check_page_does_not_show_the_verdict(
    server: Running, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service._inspector.settings, "blind_share", 1.0)
    line = server.key("inspector", "line 3")
    ids = [server.inspected(name, f"blind {name}", line)["inspection_id"] for name in ("good.png", "bad.png")]
    page = open_page("#/blind")
    for key in "yx":  # good, defective
        page.wait_for_selector("button.good:enabled")
        shown = page.locator("main").inner_html()
        assert not {"PASS", "FAIL", "REVIEW", "p-value"} & set(shown.replace("<", " ").replace(">", " ").split())
        part = page.locator(".blindbox h2").inner_text()
        page.keyboard.press(key)
        page.wait_for_selector(f".blindbox > .notice, .blindbox h2:not(:has-text('{part}'))")
    answers = [server.service.stores.blind_checks.get(i) for i in ids]
    assert [a.judged for a in answers if a] == ["good", "bad"]
    page.goto(f"{server.url}/#/audit")
    page.wait_for_selector("#h-rates")
    assert "too few" in page.locator("main").inner_text()


def test_blind_answer_counts_only_for_a_photo_that_is_shown(
    server: Running, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service._inspector.settings, "blind_share", 1.0)
    line = server.key("inspector", "line 3")
    names = ("first", "second", "broken")
    ids = [server.inspected("good.png", f"seen {name}", line)["inspection_id"] for name in names]
    page = open_page("#/blind")
    page.wait_for_selector("button.good:enabled")
    held: list[Any] = []
    page.route(f"**/{ids[1]}/photo", lambda route: held.append(route))
    page.route(f"**/{ids[2]}/photo", lambda route: route.fulfill(body=b"no picture", content_type="image/png"))

    def answers() -> list[str | None]:
        found = [server.service.stores.blind_checks.get(i) for i in ids]
        return [f.judged for f in found if f]

    page.keyboard.down("y")
    page.wait_for_selector(".blindbox h2:has-text('seen second')")
    page.keyboard.down("y")  # held: it repeats
    page.keyboard.up("y")
    page.keyboard.press("y")  # doubled
    assert page.locator("button.good, button.defective").evaluate_all("all => all.map(b => b.disabled)") == [True, True]
    assert answers() == ["good", None, None]
    page.keyboard.down("x")
    while not held:
        page.wait_for_timeout(20)
    held.pop().continue_()
    page.wait_for_selector("button.good:enabled")
    page.keyboard.down("x")  # held since before the photo was shown
    page.keyboard.up("x")
    page.wait_for_timeout(100)
    assert answers() == ["good", None, None]
    page.locator("button.good").dblclick()
    page.wait_for_selector(".blindbox .missing")
    assert "The photo of part seen broken cannot be shown" in page.locator(".missing").inner_text()
    page.keyboard.press("y")
    page.keyboard.press("n")
    page.wait_for_selector(".blindbox > .notice")
    assert answers() == ["good", "good", None]
    judged = server.client.post(f"/v1/blind-checks/{ids[2]}", json={"judged": "bad"})  # it would wait in other tests
    assert judged.status_code == 201, judged.text


def test_goldens_page_enrols_flags_and_retires(server: Running, open_page: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "new good.png").write_bytes(encode_png(render("circuit", 1, 900, size=(96, 128), noise_seed=900).image))
    page = open_page("#/goldens/board")
    page.wait_for_selector(".golden img[src]")
    page.get_by_label("Photos", exact=True).set_input_files([str(tmp_path / "new good.png"), __file__])
    page.get_by_role("button", name="Enrol").click()
    page.wait_for_selector("text=1 enrolled")
    assert "refused" in page.locator("form + [role=status]").inner_text()
    [golden] = [g for g in server.service.goldens("board") if g.filename == "new good.png"]
    card = page.locator(f"[id='{golden.golden_id}']")
    for action, status in (("Flag", "flagged"), ("Retire", "retired"), ("Activate", "active")):
        card.get_by_role("button", name=action).click()
        page.get_by_label("Note", exact=True).fill(f"{status} in a test")
        page.locator("dialog").get_by_role("button", name=action).click()
        page.wait_for_selector(f".golden.{status} >> text={status} in a test")
        assert server.service.workspace.bank.get(golden.golden_id).status == status
    server.service.set_golden_status(golden.golden_id, "retired", "test")


def test_network_of_a_product_is_fitted_shown_and_removed_on_the_page(
    server: Running, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, halfway = threading.Event(), threading.Event()

    def found(fit: Any, half: Any, *more: Any) -> tuple[int, int, int]:
        fit.progress("checking", 3, 12)
        halfway.set()
        go_on.wait(60)
        return 11, 15, 20

    monkeypatch.setattr(fit_module, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(fit_module._Fit, "found", found)
    page = open_page("#/goldens/board")
    section = page.locator("section[aria-labelledby=h-network]")
    section.get_by_role("button", name="Fit a network").click()
    section.get_by_role("progressbar").wait_for()
    halfway.wait(60)
    section.get_by_text("checking 3 of 12 (ann)").wait_for()
    assert section.get_by_role("progressbar").evaluate("e => e.position") == 0.25
    assert section.get_by_role("button").all_inner_texts() == ["Stop"]
    go_on.set()
    section.get_by_text("30 of 40 synthetic defects").wait_for()
    assert "since" in section.inner_text()
    go_on.clear()
    halfway.clear()
    section.get_by_role("button", name="Fit again").click()
    halfway.wait(60)
    section.get_by_role("button", name="Stop").click()
    page.locator("#said").get_by_text("It is being stopped").wait_for()  # otherwise the fit may end before
    go_on.set()
    section.get_by_text("none begins by itself").wait_for()
    assert "30 of 40" in section.inner_text()  # what is in use stays
    section.get_by_role("button", name="Remove").click()
    section.get_by_text("the shared network inspects").wait_for()
    assert server.service.workspace.fitted("board") is None
    server.client.post("/v1/products/board/calibration")


def test_counted_components_are_named_beside_the_golden_samples(server: Running, open_page: Callable[..., Any]) -> None:
    stores = server.service.stores
    stores.products.ensure("clips")
    component = Component(np.eye(3, dtype=np.float32), [1], 20.0, 6)
    stores.calibrations.save(Calibration("clips", "k", [0.1], 0.2, 1, 1, components=[component]))
    page = open_page("#/goldens/clips")
    page.get_by_text("component 1: 6").wait_for()
    field = page.get_by_label("Name of component 1")
    field.fill("clip")
    field.press("Enter")
    page.get_by_text("clip: 6", exact=True).wait_for()
    known = stores.products.get("clips")
    assert known is not None
    assert list(known.component_names) == ["clip"]
    page.locator(".naming").get_by_role("button", name="Remove").click()
    page.get_by_text("component 1: 6").wait_for()


def test_audit_page_downloads_and_checks_the_chain(
    server: Running, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    server.inspected("good.png", "for the audit")
    page = open_page("#/audit")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "audit.jsonl")
    assert verify_export(server.service.stores.audit, tmp_path / "audit.jsonl", against_store=True).problem is None
    page.get_by_role("button", name="Check the chain").click()
    assert "are as they were written" in page.locator(".notice.good").inner_text()


def test_page_asks_for_a_key_and_keeps_it_in_the_tab(
    server: Running, open_page: Callable[..., Any], fail: dict[str, Any]
) -> None:
    closed, thread, url = start(create_app(server.service, server.access, server.settings))
    try:
        page = open_page(url=url)
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] >> text=unknown, revoked or expired")
        page.get_by_label("Key", exact=True).fill(server.key("viewer", "Vic")["Authorization"].split()[1])
        page.keyboard.press("Enter")
        page.wait_for_selector("table.list")
        assert "Vic" in page.locator("#who").inner_text()
        page.goto(f"{url}/#/inspections/{fail['inspection_id']}")
        page.wait_for_selector(".viewer[data-loaded]")  # pictures come with the key, too
        assert page.locator(".missing").count() == 0
        assert "You may only look" in page.locator(".decision").inner_text()
        assert page.locator(".decision button").count() == 0
        assert page.context.cookies() == []
        page.reload()
        page.wait_for_selector(".viewer")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("dialog[open]")
        assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    finally:
        closed.should_exit = True
        thread.join(20)


def test_printed_link_signs_the_browser_in_once(server: Running, open_page: Callable[..., Any]) -> None:
    server.inspected("good.png", "signed in")
    access = access_to(server.keys, "127.0.0.1", server.settings)
    assert access.sign_in
    started, thread, url = start(create_app(server.service, access, server.settings))
    try:
        link = access.sign_in.link("").removeprefix("/")
        page = open_page(link, url=url)
        page.wait_for_selector("table.list")
        assert "ann" in page.locator("#who").inner_text()
        assert "login" not in page.url
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert page.evaluate("document.cookie + sessionStorage.length + localStorage.length") == "00"
        page.reload()
        page.wait_for_selector("table.list")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("dialog[open]")
        assert page.context.cookies() == []
        again = open_page(link, url=url)
        again.wait_for_selector("dialog[open] >> text=printed when it started")
        again.locator("#said").get_by_text("used already").wait_for()
    finally:
        started.should_exit = True
        thread.join(20)


def test_person_signs_in_at_the_provider_and_comes_back_to_the_same_place(
    server: Running, open_page: Callable[..., Any], fail: dict[str, Any]
) -> None:
    name = f"Eve {EVIL}"
    with Provider({"eve": {"name": name, "roles": ["refdiff-inspector"]}}).running() as provider:
        settings = ServerSettings(oidc_issuer=provider.issuer, oidc_client_id="r", oidc_client_secret="s")  # type: ignore[arg-type]
        people = PeopleSignIn(IdentityProvider(settings), server.service.stores.sign_ins, None, timedelta(hours=1))
        access = Access(server.keys, loopback=True, user="ann", people=people)
        started, thread, url = start(create_app(server.service, access, server.settings))
        try:
            page = open_page(f"#/inspections/{fail['inspection_id']}", url=url, watched=False)
            page.get_by_role("button", name="Sign in with your account").click()
            page.get_by_role("button", name="eve").click()  # the provider's page
            page.wait_for_selector(".viewer[data-loaded]")
            assert page.url.startswith(f"{url}/")
            assert f"Part {fail['part_id']}" in page.locator("h1").inner_text()
            assert page.locator("#who span").inner_text() == name[:64].strip()
            [cookie] = [c for c in page.context.cookies() if c["name"].startswith("refdiff")]
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            assert page.evaluate("document.cookie + sessionStorage.length + localStorage.length") == "00"
            page.keyboard.press("a")
            page.keyboard.type("seen")
            page.keyboard.press("Control+Enter")
            page.wait_for_selector(".decided")
            made = server.service.stores.dispositions.get(fail["inspection_id"])
            assert made is not None
            assert made.by == name[:64].strip()
            page.get_by_role("button", name="Sign out").click()
            page.wait_for_url(f"{provider.issuer}/oauth2/end_session?client_id=r")
            page.goto(url)
            page.wait_for_selector("dialog[open]")
        finally:
            started.should_exit = True
            thread.join(20)


def test_inspection_list_filters_and_leads_to_neighbours(server: Running, open_page: Callable[..., Any]) -> None:
    newest = server.inspected("bad.png", "n1"), server.inspected("good.png", "n2")
    page = open_page()
    page.get_by_label("Verdict").select_option("FAIL")
    page.wait_for_url("**/#/inspections?verdict=FAIL")
    page.wait_for_selector("table.list")
    assert all(t.endswith("FAIL") for t in page.locator("tbody .verdict").all_inner_texts())
    page.get_by_label("Part", exact=True).fill("n2")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing fits")
    page.get_by_label("Verdict").select_option("")
    page.wait_for_selector("tbody tr")
    assert page.locator("tbody tr").count() == 1
    page.get_by_label("From").fill("2999-01-01")
    page.wait_for_selector("text=Nothing fits")
    page.goto(f"{server.url}/#/inspections")
    page.wait_for_selector("tbody tr:nth-child(2)")
    page.locator("tbody a").first.click()
    page.wait_for_selector(".viewer")
    assert page.locator("h1").inner_text() == "Part n2"
    page.keyboard.press("j")
    page.wait_for_selector("h1:has-text('Part n1')")
    assert newest


def test_flicker_view_is_still_with_reduced_motion(open_page: Callable[..., Any], fail: dict[str, Any]) -> None:
    seen = {}
    for motion in ("no-preference", "reduce"):
        page = open_page(f"#/inspections/{fail['inspection_id']}", reduced_motion=motion)
        page.wait_for_selector(".viewer[data-loaded]")
        page.keyboard.press("f")
        page.wait_for_timeout(100)
        seen[motion] = page.evaluate("""() => new Promise((done) => {
            const image = document.querySelector('.query');
            let changes = 0;
            new MutationObserver(() => { changes += 1; }).observe(image, { attributes: true, attributeFilter: ['style'] });
            setTimeout(() => done(changes), 2500);
        })""")
    assert seen["reduce"] == 0
    assert 1 <= seen["no-preference"] <= 6  # slower than three flashes a second


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [820, 1280])
def test_pages_have_no_accessibility_violations(
    server: Running,
    open_page: Callable[..., Any],
    fail: dict[str, Any],
    scheme: str,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """axe-core: names, labels, roles, contrast; and nothing is wider than the screen, also with a long part id."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    monkeypatch.setattr(server.service._inspector.settings, "blind_share", 1.0)
    long_id = f"{width}-{scheme}-".ljust(60, "9")
    drawn = server.inspected("bad.png", long_id, server.key("inspector", "line 3"))["inspection_id"]
    for path in ("", f"#/inspections/{fail['inspection_id']}", "#/blind", "#/goldens/board", "#/audit"):
        page = open_page(path, color_scheme=scheme, bypass_csp=True)
        page.set_viewport_size({"width": width, "height": 1100})
        page.wait_for_load_state("networkidle")
        found = axe.run(page).response["violations"]
        told = [f"{v['id']}: {v['help']} {[n['target'] for n in v['nodes']][:3]}" for v in found]
        assert told == [], (path, json.dumps(told, indent=1))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert path != "#/blind" or long_id in page.locator("h2").inner_text()
        page.close()
    judged = server.client.post(f"/v1/blind-checks/{drawn}", json={"judged": "bad"})  # it would wait in other tests
    assert judged.status_code == 201, judged.text
