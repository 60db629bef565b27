"""Command lines: composed, parsed, and refused in one line before anything is written."""

import sys
from pathlib import Path

import pytest
import yaml
from helpers import composed

from dwsep_zoo import UserError, list_convs, list_models
from dwsep_zoo.commands.train import run_train
from dwsep_zoo.config import compose_line, compose_settings, config_dir, read_line
from dwsep_zoo.schema.settings import parse_settings

pytestmark = pytest.mark.bounds


def files(group):
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))


SHARED = {("model", "default"), ("data", "default")}
NAMED = [
    f"{group.name}={name}"
    for group in sorted(config_dir().iterdir())
    if group.is_dir() and group.name != "hydra"
    for name in files(group.name)
    if (group.name, name) not in SHARED
]


def test_a_yaml_file_for_every_model_and_conv_type_and_nothing_else():
    assert files("model") == sorted([*list_models(), "default"])
    assert files("conv") == sorted(list_convs())


@pytest.mark.parametrize("name", NAMED)
def test_every_yaml_composes_and_survives_the_record(name):
    settings = composed(name)
    assert parse_settings(settings.plain()) == settings


@pytest.mark.parametrize("path", sorted((config_dir() / "experiment").glob("*.yaml")), ids=str)
def test_experiments_open_with_their_command(path):
    text = path.read_text()
    assert text.startswith("# @package _global_")
    assert f"experiment={path.stem}" in text
    assert yaml.safe_load(text)


def test_the_keys_users_type():
    settings = compose_settings(
        [
            *("model=xception", "conv=standard", "trainer.max_epochs=3", "data.batch_size=16"),
            *("seed=7", "tags=[a,b]", "paths.data_dir=elsewhere", "hparams_search=null"),
            "+trainer.limit_train_batches=0.5",
        ]
    )
    assert (settings.model.name, settings.conv.name) == ("xception", "standard")
    assert (settings.trainer.max_epochs, settings.recipe.epochs) == (3, 20)
    assert (settings.data.batch_size, settings.seed, settings.tags) == (16, 7, ("a", "b"))
    assert settings.trainer.limit_train_batches == 0.5
    assert settings.hparams_search is None


def test_the_recipe_is_outside_the_model():
    named = [f"model={name}" for name in list_models()]
    recipes = {composed(one).recipe.model_dump_json() for one in [*named, "conv=standard"]}
    assert len(recipes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=mobilnet_v1", "unknown model 'mobilnet_v1'; did you mean 'mobilenet_v"),
        ("model=null", "unknown model 'null'"),
        ("model=default", "unknown model 'default'"),
        ("-m conv=standard,depthwise_seperable", "did you mean 'depthwise_separable'"),
        ("-m seed=0,-1", "seed must be at least 0; got -1"),
        ("data=digit", "unknown data 'digit'; did you mean 'digits'"),
        ("modle=mobilenet_v1", "unknown key 'modle'; did you mean 'model'"),
        ("lr=0.1", "did you mean recipe.lr=...?"),
        ("lr", "did you mean recipe.lr=...?"),
        ("batch_size=3", "did you mean data.batch_size=...?"),
        ("model.width=0.5", "unknown key of model 'width'; did you mean 'width_mult'"),
        ("+recipe.lrr=3", "unknown key of recipe 'lrr'; did you mean 'lr'"),
        ("seed.x=3", "unknown key 'seed.x': seed has no parts"),
        ("conv=standard,grouped", "has several values; add -m"),
        ("data=folder data.root=~/nowhere", "/nowhere: there is no such folder"),
        ("tags=[ü]", "quotes within the shell's: \"tags='[ü]'\""),
        ("paths.log_dir=/dev/null/logs", "cannot write to paths.log_dir=/dev/null/logs"),
        ("paths.log_dir=[a]", "paths.log_dir must be text; got ['a']"),
        ("recipe=null", "unknown recipe 'null'"),
        ("data.augment=foo", "data.augment must be a group of keys; got 'foo'"),
        ("--foo", "unrecognized arguments: --foo"),
        ("--info foo", "invalid choice: 'foo'"),
        ("--config-dir nowhere", "--config-dir nowhere: there is no such folder"),
        ("resume=nowhere", "resume=nowhere: not the folder of a run"),
        ("-m resume=last seed=0,1", "it cannot be used with -m"),
        ("recipe.optimizer=sdg", "unknown recipe.optimizer 'sdg'; did you mean 'sgd'"),
        ("data=folder data.root=nowhere", "data.root=nowhere: there is no such folder"),
        ("data.cache=true", "data.cache=true has no effect on data=digits"),
        ("profile.runtimes=[foo]", "unknown runtime 'foo'"),
        ("trainer.max_time=abc", "trainer: "),
        ("ckpt_path=.", "ckpt_path=.: there is no checkpoint"),
        ("tags={a:1}", "tags"),
        ("recipe.lr=${oc.env:NOWHERE}", "Environment variable 'NOWHERE' not found"),
        ("seed=${seed}", "Recursive interpolation"),
        ("+conv.foo=3", "unknown option of conv=depthwise_separable 'foo'"),
        ("+model.foo=3", "unknown option of mobilenet_v1 'foo'"),
        ("recipe.initial_size=1000", "recipe.initial_size must be"),
        ("~recipe.lr", "recipe.lr is missing"),
    ],
)
def test_a_command_line_that_is_refused_is_one_line_and_leaves_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        run_train()
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_yaml_files(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    line = read_line(["experiment=mine"], str(tmp_path))
    assert compose_line(line, line.first).settings.seed == 7
    with pytest.raises(UserError, match="unknown experiment 'mine'"):
        compose_settings(["experiment=mine"])


def test_help_has_every_key_with_its_value(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help", "seed=3"])
    run_train()
    said = capsys.readouterr().out
    for part in ("model=", "recipe.lr=0.1", "seed=3", "trainer.limit_train_batches=null"):
        assert part in said


def test_configs_are_found_beside_the_package_or_inside_it():
    package = Path(config_dir()).parent
    assert (config_dir() / "train.yaml").is_file()
    assert package.name == "dwsep_zoo" or (package / "dwsep_zoo").is_dir()
