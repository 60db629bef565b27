"""Folders of runs from strangers: nothing in them is executed or filled in from this machine."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import slow_unless

import dwsep_zoo
from dwsep_zoo import UserError
from dwsep_zoo.commands.train import run_train
from dwsep_zoo.report import load_results
from dwsep_zoo.training import check, resume_settings

RUN = Path(__file__).parents[1] / "runs" / "interrupted"
SECRET = "a-value-of-this-machine"


class Payload:
    """Makes a folder if it is unpickled."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return os.mkdir, (str(self.ran),)


def target(ran):
    return {"_target_": "os.mkdir", "path": str(ran)}


def hydra(name, *lines):
    """A file of Hydra's own."""

    def write(folder, ran):
        (folder / ".hydra").mkdir(exist_ok=True)
        (folder / ".hydra" / name).write_text("\n".join(lines).replace("RAN", str(ran)))

    return write


def config(value, *path):
    """A value in the recorded settings, where ``path`` leads."""

    def write(folder, ran):
        record = json.loads((folder / "result.json").read_text())
        *groups, last = path
        place = record["config"]
        for key in groups:
            place = place[key]
        known = {target: target(ran), (target,): [target(ran)]}
        place[last] = known[value] if callable(value) or isinstance(value, tuple) else value
        (folder / "result.json").write_text(json.dumps(record))

    return write


def pickled(name, protocol=2):
    def write(folder, ran):
        (folder / name).write_bytes(pickle.dumps({"state_dict": Payload(ran)}, protocol))

    return write


def saved(name):
    def write(folder, ran):
        torch.save({"state_dict": {}, "x": Payload(ran)}, folder / name)

    return write


