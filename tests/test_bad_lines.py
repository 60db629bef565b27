"""Bad command lines: every leaf of the schema with hostile values, through the words as typed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from dwsep_zoo import UserError
from dwsep_zoo.cli import main
from dwsep_zoo.commands.train import run_train
from dwsep_zoo.config import compose_settings, read_line
from dwsep_zoo.schema.parse import key_names
from dwsep_zoo.schema.settings import Settings, parse_settings

VALUES = (
    *("null", "inf", "nan", "-1", "1e30", "99999999999999999999", "[[1]]", "{a:1}", "true"),
    *("''", "abc", "'~nobody-here/x'"),
)
BASE = ("hparams_search=optuna", "paths.output_dir=unused")
OPEN = {  # leaves that take nearly any text; what it names is looked up later
    *("to", "tags", "model.pretrained", "model.act", "data.url", "recipe.optimizer"),
}


def leaves() -> list[str]:
    names = [name for name in key_names(Settings) if not name.endswith(".options")]
    groups = {name.rpartition(".")[0] for name in names}
    return [name for name in names if name not in groups]


def changed(values: dict[str, object], key: str, value: object) -> dict[str, object]:
    first, _, rest = key.partition(".")
    inner = values[first]
    if rest:
        assert isinstance(inner, dict)
        value = changed(inner, rest, value)
    return {**values, first: value}


@pytest.fixture(scope="module")
def composed() -> dict[str, object]:
    return compose_settings(BASE).plain()


def refusals(values: dict[str, object], key: str) -> Iterator[str]:
    """What is said of each value that is refused; all others give settings that can be kept."""
    for text in VALUES:
        value = read_line([f"{key}={text}"]).value(key)
        try:
            settings = parse_settings(changed(values, key, value))
        except UserError as error:
            yield str(error)
        else:
            assert parse_settings(settings.plain()) == settings


@pytest.mark.parametrize("key", leaves())
def test_a_leaf_takes_a_value_that_can_be_kept_or_names_it(key, composed):
    said = list(refusals(composed, key))
    assert len(said) >= (2 if key in OPEN else 5)
    for line in said:
        assert "\n" not in line
        assert key in line


@pytest.fixture
def refused(own_logging, tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Run a command line; its one line."""

    def run(*words: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        monkeypatch.setattr(sys, "argv", ["dwsep" if words[0] == "dwsep" else "train.py"])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            main(words[1:]) if words[0] == "dwsep" else run_train(words)
        said = capsys.readouterr()
        assert stop.value.code == 2
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return said.err

    return run


@pytest.mark.parametrize("key", leaves()[::9])
def test_a_sample_on_the_command_line(key, refused):
    assert key in refused("hparams_search=optuna", f"{key}=[[1]]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=range(0,0)"], "has no values"),
        (["-m", "seed=range(0,3,0)"], "seed=range(0,3,0)"),
        (["-m", "seed=range(0,1e9)"], "at most 10,000 values"),
        (["-m", "seed=shuffle(range(0,1000000000))"], "at most 10,000 values"),
        (["-m", "seed=range(0,5000)", "recipe.lr=0.1,0.2,0.3"], "15,000 runs"),
        (["-m", "seed=interval(0,1)"], "name the values"),
        (["-m", "seed=glob(*)"], "seed=glob(*) has no values"),
        (["-m", "recipe.optimizer=sgd,foo"], "unknown recipe.optimizer 'foo'"),
        (["-m", "trainer=default,ddp"], "cannot run inside -m"),
        (["-m", "paths.output_dir=x", "seed=0,1"], "each run has a folder of its own"),
        (["-m", "hydra.sweep.dir=/proc/x", "seed=0,1"], "hydra.sweep.dir=/proc/x"),
        (["seed=3", "-m", "conv=standard,foo"], "unknown conv 'foo'"),
        (["model=glob(xcep*)"], "add -m"),
        (["-m", "trainer.devices=1,2", "seed=0"], "need trainer=ddp"),
        (["-m", "trainer.num_nodes=2", "seed=0,1"], "need trainer=ddp"),
        (["-m", "trainer.strategy=auto,ddp", "trainer.devices=2"], "need trainer=ddp"),
        (["-m", "trainer.strategy=ddp", "seed=0,1"], "cannot run inside -m"),
        (["-m", "data.batch_size=auto", "seed=0,1"], "runs of a sweep steps of different sizes"),
        (["-m", "data.batch_size=64,auto"], "runs of a sweep steps of different sizes"),
        (["-m", "resume=auto", "seed=0,1"], "resume=auto is for one run"),
        (["-m", "resume=x", "seed=0,1"], "cannot be used with -m"),
        (["-m", "seed=0,1", "--jobs", "0"], "--jobs must be 1 to"),
        (["-m", "seed=0,1", "--jobs", "two"], "invalid int value: 'two'"),
        (["--jobs", "1"], "--jobs is for a sweep"),
        (["resume=auto"], "paths.output_dir=FOLDER"),
        (["--retry-failed", "x"], "x is not the folder of a sweep"),
        (["--retry-failed", "x", "seed=1"], "it takes no other words"),
        (["--retry-failed"], "expected one argument"),
        (["hydra.callbacks.x._target_=os.system"], "unknown key of Hydra"),
        (["hydra/launcher=foo"], "unknown key of Hydra"),
        (["hydra.run.dir="], "hydra.run.dir must be text"),
        (["+model@pkg=xception"], "use model=..."),
        (["seed=${foo}"], "seed=${foo}: Interpolation key 'foo' not found"),
        (["~seed"], "seed is missing"),
        (["~lr"], "did you mean recipe.lr"),
        (["hparams_search.lr=[1,2]"], "hparams_search is null"),
        (["resume="], "resume must be text"),
        (["task_name=../x"], "task_name must be the name of a folder"),
        ([f"task_name={'a' * 300}"], "at most 200 bytes"),
        (["paths.log_dir=x/~/y"], "paths.log_dir must be a path"),
        (["paths.log_dir=\udcff"], "not UTF-8"),
        (["paths.log_dir='a\nb'"], "on one line"),
        (["model.output_stride=true"], "model.output_stride"),
        (["trainer.devices=2"], "need trainer=ddp"),
        (["distill.teacher=nowhere"], "distill.teacher: nowhere: no such file"),
        (["distill=kld"], "unknown distill 'kld'; did you mean 'kd'"),
        (["recipe.class_weights=balanced", "data.sampler=balanced"], "use one of them"),
        (["--cfg", "job", "-m", "seed=0,1"], "use one at a time"),
        (["--cfg", "job", "seed=0,1"], "seed=0,1 has several values"),
        (["--cfg", "job", "foo=3"], "unknown key 'foo'"),
        (["--cfg", "job", "--package", "x"], "no such group"),
        (["-sc", "foo=bar"], "unknown task"),
        (["-sc", "query=bash"], "install=bash"),
        (["dwsep", "compare", ""], "folder must be text"),
        (["dwsep", "compare", "~/a=b"], "/a=b does not exist"),
        (["dwsep", "compare", "x", "out="], "out= has no value"),
        (["dwsep", "compare", "x", "out=x/~/y"], "out must be a path"),
        (["dwsep", "list", "conv={a: 1}"], "conv must be a name or"),
        (["dwsep", "doctor", "a=1"], "unknown key 'a'"),
        (["dwsep", "profile", "model=xception", "--roofline", "out=/proc/x.svg"], "out=/proc"),
        (["dwsep", "export-weights", "x", "to=timm", "out=/proc/x.pth"], "out=/proc"),
    ],
    ids=str,
)
def test_kinds_of_bad_lines(words, message, refused):
    assert message in refused(*words)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("epochs=3", "recipe.epochs="),
        ("batch_size=", "data.batch_size="),
        ("optimizer=", "recipe.optimizer="),
        ("optimiser=adam", "recipe.optimizer="),
        ("width=1", "model.width_mult="),
        ("trials=3", "hparams_search.trials="),
        ("++lr=1", "recipe.lr="),
        ("model.lr=1", "recipe.lr="),
        ("recipe.learning_rate=1", "'lr'"),
        ("recipe.epoch=1", "'epochs'"),
        ("gpus=1", "trainer.devices="),
        ("conv=seperable", "'depthwise_separable'"),
        ("conv=spatial", "'spatially_separable'"),
        ("model=mobilenet", "'mobilenet_v1'"),
        ("model=MobileNetV2", "'mobilenet_v2'"),
        ("data=cifar", "'cifar10'"),
        ("seed", "seed="),
    ],
)
def test_hints_name_what_was_meant(typed, meant, refused):
    assert f"did you mean {meant}" in refused(typed)


