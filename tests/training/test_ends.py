"""A run's folder has one process, whose end is known however it came."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from helpers import slow_unless

from dwsep_zoo import UserError, files
from dwsep_zoo.files import locked
from dwsep_zoo.report import load_results
from dwsep_zoo.schema.process import this_process
from dwsep_zoo.schema.record import RecordFile, read_record, update_record
from dwsep_zoo.signals import END, ending
from dwsep_zoo.training import check, resume_settings
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.prepare import prepare
from dwsep_zoo.training.recording import recording

RUNS = Path(__file__).parents[1] / "runs"
SIGNALS = {number.name: number for number in END}


@pytest.fixture
def copied(tmp_path):
    return lambda name: shutil.copytree(RUNS / name, tmp_path / name)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def anew(folder):
    """The settings of a new run that writes into a folder."""
    settings = resume_settings(RUNS / "finished")
    return settings.replace(
        resume=None, paths={**settings.paths.plain(), "output_dir": str(folder)}
    )


@pytest.mark.parametrize("make", [resume_settings, anew], ids=["resume", "new"])
def test_a_folder_in_use_is_refused(copied, make):
    folder = copied("interrupted")
    plan = check(resume_settings(folder))
    before = contents(folder)
    with locked(folder / "train.log"):
        with pytest.raises(UserError, match="another process is at work in this folder"):
            check(make(folder))
        with pytest.raises(UserError, match="another process"), recording(plan):
            raise AssertionError
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["finished", "interrupted", "damaged", "running"])
def test_a_new_run_overwrites_none(copied, name):
    folder = copied("interrupted" if name in ("damaged", "running") else name)
    if name == "damaged":
        (folder / "result.json").write_text("{")
    if name == "running":
        update_record(folder / "result.json", status="running", process=this_process())
    before = contents(folder)
    with pytest.raises(UserError, match=f"holds a run, which is {name}; resume={folder}"):
        check(anew(folder))
    assert contents(folder) == before


def test_a_run_that_failed_at_once_may_be_made_again(copied):
    folder = copied("failed")
    assert check(anew(folder)).earlier is None
    shutil.copytree(RUNS / "finished" / "checkpoints", folder / "checkpoints")
    with pytest.raises(UserError, match="holds a run, which is failed"):
        check(anew(folder))


def test_what_another_process_did_since_the_check_is_kept(copied, tmp_path):
    folder = copied("interrupted")
    plan, fresh = check(resume_settings(folder)), check(anew(tmp_path / "new"))
    update_record(folder / "result.json", status="finished", process=this_process())
    shutil.copytree(folder, tmp_path / "new")
    before = contents(tmp_path)
    for one, said in ((plan, "meanwhile"), (fresh, "holds a run")):
        with pytest.raises(UserError, match=said), recording(one):
            raise AssertionError
    assert contents(tmp_path) == before


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_without_room_leaves_all_as_it_was(run, copied, tmp_path, monkeypatch, resumed):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 1, 600_000))
    folder = copied("finished")
    before = contents(tmp_path)
    arguments = (f"resume={folder}", "trainer.max_epochs=9") if resumed else ()
    with pytest.raises(
        UserError, match=r"has 1 MB free; the checkpoints of this run need about [12] MB"
    ):
        run("new", *arguments)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_disk_that_is_full_at_the_start_is_one_line(run, copied, tmp_path, monkeypatch, resumed):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = copied("finished")
    arguments = (f"resume={folder}", "trainer.max_epochs=9") if resumed else ()
    before = contents(tmp_path)
    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(UserError, match=r"cannot write .*result\.json: No space left"):
        run("new", *arguments)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_run_that_goes_on_asks_for_what_it_writes(copied, monkeypatch):
    """Two more checkpoints as large as the one there is."""
    from dwsep_zoo.training.trainer import check_space

    folder = copied("finished")
    last, settings = folder / "checkpoints" / "last.ckpt", resume_settings(folder)
    size = last.stat().st_size
    for free in (2 * size - 1, 2 * size):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: Usage(1, 1, free))
        if free < 2 * size:
            with pytest.raises(UserError, match="MB free"):
                check_space(settings, folder, 10**9, last)
        else:
            check_space(settings, folder, 10**9, last)


def dead(*, reaped):
    """The number of a process that was killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = {**this_process(), "pid": process.pid, "started": 1}
    process.kill()
    if reaped:
        process.communicate()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process, started


@pytest.mark.parametrize("reaped", [True, False])
def test_a_run_whose_process_was_killed_was_interrupted(copied, reaped):
    folder = copied("interrupted")
    process, writer = dead(reaped=reaped)
    update_record(folder / "result.json", status="running", error=None, process=writer)
    for record in (read_record(folder / "result.json"), load_results([folder])[0][0].record):
        assert record.status == "interrupted"
        assert str(process.pid) in record.error
    process.communicate()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "running"),
        ({"host": "another"}, "running"),
        ({"started": 1}, "interrupted"),  # another process with the same number
        ({"pid": 1 << 40}, "interrupted"),
        ({"pid": -1}, "interrupted"),
        ({"pid": None}, "running"),  # of an earlier version
    ],
)
def test_what_is_known_of_a_process(tmp_path, change, status):
    file = RecordFile(tmp_path, model="m", conv="c", process={**this_process(), **change})
    assert read_record(file.path).status == status


def kill_in(monkeypatch, number, where):
    """Send this process a signal in the middle of a run."""

    def kill(*_):
        os.kill(os.getpid(), number)

    if where == "set-up":

        def killed(*arguments, **options):
            kill()
            return prepare(*arguments, **options)

        monkeypatch.setattr("dwsep_zoo.training.run.prepare", killed)
    elif where == "test":
        monkeypatch.setattr(LitClassifier, "test_step", kill)
    else:
        monkeypatch.setattr(LitClassifier, "on_validation_start", kill)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        pytest.param(where, number, id=f"{where}-{name}", marks=slow_unless((i + j) % 2 == 0))
        for i, where in enumerate(["set-up", "training", "test"])
        for j, (name, number) in enumerate(SIGNALS.items())
    ],
)
def test_signals_to_end_are_recorded(run, tmp_path, monkeypatch, number, where):
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, *END)}
    kill_in(monkeypatch, number, where)
    try:
        with pytest.raises(SystemExit) as end:
            run("run", "trainer.max_epochs=3")
        kept = {one: signal.getsignal(one) for one in END}
    finally:
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])  # Lightning ignores further ones
    assert kept == {one: handlers[one] for one in END}
    assert end.value.code == 130
    record = read_record(tmp_path / "run" / "result.json")
    assert record.status == "interrupted"
    if where == "training":
        assert "stopped" in record.error
        assert check(resume_settings(tmp_path / "run")).start.epochs <= 1


def test_a_signal_in_the_set_up_leaves_a_run_that_goes_on_as_it_was(run, copied, monkeypatch):
    folder = copied("finished")
    before = contents(folder)
    kill_in(monkeypatch, signal.SIGTERM, "set-up")
    with pytest.raises(SystemExit):
        run("run", f"resume={folder}", "trainer.max_epochs=9")
    assert contents(folder) == before


def test_a_hang_up_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outside_the_main_thread(run, tmp_path):
    ends = []
    thread = threading.Thread(target=lambda: ends.append(run("run", "trainer.max_epochs=1")))
    thread.start()
    thread.join()
    (record,) = ends
    assert record["status"] == "finished"
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["process"] == this_process()
