"""Command lines: what composes, and what is refused in one line."""

from pathlib import Path

import pytest
import yaml

from dwsep_zoo import UserError, list_convs, list_models
from dwsep_zoo.config import check_overrides, compose_config, config_dir


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
        ("paths.log_dir=/dev/null/logs", "cannot write to paths.log_dir=/dev/null/logs"),
    ],
)
def test_messages(override, message):
    with pytest.raises(UserError) as error:
        check_overrides([override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_configs_are_found_beside_the_package_or_inside_it():
    package = Path(config_dir()).parent
    assert (config_dir() / "train.yaml").is_file()
    assert package.name == "dwsep_zoo" or (package / "dwsep_zoo").is_dir()