@pytest.mark.parametrize(
    "text", ["a=b", "it's", "a b", "ü/日本", "a\\b", "a\\'b", "(1)", "a:b", "a@b", "{a", "$x"]
)
def test_paths_are_read_as_they_are_or_as_the_hint_says(text):
    try:
        settings = compose_settings([f"paths.log_dir={text}", *BASE])
    except UserError as error:
        hint = str(error).rpartition("within the shell's: ")[2]
        settings = compose_settings([hint.strip('"'), *BASE])
    assert settings.paths.log_dir == text


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    settings = compose_settings(["paths.log_dir=~/logs"])
    assert settings.paths.log_dir == "/somewhere/logs"
    assert settings.paths.output_dir.startswith("/somewhere/logs/train/runs/")


def exit_code(words: list[str]) -> object:
    try:
        run_train(words)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    "words",
    [
        *("--cfg job", "--cfg hydra", "--cfg all", "--cfg job --resolve", "--info", "--version"),
        *("--cfg job --package recipe", "--info defaults", "--info defaults-tree", "--hydra-help"),
        *("--info config", "--info plugins", "--info searchpath", "-sc install=bash", "--help"),
    ],
)
def test_help_and_information_are_printed(words, own_logging, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert not exit_code(words.split())
    assert capsys.readouterr().out
    assert os.listdir(tmp_path) == []


HEADER = b"# @package _global_\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf" + HEADER + b"seed: 7\n", "byte-order mark"),
        ((HEADER + b"seed: 7\n").decode().encode("utf-16"), "mine.yaml is not UTF-8"),
        (b"seed: 7\n", "must begin with the line '# @package _global_'"),
        (b"", "must begin with the line '# @package _global_'"),
        (b"seed: 7\n" + HEADER, "must begin with the line '# @package _global_'"),
        (HEADER + b"recipe:\n  learning_rate: 7\n", "unknown key of recipe 'learning_rate'"),
        (HEADER + b"recpie:\n  lr: 7\n", "unknown key 'recpie'; did you mean 'recipe'"),
        (HEADER + b"lr: 7\n", "did you mean recipe.lr"),
        (HEADER + b"3: 7\n", "unknown key '3'"),
        (HEADER + b"recipe: adamw\n", "recipe must be a group of keys; got 'adamw'"),
        (HEADER + b"recipe:\n\tlr: 7\n", "mine.yaml"),
        (HEADER + b"seed: 7\nseed: 8\n", "duplicate key seed"),
        (HEADER + b"recipe: &a\n  lr: *a\n", "leads back to itself"),
        (HEADER + b"seed: !!python/object/apply:os.system [ls]\n", "mine.yaml"),
        (HEADER + b"hydra:\n  callbacks:\n    x:\n      _target_: a\n", "hydra.callbacks"),
    ],
)
def test_own_yaml_is_refused_where_it_would_be_ignored(content, message, refused, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_bytes(content)
    assert message in refused("--config-dir", "conf", "experiment=mine")


def test_own_yaml_with_a_name_of_ours_is_refused(refused, tmp_path):
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "default.yaml").write_text("lr: 7\n")
    assert "rename it" in refused("--config-dir", "conf")
