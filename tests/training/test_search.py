"""Tuning a variant's recipe before its run."""

import json
import re

import pytest

from dwsep_zoo import UserError, create_model
from dwsep_zoo.config import compose_settings, config_dir
from dwsep_zoo.errors import install_line
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.record import Search
from dwsep_zoo.training.search import search_recipe, space
from dwsep_zoo.training.trainer import create_trainer

optuna = pytest.importorskip("optuna")
OPTIONS = (
    *("hparams_search=optuna", "hparams_search.trials=6", "hparams_search.epochs=1"),
    *("hparams_search.seed=0", "hparams_search.lr=[0.01,1.0]"),
    "hparams_search.weight_decay=[1e-5,1e-2]",
)


def searched(tmp_path, run, *changes):
    return search_recipe(compose_settings([*OPTIONS, *changes]), tmp_path, run)


def test_the_best_trial_wins_and_all_are_kept(tmp_path):
    seen = []

    def accuracy(values):
        return -abs(values["lr"] - 0.1) - values["weight_decay"]

    def run(values, number):
        seen.append(values)
        return accuracy(values)

    found = searched(tmp_path, run)
    assert len(seen) == len(found.all) == found.trials == 6
    assert all(0.01 <= v["lr"] <= 1 and 1e-5 <= v["weight_decay"] <= 1e-2 for v in seen)
    assert found.best == max(seen, key=accuracy)
    assert found.best_val_acc == max(t["val_acc"] for t in found.all)
    assert parse(Search, json.loads(json.dumps(found.plain()))) == found


def test_seeds_of_a_sweep_share_one_search_and_variants_do_not(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    numbers = []

    def run(values, number):
        numbers.append(number)
        return values["lr"]

    found = [searched(tmp_path / str(seed), run, f"seed={seed}") for seed in (0, 1)]
    assert found[0] == found[1]
    assert numbers == list(range(6))
    searched(tmp_path / "2", run, "recipe.epochs=3")
    assert numbers == 2 * list(range(6))


def test_the_same_seed_tries_the_same_recipes(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (searched(folder, lambda values, _: values["lr"]).all for folder in folders)
    assert first == second


def test_a_run_uses_what_was_found(run, tmp_path):
    options = (
        "hparams_search=optuna",
        "hparams_search.trials=2",
        "hparams_search.epochs=1",
        "trainer.max_epochs=1",
    )
    result = run("a", *options)
    best = result["search"]["best"]
    assert {key: result["config"]["recipe"][key] for key in best} == best
    assert result["search"]["trials"] == 2
    # The run itself is what it would have been with that recipe and no search.
    plain = run(
        "b", "trainer.max_epochs=1", *(f"recipe.{key}={value}" for key, value in best.items())
    )
    assert result["metrics"] == plain["metrics"]
    assert plain.get("search") is None


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_dir() / "recipe").glob("*.yaml")))
def test_what_is_searched_lies_around_the_recipes_own_values(name):
    settings = compose_settings(["hparams_search=optuna", f"recipe={name}"])
    for key, (low, high) in space(settings.hparams_search, settings.recipe).items():
        assert low == pytest.approx(getattr(settings.recipe, key) / 10)
        assert high == pytest.approx(getattr(settings.recipe, key) * 10)
    given = settings.hparams_search.replace(lr=[0.2, 0.3])
    assert space(given, settings.recipe)["lr"] == [0.2, 0.3]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hparams_search.trials=0", "hparams_search.trials must be at least 1; got 0"),
        ("hparams_search.lr=[1,0.1]", "hparams_search.lr"),
        ("hparams_search.lr=0.1", "hparams_search.lr must be a list; got 0.1"),
        ("recipe.weight_decay=0", "searches around recipe.weight_decay, which is 0"),
        ("trainer.strategy=ddp", "one device"),
        ("hparams_search.trails=3", "did you mean 'trials'"),
    ],
)
def test_options_that_cannot_work(run, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run("run", "hparams_search=optuna", override)


def test_without_optuna_the_line_that_installs_it(run, monkeypatch):
    monkeypatch.setattr("dwsep_zoo.training.search.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(install_line("search"))):
        run("run", "hparams_search=optuna")


def test_a_trial_leaves_nothing_behind(run, tmp_path, monkeypatch):
    made = []

    def spy(cfg, folder, callbacks, **options):
        trainer = create_trainer(cfg, folder, callbacks, **options)
        made.append((options.get("save", True), trainer.logger, trainer.checkpoint_callback))
        return trainer

    monkeypatch.setattr("dwsep_zoo.training.run.create_trainer", spy)
    run("run", "hparams_search=optuna", "hparams_search.trials=1", "trainer.max_epochs=1")
    (trial, own) = made
    assert trial == (False, None, None)
    assert own[0]
    names = {p.name.split("-")[0] for p in (tmp_path / "run").iterdir() if p.suffix == ".json"}
    assert names == {"result.json", "search"}


def test_trials_begin_with_the_weights_that_the_run_begins_with(run, tmp_path, monkeypatch):
    run("a")
    seen = []

    def spy(name, **options):
        seen.append(options["pretrained"])
        return create_model(name, **options)

    monkeypatch.setattr("dwsep_zoo.training.run.create_model", spy)
    trained = str(tmp_path / "a")
    search = ("hparams_search=optuna", "hparams_search.trials=1", "trainer.max_epochs=1")
    run("b", f"model.pretrained={trained}", *search)
    assert seen == [trained]
