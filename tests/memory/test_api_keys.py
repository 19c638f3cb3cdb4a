"""API keys that expire, and keys that take the place of others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from refdiff.memory.kinds import Role
from refdiff.memory.records import api_keys
from refdiff.memory.records.api_keys import ApiKey, KeyStore
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import InputError, UnknownRecordError

DAY = timedelta(days=1)


@pytest.fixture
def keys(stores: Stores) -> KeyStore:
    return stores.keys


def later(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let the clock of the keys go on."""
    monkeypatch.setattr(api_keys, "utc_now", lambda: to_utc(datetime.now(UTC) + by))


def test_key_is_valid_until_it_expires_and_then_opens_nothing(
    stores: Stores, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = keys.add("line 3", "inspector", "ann", 90 * DAY)
    assert key.expires_at
    assert abs(datetime.fromisoformat(key.expires_at) - datetime.now(UTC) - 90 * DAY) < timedelta(minutes=1)
    assert keys.check(text) == key
    later(monkeypatch, 89 * DAY)
    assert keys.check(text) == key
    with pytest.raises(InputError, match="already has the name"):
        keys.add("line 3", "viewer", "ann")
    later(monkeypatch, 91 * DAY)
    assert keys.check(text) is None
    assert keys.any_good(), "a server without keys stays closed"
    keys.add("line 3", "viewer", "ann")  # its name is free again
    assert stores.audit.verify_store().problems == []
    assert "expires_at" in stores.audit.changes("key")[0].facts["change"]


@pytest.mark.parametrize("by", ["id", "name"])
def test_rotated_key_and_its_successor_are_valid_side_by_side(
    stores: Stores, keys: KeyStore, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    old, old_text = keys.add("Line 3", "inspector", "ann", 90 * DAY)
    new, text, kept = keys.rotate(old.key_id if by == "id" else " line  3", "bob", 7 * DAY)
    assert (new.name, new.role, new.created_by) == ("Line 3", "inspector", "bob")
    assert new.key_id != old.key_id
    assert kept.expires_at
    assert old.expires_at
    assert kept.expires_at < old.expires_at
    assert (keys.check(old_text), keys.check(text)) == (kept, new)
    later(monkeypatch, 8 * DAY)
    assert (keys.check(old_text), keys.check(text)) == (None, new)
    later(monkeypatch, 91 * DAY)  # as long as the old one was to be
    assert keys.check(text) is None
    assert [r.facts["subject"] for r in stores.audit.changes("key")] == [old.key_id, old.key_id, new.key_id]
    assert stores.audit.verify_store().problems == []


def test_rotation_can_end_the_old_key_at_once_and_never_makes_it_last_longer(keys: KeyStore) -> None:
    first, first_text = keys.add("ana", "viewer", "ann")
    second, second_text, _ = keys.rotate("ana", "ann", timedelta(0), 2 * DAY)
    assert keys.check(first_text) is None
    third, _, kept = keys.rotate("ana", "ann", 7 * DAY)
    assert kept == second  # it expires before that
    assert keys.check(second_text) == second
    assert {k.key_id for k in keys.list()} == {first.key_id, second.key_id, third.key_id}
    newest, _, replaced = keys.rotate("ana", "ann", DAY)
    assert replaced.key_id == third.key_id, "of two valid keys of a name, the newer one"
    keys.revoke(newest.key_id)
    with pytest.raises(UnknownRecordError):
        keys.rotate(newest.key_id, "ann", DAY)


def test_rotation_refuses_the_operators_key_and_times_that_make_no_sense(keys: KeyStore) -> None:
    made = keys.operator("ann", make=True)
    assert made
    with pytest.raises(InputError, match="operator"):
        keys.rotate(made[0].key_id, "ann", DAY)
    assert keys.check(made[1]) == made[0]
    with pytest.raises(UnknownRecordError, match="keys list"):
        keys.rotate("nobody", "ann", DAY)
    for lasts in (timedelta(0), -DAY, timedelta(days=9_999_999)):
        with pytest.raises(InputError):
            keys.add("ben", "viewer", "ann", lasts)
    with pytest.raises(InputError):
        keys.rotate("ann", "ann", -DAY)


@pytest.mark.parametrize("statement", ["UPDATE keys SET expires_at = NULL", "UPDATE keys SET expires_at = '2999'"])
def test_expiry_changed_by_other_means_is_reported(stores: Stores, keys: KeyStore, statement: str) -> None:
    keys.add("ana", "viewer", "bob", DAY)
    assert stores.audit.verify_store().problems == []
    with stores.db.transaction() as conn:
        conn.exec_driver_sql(statement)
    assert "is not the one that was recorded last" in str(stores.audit.verify_store().problem)


def test_sign_in_is_a_record_with_an_end_and_its_person_keeps_one_name(
    stores: Stores, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_ins = stores.sign_ins
    keys.add("Ann", "viewer", "bob")
    begun, text = sign_ins.begin("https://x 1", ("Ann\n", "", "ann", "1"), "inspector", DAY)
    assert (begun.name, begun.role, begun.created_by) == ("Ann (ann)", "inspector", "https://x 1")
    assert (sign_ins.check(text), keys.check(text), sign_ins.check("rds_x_y")) == (begun, None, None)
    again, _ = sign_ins.begin("https://x 1", ("Berta",), "inspector", DAY)
    assert (again.name, again.role, again.key_id != begun.key_id) == ("Ann (ann)", "inspector", True)
    other, _ = sign_ins.begin("https://y 1", ("Ann", "ann", "1"), "viewer", DAY)  # another provider's
    assert other.name == "Ann (1)"
    with pytest.raises(InputError, match="rename the key, or the account"):
        sign_ins.begin("https://z 1", ("Ann", "ann", "1"), "viewer", DAY)
    assert {k.key_id for k in sign_ins.list()} == {begun.key_id, again.key_id, other.key_id}
    assert [k.name for k in keys.list()] == ["Ann"]
    with pytest.raises(UnknownRecordError):
        keys.rotate(begun.key_id, "bob", DAY)
    keys.revoke(again.key_id, "Ann (ann)")
    later(monkeypatch, 2 * DAY)
    assert sign_ins.check(text) is None
    with pytest.raises(InputError, match="a person who signs in"):
        keys.add("ann (ANN)", "viewer", "bob")
    changes = stores.audit.changes("key")
    assert [c.by for c in changes] == ["bob", "Ann (ann)", "Ann (ann)", "Ann (1)", "Ann (ann)"]
    assert stores.audit.verify_store().problems == []


def test_sign_ins_of_a_person_have_one_role_and_are_ten_at_most(stores: Stores) -> None:
    sign_ins = stores.sign_ins

    def begin(who: str, role: Role, **more: str) -> tuple[ApiKey, str]:
        return sign_ins.begin(who, (f"Name of {who}",), role, DAY, **more)

    other = begin("https://x 2", "admin")
    first, second = begin("https://x 1", "admin"), begin("https://x 1", "admin")
    assert sign_ins.list() == [other[0], first[0], second[0]]
    lower = begin("https://x 1", "viewer")
    assert (sign_ins.list(), sign_ins.check(first[1])) == ([other[0], lower[0]], None)
    here = begin("https://x 1", "viewer", instead_of=lower[1])
    assert sign_ins.list() == [other[0], here[0]]
    taken_over = begin("https://x 1", "viewer", instead_of=other[1])  # the browser's, whoever it was
    assert sign_ins.list() == [here[0], taken_over[0]]
    more = [begin("https://x 1", "viewer")[0] for _ in range(9)]
    assert sign_ins.list() == [taken_over[0], *more]
    other = begin("https://x 2", "admin")
    sign_ins.end_all("https://x 1")
    assert sign_ins.list() == [other[0]]
    ended = [c for c in stores.audit.changes("key") if "revoked_at" in c.facts["change"]]
    assert len({c.facts["subject"] for c in ended}) >= 15
    assert stores.audit.verify_store().problems == []


def test_person_gets_no_name_that_reports_have_for_another(
    stores: Stores, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked, _ = keys.add("Rita", "viewer", "bob")
    keys.revoke(revoked.key_id)
    keys.add("Ed", "viewer", "bob", DAY)
    later(monkeypatch, 2 * DAY)
    for number, name in enumerate(("rita", "ED", "refdiff", "Unknown", "Ann")):
        begun, _ = stores.sign_ins.begin(f"https://x {number}", (name, str(number)), "viewer", DAY, not_named=("ann",))
        assert begun.name == f"{name} ({number})"
