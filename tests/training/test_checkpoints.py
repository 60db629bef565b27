"""Checkpoints: whole whenever the process is killed, and refused in one line if they are not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import slow_unless

import dwsep_zoo
from dwsep_zoo import UserError
from dwsep_zoo.files import checksum_of, part_of
from dwsep_zoo.training import check, checkpoints, resume_settings
from dwsep_zoo.training.checkpoints import (
    load_checkpoint,
    load_last,
    save_checkpoint,
    set_damaged_aside,
)

RUN = Path(__file__).parents[1] / "runs" / "interrupted"


@pytest.fixture(scope="module")
def saved():
    return torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def old(tmp_path):
    """A copy of a run of an earlier version, whose checkpoints have no checksums."""
    return shutil.copytree(RUN, tmp_path / "run")


def numbered(saved, step):
    return {**saved, "global_step": step}


def step_of(folder):
    return load_last(folder)[1]["global_step"]


def test_what_is_saved_is_read_and_the_one_before_is_kept(tmp_path, saved):
    last = tmp_path / "new" / "last.ckpt"
    for step in (1, 2, 3):
        save_checkpoint(numbered(saved, step), last)
        path, found, warning = load_last(last.parent)
        assert (path, found["global_step"], warning) == (last, step, None)
    assert load_checkpoint(last.with_name("previous.ckpt"))["global_step"] == 2
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(tensor, found["state_dict"][name])
    assert sorted(path.name for path in last.parent.iterdir()) == [
        *("last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256")
    ]
    save_checkpoint(saved, tmp_path / "best.ckpt")
    save_checkpoint(saved, tmp_path / "best.ckpt")
    assert not (tmp_path / "previous.ckpt").exists()


def test_every_changed_byte_is_found(tmp_path, saved):
    last = tmp_path / "last.ckpt"
    save_checkpoint(saved, last)
    whole, draw = last.read_bytes(), random.Random(0)
    for _ in range(100):
        place, change = draw.randrange(len(whole)), draw.randrange(1, 256)
        last.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        for read in (load_checkpoint, dwsep_zoo.load):
            with pytest.raises(UserError, match=r"last\.ckpt: damaged") as error:
                read(last)
            assert "\n" not in str(error.value)
    last.write_bytes(whole)
    checksum_of(last).write_text("0" * 64)
    with pytest.raises(UserError, match=r"not the one in last\.ckpt\.sha256"):
        load_checkpoint(last)


def test_without_a_checksum_changed_weights_are_found(old):
    last = old / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    place = whole.index(b"data/7") + 200  # within the tensors
    last.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match="damaged in"):
        load_checkpoint(last)


class Killed(BaseException):
    """What stops a process between two steps."""


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_wherever_it_is_killed_a_checkpoint_is_there(tmp_path, monkeypatch, saved, name):
    """Before and after each change that a save makes to the folder."""
    own, calls, limit = getattr(os, name), [], [None]

    def stop(*arguments, **options):
        calls.append(arguments)
        if limit[0] is not None and len(calls) > limit[0]:
            raise Killed
        return own(*arguments, **options)

    last = tmp_path / "last.ckpt"
    save_checkpoint(numbered(saved, 1), last)
    save_checkpoint(numbered(saved, 2), last)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, stop)
        save_checkpoint(numbered(saved, 3), last)
    assert calls
    for allowed in range(len(calls)):
        folder = tmp_path / f"{allowed}"
        for step in (1, 2):
            save_checkpoint(numbered(saved, step), folder / "last.ckpt")
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, stop)
            limit[0] = allowed
            with pytest.raises(Killed):
                save_checkpoint(numbered(saved, 3), folder / "last.ckpt")
        limit[0] = None
        assert step_of(folder) in (2, 3)
        save_checkpoint(numbered(saved, 4), folder / "last.ckpt")
        assert step_of(folder) == 4
        assert load_checkpoint(folder / "previous.ckpt")["global_step"] in (2, 3)


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch, saved, room):
    last = tmp_path / "last.ckpt"
    for step in (1, 2):
        save_checkpoint(numbered(saved, step), last)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(values, file):
        file.file = Full(file.file, room)
        own(values, file)

    own = torch.save
    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*last\.ckpt") as error:
        save_checkpoint(saved, last)
    assert error.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


class Full:
    """A file on a disk with so much room."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_last_checkpoint_is_said_and_the_one_before_is_used(old, saved, damage):
    last = old / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        save_checkpoint(numbered(saved, step), last)
    content = last.read_bytes()
    last.unlink()
    if damage != "gone":
        last.write_bytes(content[:1000] if damage == "cut" else content[:-1] + b"x")
    start = check(resume_settings(old)).start
    assert (start.path, start.step) == (last.with_name("previous.ckpt"), 1)
    assert str(last) in start.warning
    assert "previous.ckpt" in start.warning
    set_damaged_aside(last.parent)
    save_checkpoint(numbered(saved, 3), last)
    assert check(resume_settings(old)).start.step == 3
    last.write_bytes(b"")
    assert check(resume_settings(old)).start.step == 1  # which the damaged one has not replaced
    (last.with_name("previous.ckpt")).write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.ckpt.*previous\.ckpt: damaged") as error:
        check(resume_settings(old))
    assert "\n" not in str(error.value)


