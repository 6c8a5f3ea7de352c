"""The journal loses nothing that was acknowledged and shows tampering; the worker lets the newest request win."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from workbench.core.errors import Cancelled, JournalError
from workbench.core.worker import Worker
from workbench.journal import Journal


def test_records_survive_the_process_that_wrote_them(tmp_path):
    path = tmp_path / "journal.sqlite"
    code = (
        "import sys, os, signal; from workbench.journal import Journal; j = Journal(sys.argv[1])\n"
        "for i in range(5): j.append('tried', {'i': i})\n"
        "print('acknowledged', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "acknowledged\n")
    journal = Journal(path)
    assert [r.payload["i"] for r in journal.records("tried")] == [0, 1, 2, 3, 4]
    assert journal.append("tried", {"i": 5}).kernel == str(os.getpid())
    journal.check()


def test_two_writers_interleave_without_breaking_the_chain(tmp_path):
    path = tmp_path / "journal.sqlite"
    journals = [Journal(path), Journal(path)]
    threads = [threading.Thread(target=lambda j=j: [j.append("step", {"i": i}) for i in range(20)]) for j in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journals[0].records()) == 40
    journals[0].check()


@pytest.mark.parametrize(
    "tamper", ["DELETE FROM record WHERE number = 2", "UPDATE record SET kind = 'x' WHERE number = 2"]
)
def test_an_altered_or_removed_record_is_named(tmp_path, tamper):
    journal = Journal(tmp_path / "journal.sqlite")
    for i in range(3):
        journal.append("tried", {"i": i})
    with sqlite3.connect(journal.path) as connection:
        connection.execute(tamper)
    with pytest.raises(JournalError, match=r"record [23] does not follow"):
        journal.check()


def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, but somebody's notes" * 40)
    with pytest.raises(JournalError, match="not a usable journal"):
        Journal(path)
    assert path.read_bytes().startswith(b"not a database")


def test_the_newest_request_of_a_key_wins():
    worker, release, ran = Worker(), threading.Event(), []
    blocker = worker.submit(release.wait)
    futures = [worker.submit(ran.append, i, key="slider") for i in range(5)]
    release.set()
    futures[-1].result(timeout=10)
    assert blocker.result(timeout=10) is True
    assert ran == [4]
    assert [f.cancelled() for f in futures] == [True, True, True, True, False]


def test_a_running_request_is_asked_to_stop_and_its_result_is_not_shown():
    worker, started = Worker(), threading.Event()

    def long_work(cancel):
        started.set()
        while not cancel.cancelled:
            time.sleep(0.001)
        return "stale"

    old = worker.submit(long_work, key="slider")
    started.wait(10)
    new = worker.submit(lambda: "fresh", key="slider")
    assert new.result(timeout=10) == "fresh"
    with pytest.raises(Cancelled):
        old.result(timeout=10)


def test_an_error_in_the_work_reaches_who_waits_and_the_worker_goes_on():
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 / 0)
    assert worker.run(lambda: worker.run(lambda: 3)) == 3
    assert not worker.busy or worker.run(lambda: True)
