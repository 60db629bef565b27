"""Command lines: what composes, and what is refused in one line."""

from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.types import RunMode

from dwsep_zoo import UserError, list_convs, list_models
from dwsep_zoo.config import check_overrides, compose_config, config_dir, expand_resume


def compose(*overrides):
    return compose_config([*overrides, "paths.output_dir=unused"])


def files(group):
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))


def test_a_yaml_file_for_every_model_and_conv_type_and_nothing_else():
    assert files("model") == sorted([*list_models(), "default"])
    assert files("conv") == sorted(list_convs())


@pytest.mark.parametrize("group", [p.name for p in config_dir().iterdir() if p.is_dir()])
def test_every_yaml_composes(group):
    if group == "hydra":
        return
    for name in files(group):
        if (group, name) not in {("model", "default"), ("data", "default")}:  # what others share
            compose(f"{group}={name}")


@pytest.mark.parametrize("path", sorted((config_dir() / "experiment").glob("*.yaml")), ids=str)
def test_experiments_open_with_their_command(path):
    text = path.read_text()
    assert text.startswith("# @package _global_")
    assert f"experiment={path.stem}" in text
    assert yaml.safe_load(text)


def test_the_keys_users_type():
    cfg = compose(
        "model=xception",
        "conv=standard",
        "trainer.max_epochs=3",
        "data.batch_size=16",
        "seed=7",
        "tags=[a,b]",
        "paths.data_dir=elsewhere",
        "+trainer.limit_train_batches=0.5",
    )
    assert cfg["model"]["name"] == "xception"
    assert cfg["conv"]["name"] == "standard"
    assert cfg["trainer"]["max_epochs"] == 3
    assert cfg["recipe"]["epochs"] == 20
    assert cfg["data"]["batch_size"] == 16
    assert cfg["seed"] == 7
    assert cfg["tags"] == ["a", "b"]
    assert cfg["trainer"]["limit_train_batches"] == 0.5


def test_the_recipe_is_outside_the_model():
    recipes = [compose(f"model={name}", "conv=standard")["recipe"] for name in list_models()]
    assert all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=mobilnet_v1", "unknown model 'mobilnet_v1'; did you mean 'mobilenet_v1'"),
        (
            "conv=standard,depthwise_seperable",
            "unknown conv 'depthwise_seperable'; did you mean 'depthwise_separable'",
        ),
        ("data=digit", "unknown data 'digit'; did you mean 'digits'"),
        ("modle=mobilenet_v1", "unknown key 'modle'; did you mean 'model'"),
        ("model.width=0.5", "unknown key of model 'width'; did you mean 'width_mult'"),
        ("trainer.max_epoch=3", "unknown key of trainer 'max_epoch'; did you mean 'max_epochs'"),
        ("+recipe.lrr=3", "unknown key of recipe 'lrr'; did you mean 'lr'"),
        ("seed.x=3", "unknown key 'seed.x': seed has no parts"),
        ("seed", "cannot read 'seed': expected key=value"),
        ("data.root=~/pictures", "quotes within the shell's: \"data.root='~/pictures'\""),
        ("paths.log_dir=/dev/null/logs", "cannot write to paths.log_dir=/dev/null/logs"),
    ],
)
def test_messages(override, message):
    with pytest.raises(UserError) as error:
        check_overrides([override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_was_refused_is_read_as_the_message_says():
    check_overrides(["data=folder", "data.root='~/photos (1)'"])


def test_a_folder_of_ones_own_yaml_files(tmp_path):
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "mine.yaml"
    path.write_text("# @package _global_\nseed: 7\n")
    check_overrides(["experiment=mine"], str(tmp_path))
    with pytest.raises(UserError, match="unknown experiment 'mine'"):
        check_overrides(["experiment=mine"])
    with pytest.raises(UserError, match="--config-dir nowhere: there is no such folder"):
        check_overrides([], "nowhere")


def test_a_run_of_an_experiment_that_is_a_sweep_is_resumed_alone(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[experiment=cifar10_ablation, seed=1]")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    overrides = expand_resume([f"resume={tmp_path}"])
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra_compose("train", overrides, return_hydra_config=True)
    assert (cfg.hydra.mode, cfg.seed) == (RunMode.RUN, 1)


def test_configs_are_found_beside_the_package_or_inside_it():
    package = Path(config_dir()).parent
    assert (config_dir() / "train.yaml").is_file()
    assert package.name == "dwsep_zoo" or (package / "dwsep_zoo").is_dir()