def arrays(folder, ran):
    """An array of objects where predictions belong."""
    file = io.BytesIO()
    np.save(file, np.array([Payload(ran)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(folder / "predictions.npz", "w") as archive:
        for name in ("label", "predicted"):
            archive.writestr(f"{name}.npy", file.getvalue())


def modules(folder, ran):
    """Modules that shadow those of Python and of this package."""
    for name in ("torch", "yaml", "dwsep_zoo", "sitecustomize", "hydra_plugins"):
        (folder / f"{name}.py").write_text(f"import os; os.mkdir({str(ran)!r})")


def table(folder, ran):
    (folder / "metrics.csv").write_text(f"epoch,train/loss\n=cmd|'mkdir {ran}'!A0,1\n")


CALLBACK = "hydra.callbacks.x={_target_: os.mkdir, path: RAN}"
GROUPS = ("model", "conv", "data", "recipe", "trainer", "callbacks", "profile", "logger", "paths")
HOSTILE = {
    "overrides with a callback": hydra("overrides.yaml", f"- '+{CALLBACK}'", "- seed=0"),
    "overrides with a launcher": hydra("overrides.yaml", "- hydra/launcher=evil"),
    "overrides with a search path": hydra("overrides.yaml", "- hydra.searchpath=[file://RAN]"),
    "overrides with a target": hydra("overrides.yaml", "- +x={_target_: os.mkdir, path: RAN}"),
    "overrides that are objects": hydra("overrides.yaml", "!!python/object/apply:os.mkdir [RAN]"),
    "overrides of settings": hydra("overrides.yaml", "- recipe.lr=-1"),
    "settings with a target": hydra("config.yaml", "_target_: os.mkdir", "path: RAN"),
    "settings that are objects": hydra("config.yaml", "!!python/object/apply:os.mkdir [RAN]"),
    "hydra's with a callback": hydra(
        "hydra.yaml", "hydra:", "  callbacks: {x: {_target_: os.mkdir, path: RAN}}"
    ),
    "a target beside the groups": config(target, "callback"),
    "a target's name": config("os.mkdir", "_target_"),
    "a hydra group": config({"callbacks": {"x": {"_target_": "os.mkdir"}}}, "hydra"),
    **{f"a target as {group}": config(target, group) for group in GROUPS},
    **{f"a target in {group}": config("os.mkdir", group, "_target_") for group in GROUPS},
    "a target as a search": config(target, "hparams_search"),
    "a target as a tag": config((target,), "tags"),
    "a target as a profiler": config(target, "trainer", "profiler"),
    "an optimizer of python's": config("os.mkdir", "recipe", "optimizer"),
    "a model of python's": config("os.mkdir", "model", "name"),
    "a conv of python's": config("os.mkdir", "conv", "name"),
    "a data set of python's": config("os.mkdir", "data", "name"),
    "last a pickle": pickled("checkpoints/last.ckpt"),
    "last a newer pickle": pickled("checkpoints/last.ckpt", 4),
    "last a checkpoint with an object": saved("checkpoints/last.ckpt"),
    "previous with an object": saved("checkpoints/previous.ckpt"),
    "best a pickle": pickled("checkpoints/best.ckpt"),
    "best with an object": saved("checkpoints/best.ckpt"),
    "predictions that are objects": arrays,
    "modules beside the record": modules,
    "a table with a formula": table,
}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(RUN, tmp_path / "run")


@pytest.fixture
def ran(tmp_path):
    return tmp_path / "ran"


@pytest.mark.parametrize(
    "hostile",
    [  # of the groups, all are refused below and three are used in all ways here
        pytest.param(name, marks=slow_unless(name.split()[-1] not in GROUPS[3:]))
        for name in HOSTILE
    ],
)
def test_nothing_is_executed(folder, ran, hostile):
    HOSTILE[hostile](folder, ran)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for use in (
        lambda: check(resume_settings(folder)),
        lambda: load_results([folder]),
        lambda: dwsep_zoo.load(folder),
        lambda: dwsep_zoo.load(folder / "checkpoints" / "last.ckpt"),
    ):
        with suppress(UserError):
            use()
    assert not ran.exists()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "hostile", [name for name in HOSTILE if "target" in name and "overr" not in name][1:]
)
def test_settings_with_targets_are_refused(folder, ran, hostile):
    HOSTILE[hostile](folder, ran)
    with pytest.raises(UserError, match=r"_target_|tags|callback|profiler|name is missing"):
        check(resume_settings(folder))
    assert not ran.exists()


TEXTS = (
    *(("task_name",), ("tags", 0), ("data", "root"), ("data", "url"), ("paths", "data_dir")),
    *(("paths", "log_dir"), ("model", "pretrained"), ("trainer", "max_time"), ("to",)),
)


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}", "${seed}"])
def test_interpolations_stay_texts(folder, monkeypatch, text):
    monkeypatch.setenv("SECRET", SECRET)
    record = json.loads((folder / "result.json").read_text())
    values = record["config"]
    values["tags"] = [""]
    for path in TEXTS:
        place = values[path[0]] if len(path) > 1 else values
        place[path[-1]] = text
    (folder / "result.json").write_text(json.dumps(record))
    config = resume_settings(folder).plain()
    for path in TEXTS:
        assert (config[path[0]][path[1]] if len(path) > 1 else config[path[0]]) == text
    assert SECRET not in json.dumps(config)


def test_a_run_goes_on_past_the_files_that_are_not_its_own(folder, ran, monkeypatch):
    """To its end, as the user starts it."""
    names = [name for name in HOSTILE if name.startswith(("overrides", "hydra's", "modules"))]
    for name in names:
        HOSTILE[name](folder, ran)
    monkeypatch.setattr("sys.argv", ["train.py"])
    run_train(
        [f"resume={folder}", "profile.roofline=false", "profile.patience=0", "trainer.max_epochs=3"]
    )
    assert not ran.exists()
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "line",
    [
        *("recipe.lr=-1", "recipe.lr=0.001", "trainer.max_epochs=0", "trainer.accelerator=abacus"),
        *("+hydra.callbacks.x=1", "data.root=5", "model=x", "tags=3", "profile.runtimes=[abacus]"),
        *("hydra.run.dir=x", "paths.output_dir=elsewhere", "ckpt_path=5", "trainer.devices=x"),
    ],
)
def test_a_refused_change_leaves_the_bytes_of_the_folder(folder, line, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.argv", ["train.py"])
    if line.startswith(("paths.output_dir", "ckpt_path")):  # set by resume= in any case
        assert resume_settings(folder, dict([line.split("=")])) == resume_settings(folder)
        return
    with pytest.raises(SystemExit) as end:
        run_train([f"resume={folder}", "trainer.max_epochs=5", line])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
