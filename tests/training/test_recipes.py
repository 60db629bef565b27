"""The recipes of papers: each printed number, with where it is printed."""

from __future__ import annotations

import csv

import pytest
import torch
from helpers import composed

from dwsep_zoo.cli import main
from dwsep_zoo.data.loader import balanced_images
from dwsep_zoo.schema.settings import parse_settings
from dwsep_zoo.training.course import course_of
from dwsep_zoo.training.prepare import network_without_data

RMSPROP = {"optimizer": "rmsproptf", "momentum": 0.9}  # timm's decay is 0.9
PRINTED = {
    # section 3.2: RMSprop "similar to Inception V3" (arXiv:1512.00567, section 8), no label
    # smoothing, no decay of depthwise filters
    "mobilenet_v1": {
        **RMSPROP,
        **{"lr": 0.045, "decay_rate": 0.94, "decay_epochs": 2, "eps": 1.0, "epochs": 100},
        **{"lr_batch": 32, "label_smoothing": 0, "decay_depthwise": False},
    },
    # section 6.1: decay, momentum 0.9, weight decay 0.00004, 0.045 x 0.98 an epoch, batches of 96
    "mobilenet_v2": {
        **RMSPROP,
        **{"lr": 0.045, "decay_rate": 0.98, "decay_epochs": 1, "lr_batch": 96},
        **{"weight_decay": 0.00004},
    },
    # section 6.1.1: momentum 0.9, 0.1 at 4096 images, decay rate of 0.01 every 3 epochs, l2 1e-5,
    # average with 0.9999
    "mobilenet_v3": {
        **RMSPROP,
        **{"lr": 0.1, "decay_rate": 1 - 0.01, "decay_epochs": 3, "lr_batch": 4096},
        **{"weight_decay": 1e-5, "model_ema_decay": 0.9999},
    },
    # sections 4.2 and 4.3: SGD, momentum 0.9, 0.045 x 0.94 every 2 epochs, weight decay 1e-5
    "xception": {
        **{"optimizer": "momentum", "momentum": 0.9, "lr": 0.045},
        **{"decay_rate": 0.94, "decay_epochs": 2, "weight_decay": 1e-5, "label_smoothing": 0},
    },
    # section 5.2: decay and momentum 0.9, weight decay 1e-5, 0.256 x 0.97 every 2.4 epochs
    "efficientnet": {
        **RMSPROP,
        **{"lr": 0.256, "decay_rate": 0.97, "decay_epochs": 2.4, "weight_decay": 1e-5},
        # its code: 0.016 for 256 images, a warm-up of 5 in 350 epochs, smoothing, average, epsilon
        **{"lr_batch": 0.256 / 0.016 * 256, "warmup_fraction": pytest.approx(5 / 350)},
        **{"label_smoothing": 0.1, "model_ema_decay": 0.9999, "eps": 0.001, "epochs": 350},
    },
}
DROPPED = {"mobilenet_v3": 1 - 0.8, "xception": 0.5, "efficientnet": 0.2}
"""Before the classifier, in the same sections: V3's paper prints what is kept."""


@pytest.mark.parametrize("name", PRINTED)
def test_a_papers_recipe_has_its_numbers(name):
    own = composed(f"recipe={name}_paper").recipe
    found = {key: getattr(own, key) for key in PRINTED[name]}
    assert found == PRINTED[name]
    assert (own.schedule, own.staircase, own.norm_statistics) == ("exponential", True, "running")


@pytest.mark.parametrize("name", PRINTED)
def test_a_papers_experiment_is_of_its_recipe_and_batch(name):
    """The recipe's rates are those of the experiment's steps."""
    settings = composed(f"experiment={name}_paper", "data.root=unused")
    assert settings.recipe == composed(f"recipe={name}_paper").recipe
    step = settings.data.batch_size * settings.trainer.accumulate_grad_batches
    assert step == settings.recipe.lr_batch
    assert settings.data.name == "imagenet"
    assert settings.model.name.startswith(name)


