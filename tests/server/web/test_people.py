"""Blind checks, rates, learning and the audit trail over HTTP."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from refdiff.memory.audit_export import verify_export

from .conftest import Running


def test_me_returns_name_and_role_of_the_caller(server: Running) -> None:
    assert server.client.get("/v1/me").json() == {"name": "ann", "role": "admin", "needs_key": True}
    viewer = server.key("viewer", "line 4")
    assert server.client.get("/v1/me", headers=viewer).json() == {"name": "line 4", "role": "viewer", "needs_key": True}


def test_blind_checks_hide_the_verdict_and_count_in_the_rates(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service._inspector.settings, "blind_share", 1.0)
    line = server.key("inspector", "line 3")
    good, bad = server.inspected("good.png", "blind-1", line), server.inspected("bad.png", "blind-2", line)
    queue = server.client.get("/v1/blind-checks", params={"product": "board"}).json()
    assert [i["part_id"] for i in queue["items"]] == ["blind-1", "blind-2"]
    assert queue["share"] == 1.0
    assert "verdict" not in json.dumps(queue)
    photo = server.client.get(f"/v1/blind-checks/{bad['inspection_id']}/photo")
    assert photo.headers["content-type"] in ("image/png", "image/jpeg")
    path = f"/v1/blind-checks/{good['inspection_id']}"
    assert server.client.post(path, json={"judged": "good"}, headers=server.key("viewer")).status_code == 403
    seen = server.client.post(path, json={"judged": "good"}, headers=line)
    assert (seen.status_code, "asked for" in seen.json()["error"]["message"]) == (422, True)
    answer = server.client.post(path, json={"judged": "good", "note": "fine"}, headers=server.key("inspector", "bob"))
    assert (answer.status_code, answer.json()["judged_by"]) == (201, "bob")
    again = server.client.post(path, json={"judged": "bad"})
    assert again.status_code == 409
    assert again.json()["error"]["earlier"]["judged_by"] == "bob"
    server.client.post(
        f"/v1/inspections/{bad['inspection_id']}/disposition", json={"decision": "accept", "reason": "x"}
    )
    path = f"/v1/blind-checks/{bad['inspection_id']}"
    assert server.client.post(path, json={"judged": "bad"}).status_code == 422  # ann has decided about its verdict
    assert server.client.post(path, json={"judged": "bad"}, headers=server.key("inspector", "eve")).status_code == 201
    rates = server.client.get("/v1/rates", params={"product": "board"}).json()
    assert (rates["overall"]["n_good"], rates["overall"]["n_bad"], rates["n_waiting"]) == (1, 1, 0)
    assert rates["overall"]["escape"]["events"] == 0
    assert server.client.get("/v1/rates", params={"since": "soon"}).status_code == 422
    assert server.client.post("/v1/blind-checks/none", json={"judged": "bad"}).status_code == 404


def test_overridden_part_with_consent_becomes_a_reference(server: Running) -> None:
    found = server.inspected("bad.png", "rescued")
    path = f"/v1/inspections/{found['inspection_id']}"
    wrong = {"decision": "accept", "reason": "scratched", "as_reference": True}
    assert server.client.post(f"{path}/disposition", json=wrong).status_code == 422
    body = {"decision": "override", "reason": "only dust", "as_reference": True}
    made = server.client.post(f"{path}/disposition", json=body)
    assert made.status_code == 201
    assert made.json()["judged"] == "good"
    learned = made.json()["learned"]
    assert learned["golden_id"]
    assert server.client.get(path).json()["learned"] == learned
    golden = server.client.get(f"/v1/goldens/{learned['golden_id']}").json()
    assert (golden["source"], golden["enrolled_by"]) == ("disposition", "ann")
    server.client.patch(f"/v1/goldens/{learned['golden_id']}", json={"status": "retired"})


def test_inspectors_reference_waits_for_an_admin_or_a_second_person(server: Running) -> None:
    """One inspector alone must not make a defect the measure of what comes next."""
    carol, dave = server.key("inspector", "carol"), server.key("inspector", "dave")
    n = len(server.service.goldens("board", "active"))
    other = io.BytesIO()  # of the same part, but not enrolled before
    Image.open(io.BytesIO(server.photos["bad.png"])).save(other, "JPEG", quality=95)
    server.photos["dust.jpg"] = other.getvalue()

    def overridden(part: str, headers: dict[str, str]) -> str:
        found = server.inspected("dust.jpg", part, headers)
        body = {"decision": "override", "reason": "only dust", "as_reference": True}
        made = server.client.post(f"/v1/inspections/{found['inspection_id']}/disposition", json=body, headers=headers)
        assert made.status_code == 201
        assert (made.json()["learned"], made.json()["waits_for_approval"]) == (None, True)
        return str(found["inspection_id"])

    def decide(inspection_id: str, decision: str, headers: dict[str, str] | None = None) -> Any:
        return server.client.post(f"/v1/references/{inspection_id}", json={"decision": decision}, headers=headers)

    first = overridden("ref-1", carol)
    assert len(server.service.goldens("board", "active")) == n
    assert server.inspected("dust.jpg", "ref-2")["report"]["verdict"] == "FAIL"
    waiting = server.client.get("/v1/references", params={"inspection_id": first}).json()["items"]
    assert [(w["part_id"], w["by"], w["reason"]) for w in waiting] == [("ref-1", "carol", "only dust")]
    assert decide(first, "approve", carol).status_code == 422
    assert decide(first, "approve", server.key("viewer")).status_code == 403
    assert decide("insp-none", "approve").status_code == 404
    approved = decide(first, "approve", dave)
    assert approved.status_code == 201, approved.text
    golden = approved.json()["learned"]["golden_id"]
    assert golden
    assert decide(first, "refuse").status_code == 409
    [key] = [k.key_id for k in server.keys.list() if k.name == "dave"]
    [record] = [r for r in server.service.stores.audit.of(first) if r.kind == "approval"]
    assert (record.by, record.facts["by_key"]) == ("dave", key)
    assert {r.facts["by_key"] for r in server.service.stores.audit.of(first) if r.by == "carol"} != {key}
    server.client.patch(f"/v1/goldens/{golden}", json={"status": "retired"})
    second = overridden("ref-3", dave)
    adoptions = server.service.stores.adoptions
    with server.service._enrolling:  # so that it waits
        adoptions.decide(second, True, "eve", admin=False)
        assert decide(second, "refuse").status_code == 409
        for _ in range(2):
            adoptions.hang(second, "it hung")
    [hung] = server.client.get("/v1/references").json()["items"]
    assert (hung["part_id"], hung["hung"], waiting[0]["hung"]) == ("ref-3", True, False)
    assert decide(second, "approve", dave).status_code == 422
    refused = decide(second, "refuse").json()
    assert (refused["approved"], refused["learned"]["outcome"]) == (False, "refused by ann")
    assert server.client.get("/v1/references").json()["items"] == []
    assert server.client.get("/v1/audit/check").json()["problem"] is None


def test_audit_export_over_http_verifies(server: Running, tmp_path: Path) -> None:
    found = server.inspected("good.png", "audited")
    head = server.client.get("/v1/audit").json()
    whole = server.client.get("/v1/audit/export")
    assert whole.headers["content-type"] == "application/jsonl"
    assert "attachment" in whole.headers["content-disposition"]
    (tmp_path / "a.jsonl").write_bytes(whole.content)
    checked = verify_export(server.service.stores.audit, tmp_path / "a.jsonl", against_store=True)
    assert (checked.problem, checked.records, checked.head) == (None, head["records"], head["head"])
    one = server.client.get("/v1/audit/export", params={"inspection_id": found["inspection_id"]}).text.splitlines()
    assert json.loads(one[1])["content"]["inspection_id"] == found["inspection_id"]
    assert json.loads(one[0])["exported_by"] == "ann"
    assert server.client.get("/v1/audit/export", params={"inspection_id": "none"}).status_code == 404
    assert server.client.get("/v1/audit/check").json()["problem"] is None

    page = f"/v1/inspections/{found['inspection_id']}/artefacts/html"
    drawn = server.client.get(page)
    assert drawn.status_code == 200
    cached = server.service.files.path(found["inspection_id"], "html")
    cached.write_bytes(drawn.content.replace(b"PASS", b"FAIL"))
    assert server.client.get(page).content == drawn.content
    change = "UPDATE differences SET picture = ? WHERE inspection_id = ?"
    stores = server.service.stores
    for picture, status in ((b"forged", 409), (stores.inspections.difference(found["inspection_id"]), 200)):
        with stores.db.transaction() as conn:
            conn.exec_driver_sql(change, (picture, found["inspection_id"]))
        shown = server.client.get(page)
        assert shown.status_code == status
        assert status == 200 or shown.json()["error"]["type"] == "TamperedError"


def test_specification_and_golden_changes_over_http_are_recorded_with_the_caller(server: Running) -> None:
    by = server.key("admin", "zoe")
    golden = server.client.get("/v1/goldens", headers=by).json()["items"][0]["golden_id"]
    changes = [
        ("PUT", "/v1/products/board/spec", {"limits": []}),
        ("PATCH", f"/v1/goldens/{golden}", {"status": "flagged", "note": "look"}),
        ("PATCH", f"/v1/goldens/{golden}", {"status": "active", "note": "seen"}),
    ]
    for method, path, body in changes:
        assert server.client.request(method, path, json=body, headers=by).status_code == 200
    records = server.service.stores.audit.changes(limit=3)
    assert [(r.kind, r.by, r.facts["subject"]) for r in records] == [
        ("product", "zoe", "board"), ("golden", "zoe", golden), ("golden", "zoe", golden),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page/js/app.js", "text/javascript"), ("/page/style.css", "text/css"),
     ("/page/icon.svg", "image/svg+xml")],
)  # fmt: skip
def test_page_is_served_with_a_strict_content_security_policy(server: Running, path: str, kind: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "path", ["/page/../files.py", "/page/%2e%2e/files.py", "/page/js/..%2f..%2ffiles.py", "/page/js"]
)
def test_paths_outside_the_page_folder_are_not_served(server: Running, path: str) -> None:
    assert server.client.get(path).status_code in (404, 405)


def test_page_loads_nothing_from_other_sites_and_builds_no_html() -> None:
    import refdiff.server.web.page.files as page

    texts: dict[str, Any] = {p.name: p.read_text() for p in page.STATIC.rglob("*.*") if p.is_file()}
    assert {"index.html", "style.css", "app.js", "viewer.js"} <= set(texts)
    for name, text in texts.items():
        for word in ("https://", "//cdn", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text.replace("https://jcgt.org/published/", ""), f"{name} holds {word}"  # in a comment
        without = re.sub(r"http://www\.w3\.org/(2000/svg|1999/xhtml)", "", text)  # namespaces
        assert "http:" not in without, name
    assert "<script>" not in texts["index.html"]
    assert " style=" not in texts["index.html"]
    assert " on" not in texts["index.html"].replace(" on ", "")
