"""The recipes of papers: each printed number, with where it is printed."""

from __future__ import annotations

import csv

import pytest
from helpers import composed

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
    run("run", "recipe=efficientnet_paper")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        first, second = (float(row["train/lr"]) for row in csv.DictReader(file))
    assert first == second == pytest.approx(0.016 * 32 / 256)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_a_run_by_it_learns(name, run):
    """30 steps on digits: rates follow the batch, averages are not of the first weights."""
    result = run(
        name, f"recipe={name}_paper", "trainer.max_epochs=3", "trainer.limit_train_batches=1.0"
    )
    chance = 0.1
    assert result["metrics"]["val/acc"] > 2 * chance
