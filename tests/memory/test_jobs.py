"""One queue, many workers: what goes first, who holds a job, and what happens to the jobs of the dead."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import update

from refdiff.memory.database import tables as t
from refdiff.memory.journals.batches import LeftOut
from refdiff.memory.journals.jobs import BATCH, CRASHED, HUNG, PERSON, Job
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import BusyError, InputError, UnknownRecordError

EVERY_DATABASE = True


def add(stores: Stores, *inspection_ids: str, priority: int = PERSON, line: str | None = None, **more: str) -> None:
    for inspection_id in inspection_ids:
        stores.jobs.add(
            inspection_id,
            {"part_id": inspection_id[1:]},
            None,
            100,
            priority=priority,
            line=line,
            batch=more.get("batch"),
        )


def take(stores: Stores, worker: str = "w", lease_s: float = 60.0) -> str | None:
    job = stores.jobs.begin(worker=worker, lease_s=lease_s)
    return None if job is None else job.inspection_id


def test_people_go_before_batches_and_each_in_order_of_acceptance(stores: Stores) -> None:
    add(stores, "b1", "b2", priority=BATCH)
    add(stores, "p1", "p2")
    assert [j.inspection_id for j in stores.jobs.list()] == ["p1", "p2", "b1", "b2"]
    assert stores.jobs.ahead_of(stores.jobs.get("b1")) == 2
    assert take(stores) == "p1"
    add(stores, "p3")
    assert [take(stores) for _ in range(5)] == ["p2", "p3", "b1", "b2", None]


def test_jobs_of_a_line_run_one_after_the_other_and_others_beside_them(stores: Stores) -> None:
    add(stores, "a1", "a2", line="a")
    add(stores, "b1", line="b")
    add(stores, "n1")
    assert [take(stores) for _ in range(4)] == ["a1", "b1", "n1", None]
    stores.jobs.requeue("a1", "w", delay_s=30.0)
    assert take(stores) is None  # a1 is not due, and a2 waits for it all the same
    with stores.db.transaction() as conn:
        conn.execute(update(t.jobs).values(not_before=None))
    assert take(stores) == "a1"
    stores.jobs.finish("a1", worker="w")
    assert take(stores) == "a2"


def test_retried_job_of_a_line_does_not_run_beside_a_newer_one(stores: Stores) -> None:
    add(stores, "a1", "a2", "a3", line="a")
    assert take(stores) == "a1"
    stores.jobs.finish("a1", {"type": "ImageError", "message": "half a file", "exit_code": 65}, "w")
    assert take(stores) == "a2"
    stores.jobs.retry("a1", "ana")
    assert take(stores) is None
    stores.jobs.finish("a2", worker="w")
    assert take(stores) == "a1"


def test_job_that_failed_often_goes_behind_all_that_wait(stores: Stores) -> None:
    add(stores, "j1", "j2")
    assert take(stores) == "j1"
    stores.jobs.requeue("j1", "w", delay_s=-1.0, last=True)
    add(stores, "j3")
    assert [take(stores) for _ in range(3)] == ["j2", "j1", "j3"]
    assert stores.jobs.get("j1").failures == 1


def test_workers_that_take_at_once_never_take_the_same_job(settings: MemorySettings, stores: Stores) -> None:
    add(stores, *(f"j{i}" for i in range(40)))
    together, taken, lock = threading.Barrier(4), list[str](), threading.Lock()

    def work(name: str) -> None:
        with Stores.open(settings) as own:  # as a process has them
            together.wait(10)
            while (one := take(own, name)) is not None:
                with lock:
                    taken.append(one)
                assert own.jobs.finish(one, worker=name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert sorted(taken) == sorted(f"j{i}" for i in range(40))
    assert stores.jobs.count_open() == 0


def test_job_of_a_dead_worker_is_taken_over_once_and_its_late_word_counts_no_more(stores: Stores) -> None:
    add(stores, "j1", "j2")
    assert (take(stores, "dead", lease_s=0.05), take(stores, "alive")) == ("j1", "j2")
    stores.jobs.keep("alive", 60.0)
    time.sleep(0.1)
    lost = stores.jobs.take_over()
    assert [(j.inspection_id, j.state, j.crashes, j.worker) for j in lost] == [("j1", "queued", 1, None)]
    assert stores.jobs.take_over() == []
    assert not stores.jobs.finish("j1", worker="dead")
    stores.jobs.requeue("j1", "dead")
    assert take(stores, "alive") == "j1"
    assert not stores.jobs.finish("j1", worker="dead")
    assert stores.jobs.get("j1").state == "running"
    assert stores.jobs.finish("j1", worker="alive")


def test_job_that_hangs_waits_again_once_and_then_fails(stores: Stores) -> None:
    error = {"type": HUNG, "message": "it hung twice", "exit_code": 70}
    add(stores, "j1", "j2", line="a")
    add(stores, "j3")
    assert take(stores, "w") == "j1"
    assert stores.jobs.hang("j1", "another", error) is None
    assert stores.jobs.hang("j1", "w", error) == "queued"
    assert stores.jobs.hang("j1", "w", error) is None
    stores.jobs.keep("w", 60.0)
    assert not stores.jobs.finish("j1", worker="w")
    job = stores.jobs.get("j1")
    assert (job.state, job.worker, job.error, job.crashes) == ("queued", None, None, 0)
    assert (take(stores, "v"), take(stores, "v")) == ("j3", None)
    with stores.db.transaction() as conn:
        conn.execute(update(t.jobs).values(not_before=None))  # as some seconds later
    assert (take(stores, "v"), take(stores, "v")) == ("j1", None)
    assert stores.jobs.hang("j1", "v", error) == "failed"
    failed = stores.jobs.get("j1")
    assert (failed.state, failed.error, failed.is_final) == ("failed", error, True)
    assert take(stores, "x") == "j2"
    assert stores.jobs.retry("j1", "ana").open
    stores.jobs.finish("j2", worker="x")
    assert take(stores, "x") == "j1"
    assert stores.jobs.hang("j1", "x", error) == "queued"  # it counts from the beginning


def test_job_that_waits_for_another_process_has_not_failed(stores: Stores) -> None:
    add(stores, "j1")
    assert take(stores) == "j1"
    stores.jobs.requeue("j1", "w", 30.0, failed=False)
    assert (stores.jobs.get("j1").failures, take(stores)) == (0, None)


def test_what_hung_in_the_last_worker_is_known_until_another_one_begins(stores: Stores) -> None:
    stores.jobs.keep("w", 60.0)
    stores.jobs.keep("other", 60.0)
    stores.jobs.leave("other")
    stores.jobs.leave("w", "fit of product board has taken no step")
    assert (stores.jobs.workers(), stores.jobs.hung()) == ([], "fit of product board has taken no step")
    stores.jobs.keep("w", 60.0)  # as its thread that lives may do once more
    assert (stores.jobs.workers(), stores.jobs.hung()) == (["w"], None)
    stores.jobs.leave("w", "fit of product board has taken no step")
    stores.jobs.keep("next", 60.0)
    stores.jobs.leave("next")
    assert (stores.jobs.workers(), stores.jobs.hung()) == ([], None)


def test_worker_that_ends_in_order_after_one_that_hung_is_not_said_to_have_hung(stores: Stores) -> None:
    stores.jobs.keep("w", 60.0)
    stores.jobs.keep("other", 60.0)
    stores.jobs.leave("w", "fit of product board has taken no step")
    stores.jobs.leave("other")
    assert (stores.jobs.workers(), stores.jobs.hung()) == ([], None)


def test_lease_is_renewed_with_the_sign_of_life(stores: Stores) -> None:
    add(stores, "j1", "j2")
    assert (take(stores, "w", lease_s=-1.0), take(stores, "dead", lease_s=-1.0)) == ("j1", "j2")
    assert stores.jobs.workers() == []
    stores.jobs.keep("w", 60.0)
    assert [j.inspection_id for j in stores.jobs.take_over()] == ["j2"]
    assert stores.jobs.workers() == ["w"]
    stores.jobs.keep("w", 60.0)
    stores.jobs.leave("w")
    assert stores.jobs.workers() == []


def test_every_running_job_is_taken_over_by_a_process_that_is_alone(stores: Stores) -> None:
    add(stores, "j1", "j2", "j3")
    assert (take(stores), take(stores)) == ("j1", "j2")
    assert [j.inspection_id for j in stores.jobs.take_over(everybody=True)] == ["j1", "j2"]
    assert [j.inspection_id for j in stores.jobs.list()] == ["j3", "j1", "j2"]
    assert [j.inspection_id for j in stores.jobs.crashed()] == ["j1", "j2"]


def test_worker_that_ends_or_does_not_know_what_it_took_puts_it_back_uncounted(stores: Stores) -> None:
    add(stores, "j1", "j2")
    assert (take(stores, "w"), take(stores, "other")) == ("j1", "j2")
    stores.jobs.release("w")
    assert [(j.inspection_id, j.state, j.worker) for j in stores.jobs.list()] == [
        ("j1", "queued", None), ("j2", "running", "other"),
    ]  # fmt: skip
    assert stores.jobs.crashed() == []
    assert take(stores, "other") == "j1"


def test_job_is_given_up_only_as_long_as_it_waits_since_that_crash(stores: Stores) -> None:
    error = {"type": CRASHED, "message": "given up", "exit_code": 70}
    add(stores, "j1")
    take(stores, "dead", lease_s=-1.0)
    (first,) = stores.jobs.take_over()
    assert take(stores, "dead", lease_s=-1.0) == "j1"
    assert not stores.jobs.give_up(first, error)
    (second,) = stores.jobs.take_over()
    assert not stores.jobs.give_up(first, error)
    assert stores.jobs.give_up(second, error)
    assert (stores.jobs.get("j1").state, stores.jobs.get("j1").error) == ("failed", error)
    again = stores.jobs.retry("j1", "ana")
    assert take(stores, "w") == "j1"
    assert stores.jobs.finish("j1", worker="w")
    assert not stores.jobs.give_up(again, error)
    assert stores.jobs.get("j1").state == "done"


def test_origin_is_forgotten_only_of_the_job_that_was_seen_with_it(stores: Stores) -> None:
    def ask(inspection_id: str) -> str:
        return stores.jobs.add(inspection_id, {"part_id": "1"}, "key", 9)[0].inspection_id

    assert (ask("j1"), ask("j2")) == ("j1", "j1")
    stores.jobs.forget_origin("key", "j1")
    assert ask("j2") == "j2"
    stores.jobs.forget_origin("key", "j1")
    assert ask("j3") == "j2"


def test_job_is_taken_while_others_write(settings: MemorySettings, stores: Stores) -> None:
    """On a server; in a file, writers take turns whatever they write."""
    if settings.database_url is None:
        pytest.skip("a file has one writer at a time")
    add(stores, "j1")
    with Stores.open(settings) as other, other.db.transaction(), ThreadPoolExecutor(1) as pool:
        began: Job | None = pool.submit(stores.jobs.begin, worker="w").result(10)
        assert began is not None
        pool.submit(stores.jobs.keep, "w").result(10)


def test_lock_is_held_by_one_process_or_shared(settings: MemorySettings, stores: Stores) -> None:
    busy = BusyError("held")
    with Stores.open(settings) as other:
        with stores.db.lock("one", busy):
            with pytest.raises(BusyError), other.db.lock("one", busy):
                pass
            with pytest.raises(BusyError), other.db.lock("one", busy, shared=True):
                pass
            with other.db.lock("another", busy):
                pass
        shared = [db.lock("one", busy, shared=True) for db in (stores.db, other.db)]
        with shared[0], shared[1], pytest.raises(BusyError), other.db.lock("one", busy):
            pass
        with other.db.lock("one", busy, wait_s=1.0):
            pass


def test_batch_counts_what_became_of_its_parts_and_can_be_stopped(stores: Stores) -> None:
    batches = stores.batches
    batch_id = batches.begin("photos", "ana")
    add(stores, "i1", "i2", "i3", "i4", priority=BATCH, batch=batch_id)
    add(stores, "other")
    assert (batches.get(batch_id).complete, batches.get(batch_id).over) == (False, False)
    batches.complete(batch_id, 4, [LeftOut("a.txt", "not an image")])
    take(stores)
    report = {"part_id": "1", "verdict": "PASS", "requested_by": "ana"}
    assert stores.inspections.file("i1", "1", "board", "PASS", "2026-01-01T00:00:00+00:00", report)
    stores.jobs.begin("i1", worker="w")
    stores.jobs.finish("i1")
    stores.jobs.begin("i2", worker="w")
    stores.jobs.finish("i2", {"type": "ImageError", "message": "half a file", "exit_code": 65})
    stores.jobs.begin("i3", worker="w")
    stopped = batches.stop(batch_id, "eve")
    assert (stopped.accepted, stopped.waiting, stopped.running, stopped.done, stopped.failed, stopped.cancelled) == (
        4, 0, 1, 1, 1, 1,
    )  # fmt: skip
    assert (stopped.verdicts, stopped.left_out) == ({"PASS": 1}, [LeftOut("a.txt", "not an image")])
    assert (stopped.stopped_by, stopped.over) == ("eve", False)
    assert batches.failures(batch_id) == {"i2": "part 2: half a file"}
    assert stores.jobs.get("other").open
    stores.jobs.finish("i3")
    assert stopped.left_out_count == 1
    assert replace(batches.stop(batch_id, "bob"), left_out=[]) == batches.list()[0]
    assert (batches.get(batch_id).over, batches.get(batch_id).stopped_by) == (True, "eve")
    assert stores.audit.verify_store().problem is None
    with pytest.raises(UnknownRecordError, match="refdiff batch list"):
        batches.get("batch-nobody")


def test_failures_of_a_batch_are_its_first_ones_without_those_that_were_cancelled(stores: Stores) -> None:
    batch_id = stores.batches.begin("photos", "ana")
    add(stores, "i1", "i2", "i3", priority=BATCH, batch=batch_id)
    stores.jobs.cancel("i1", "ana")
    for i in ("i2", "i3"):
        stores.jobs.begin(i, worker="w")
        stores.jobs.finish(i, {"type": "ImageError", "message": f'half of {i}, "type": "Cancelled"', "exit_code": 65})
    first, second = ({i: f'part {i[1]}: half of {i}, "type": "Cancelled"'} for i in ("i2", "i3"))
    assert [stores.batches.failures(batch_id, limit) for limit in (None, 1)] == [first | second, first]
    assert (stores.batches.get(batch_id).failed, stores.batches.get(batch_id).cancelled) == (2, 1)


def test_parts_of_batches_leave_the_queue_open_to_people(stores: Stores) -> None:
    add(stores, "b1", "b2", "b3", priority=BATCH, batch=stores.batches.begin("photos", "ana"))
    stores.jobs.add("p1", {}, None, 1)
    with pytest.raises(BusyError):
        stores.jobs.add("p2", {}, None, 1)
    stores.jobs.begin("p1", worker="w")
    with pytest.raises(InputError, match="is running"):
        stores.jobs.cancel("p1", "ana")