def drop(*path):
    def change(values):
        values = dict(values)
        first, *rest = path
        if rest:
            values[first] = drop(*rest)(values[first])
        else:
            del values[first]
        return values

    return change


def put(value, *path):
    def change(values):
        first, *rest = path
        if isinstance(values, list):
            return [put(value, *rest)(part) if rest else value for part in values]
        return {**values, first: put(value, *rest)(values[first]) if rest else value}

    return change


FIT = ("loops", "fit_loop")
WRONG = {
    "a list": lambda values: [values],
    "a tensor": lambda values: torch.zeros(3),
    "nothing": lambda values: {},
    "weights alone": lambda values: {"state_dict": values["state_dict"]},
    **{
        f"no {key}": drop(key)
        for key in ("loops", "optimizer_states", "lr_schedulers", "callbacks")
    },
    **{f"no {key} ": drop(key) for key in ("callbacks", "epoch", "global_step", "state_dict")},
    "no version": drop("pytorch-lightning_version"),
    "no description": drop("dwsep_zoo"),
    "no fit_loop": drop(*FIT),
    "no epochs": drop(*FIT, "epoch_progress"),
    "no batches": drop(*FIT, "epoch_loop.batch_progress", "current", "ready"),
    "no model": drop("dwsep_zoo", "model"),
    "loops a list": put([], "loops"),
    "a loop a text": put("x", *FIT, "epoch_progress", "current"),
    "epochs a text": put("2", *FIT, "epoch_progress", "current", "processed"),
    "batches a tensor": put(torch.zeros(2), *FIT, "epoch_loop.batch_progress", "total"),
    "step a text": put("3", "global_step"),
    "weights a list": put([1], "state_dict"),
    "a weight a number": put(3, "state_dict", "model.stem.0.conv.weight"),
    "optimizers a group": put({}, "optimizer_states"),
    "no optimizer": put([], "optimizer_states"),
    "an optimizer a list": put([[]], "optimizer_states"),
    "groups a text": put("x", "optimizer_states", 0, "param_groups"),
    "no groups": put([], "optimizer_states", 0, "param_groups"),
    "schedulers a tensor": put(torch.zeros(1), "lr_schedulers"),
    "no scheduler": put([], "lr_schedulers"),
    "a scheduler empty": put([{}], "lr_schedulers"),
    "a scheduler's step a text": put("x", "lr_schedulers", 0, "last_epoch"),
    "callbacks a list": put([], "callbacks"),
    "a callback a list": put([], "callbacks", "EpochTable"),
    "a callback empty": put({"x": 1}, "callbacks", "EpochTable"),
    "a description a text": put("x", "dwsep_zoo"),
    "an older version": put("1.9.0", "pytorch-lightning_version"),
    "a newer version": put("99.0", "pytorch-lightning_version"),
    "a version that is none": put("new", "pytorch-lightning_version"),
    "a version a number": put(2, "pytorch-lightning_version"),
}


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        *((wrong, "resume") for wrong in WRONG),
        # Both keys are checked alike.
        *(
            pytest.param(wrong, "ckpt_path", marks=slow_unless(number % 6 == 0))
            for number, wrong in enumerate(WRONG)
        ),
    ],
)
def test_a_checkpoint_of_another_form_is_one_line(old, saved, wrong, key):
    last = old / "checkpoints" / "last.ckpt"
    torch.save(WRONG[wrong](saved), last)
    settings = resume_settings(old)
    if key == "ckpt_path":
        settings = settings.replace(
            resume=None,
            ckpt_path=str(last),
            paths={**settings.paths.plain(), "output_dir": str(old.with_name("new"))},
        )
    with pytest.raises(UserError, match=r"last\.ckpt: (not a checkpoint of|written by)") as error:
        check(settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\x80", b"PK\x03\x04", bytes(5000), bytes(5000) + b"PK"]
)
def test_files_that_are_no_checkpoints_are_one_line(old, content):
    last = old / "checkpoints" / "last.ckpt"
    last.write_bytes(content)
    for read in (lambda: check(resume_settings(old)), lambda: dwsep_zoo.load(last)):
        with pytest.raises(UserError, match=r"last\.ckpt: damaged") as error:
            read()
        assert "\n" not in str(error.value)


def size_of(part):
    with suppress(FileNotFoundError):  # it has become the checkpoint
        return part.stat().st_size
    return 0


def write_for_ever(saved, last):
    for step in range(1, 10_000):
        save_checkpoint(numbered(saved, step), last)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_20_kills_in_the_middle_of_a_write(old, saved, monkeypatch):
    """The folder for temporary files is on another file system, where the system has one."""
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    folder, large = old / "checkpoints", {**saved, "more": torch.zeros(1_000_000)}
    fork = multiprocessing.get_context("fork")
    draw = random.Random(0)
    for _ in range(20):
        writer = fork.Process(target=write_for_ever, args=(large, folder / "last.ckpt"))
        writer.start()
        part = part_of(folder / "last.ckpt")
        part = part.with_name(part.name.replace(f".{os.getpid()}-", f".{writer.pid}-"))
        for wait in (draw.uniform(0, 0.1), 0):  # from the first write into a later one
            while size_of(part) <= 1_000_000:
                assert writer.is_alive()
            time.sleep(wait)
        writer.kill()
        writer.join()
        part.unlink(missing_ok=True)
        assert check(resume_settings(old)).start.step == step_of(folder)
    assert (folder / "previous.ckpt").is_file()