@pytest.mark.parametrize("name", DROPPED)
def test_a_papers_network_has_its_dropout(name):
    from dwsep_zoo import create_model

    network = composed(f"experiment={name}_paper", "data.root=unused").model
    assert network.drop_rate is None
    dropped = create_model(network.name, width_mult=0.25).drop_rate
    assert dropped == pytest.approx(DROPPED[name])


def test_the_rate_of_a_run_is_for_its_batch(run, tmp_path):
    """4 steps of 32 images an epoch; 5 of 350 epochs of warm-up are none of two."""
    result = run("run", "recipe=efficientnet_paper")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        first, second = (float(row["train/lr"]) for row in csv.DictReader(file))
    assert first == second == pytest.approx(0.016 * 32 / 256)
    settings = parse_settings(result["config"])
    course = course_of(settings, result["network"], images=1259, image_size=32)
    assert (course.steps, course.images) == (8, 32)
    assert course.rates == {"all": pytest.approx([first] * 8)}
    assert course.average == pytest.approx([min(0.9999, (1 + n) / (10 + n)) for n in range(8)])


@pytest.mark.parametrize(
    ("change", "images", "steps"),
    [
        ("data.sampler=balanced", balanced_images(1259, 10), 1),
        ("trainer.overfit_batches=4", 1259, 2),
    ],
)
def test_the_course_has_the_steps_of_the_training(change, images, steps, run, tmp_path):
    """Three or four batches an epoch, three of which make a step."""
    of_epoch = ("data.batch_size=314", "trainer.accumulate_grad_batches=3")
    result = run("run", *of_epoch, change, "trainer.limit_train_batches=null", "test=false")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2 * steps
    settings = parse_settings(result["config"])
    course = course_of(settings, result["network"], images=images, image_size=32)
    assert course.steps == 2 * steps


def test_the_course_of_a_recipe_has_every_part():
    """Rates of parts, the classifier alone at first, and growing images: as a training has them."""
    settings = composed("recipe=finetune", "recipe.initial_size=16", "data.batch_size=50")
    network = network_without_data(settings)
    course = course_of(settings, network, images=1000, image_size=32)
    assert course.steps == 10 * 20
    assert course.alone == 1
    peak = max(course.rates["classifier"])
    assert peak == pytest.approx(settings.recipe.lr)
    first, *_, last = course.rates
    assert (first, last) == ("stem", "classifier")
    behind = [number for number, epoch in enumerate(course.epochs) if epoch >= 1]
    for number, part in enumerate(reversed(course.rates)):
        assert max(course.rates[part]) == pytest.approx(peak * 0.8**number)
        assert (course.rates[part][0] > 0) == (part == "classifier")
        own, classifier = ([course.rates[p][n] for n in behind] for p in (part, "classifier"))
        assert own == pytest.approx([0.8**number * rate for rate in classifier])
    assert (course.sizes[0], course.sizes[-1]) == (16, 32)
    assert list(course.sizes) == sorted(course.sizes)


def test_the_command_draws_it_without_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["recipe", "experiment=mobilenet_v2_paper", "data.root=none", "images=1281167"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{1281167 // 96 * 412:,} steps of 96 images"
    assert lines[2].split() == ["0.0", "0.045"]
    assert float(lines[-2].split()[-1]) == pytest.approx(0.045 * 0.98**411, rel=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("recipe=nix", "unknown recipe 'nix'"),
        ("recipe.lrr=1", "unknown key of recipe 'lrr'"),
        ("images=1", "images must be at least 2"),
        ("trainer.accumulate_grad_batches=2 trainer.limit_train_batches=0.0", "make no step"),
    ],
)
def test_a_wrong_line_is_refused(line, said, capsys):
    with pytest.raises(SystemExit):
        main(["recipe", *line.split()])
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_a_run_by_it_learns(name, run):
    """30 steps on digits: rates follow the batch, averages are not of the first weights."""
    result = run(
        name, f"recipe={name}_paper", "trainer.max_epochs=3", "trainer.limit_train_batches=1.0"
    )
    chance = 0.1
    assert result["metrics"]["val/acc"] > 2 * chance
