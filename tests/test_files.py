"""Files that are replaced as a whole, together, or not at all; and locks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time

import pytest

from dwsep_zoo import files
from dwsep_zoo.files import atomic_write, is_locked, locked, write_together


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text", b"\xff\x00", "", "äöü"])
def test_a_file_is_replaced(tmp_path, content):
    file = tmp_path / "a"
    for _ in range(2):
        atomic_write(file, content)
        assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_disk_that_fills_up_leaves_every_file_as_it_was(tmp_path, monkeypatch, failing):
    old = {tmp_path / name: f"old {name}" for name in "abc"}
    write_together(old)
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) > failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left") as error:
            write_together(dict.fromkeys(old, "new"))
    assert error.value.filename == str(list(old)[failing])
    assert {path: path.read_text() for path in old} == old
    assert names(tmp_path) == ["a", "b", "c"]
    write_together(dict.fromkeys(old, "new"))
    assert {path.read_text() for path in old} == {"new"}


def test_a_lock_is_held_once(tmp_path):
    file = tmp_path / "log"
    assert not is_locked(file)
    with locked(file) as mine:
        assert mine
        assert is_locked(file)
        with locked(file) as other:
            assert not other
        seen = []
        thread = threading.Thread(target=lambda: seen.append(is_locked(file)))
        thread.start()
        thread.join()
        assert seen == [True]
    assert not is_locked(file)
    assert file.read_bytes() == b""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_that_outlives_its_process_holds_no_lock(tmp_path):
    file, context = tmp_path / "log", multiprocessing.get_context("fork")
    done = context.Event()
    with locked(file):
        worker = context.Process(target=done.wait, args=(30,))
        worker.start()
        assert is_locked(file)
    try:
        deadline = time.monotonic() + 20  # the worker lets go when it first runs
        while is_locked(file) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_locked(file)
        assert worker.is_alive()
    finally:
        done.set()
        worker.join()
