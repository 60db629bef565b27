"""Tuning the recipe of a variant before it is trained: ``hparams_search=optuna``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from dwsep_zoo.errors import UserError, install_line
from dwsep_zoo.schema.parse import parse
from dwsep_zoo.schema.record import Search
from dwsep_zoo.schema.settings import Recipe, SearchSettings, Settings
from dwsep_zoo.training.variant import shared

log = logging.getLogger("dwsep_zoo")

TUNED = ("lr", "weight_decay")  # keys of the recipe
AROUND = 10  # times smaller and larger than the recipe's own, where no ends are given

Trial = Callable[[dict[str, float], int], float]
"""Trains with these values of the recipe, as the trial of this number; validation accuracy."""


def check_optuna() -> None:
    """Raises UserError where Optuna is not installed."""
    if find_spec("optuna") is None:
        line = install_line("search")
        raise UserError(f"hparams_search needs Optuna, which is not installed: {line}")


def space(search: SearchSettings, recipe: Recipe) -> dict[str, list[float]]:
    """Lowest and highest value by key: as given, or around the recipe's own value."""
    found = {}
    for key in TUNED:
        own: float = getattr(recipe, key)
        ends = getattr(search, key) or (own / AROUND, own * AROUND)
        found[key] = [float(f"{end:.6g}") for end in ends]
    return found


def search_recipe(settings: Settings, folder: Path, run: Trial) -> Search:
    """Find the learning rate and weight decay of a variant, or read those of its last run.

    The runs of a sweep that differ in nothing but the seed share one search.

    Args:
        settings: those of the run, with ``hparams_search``.
        folder: the run's.
        run: one trial.
    """
    assert settings.hparams_search is not None
    search = settings.hparams_search
    values, new = shared(
        "search", settings, folder, lambda: _search(search, settings.recipe, run).plain()
    )
    found = parse(Search, values, "search")
    if not new:
        log.info("recipe found for this variant earlier: %s", _say(found.best))
    return found


def _search(search: SearchSettings, recipe: Recipe, run: Trial) -> Search:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends = space(search, recipe)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.FloatDistribution(low, high, log=True)
        for key, (low, high) in ends.items()
    }
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=search.seed)
    )
    for number in range(search.trials):
        trial = study.ask(distributions)
        # As many digits as one would type.
        values = {key: float(f"{trial.params[key]:.3g}") for key in TUNED}
        begin = time.perf_counter()
        accuracy = run(values, number)
        study.tell(trial, accuracy)
        log.info(
            "search %d/%d   %s   val acc %.2f%%   %.0f s",
            number + 1,
            search.trials,
            _say(values),
            100 * accuracy,
            time.perf_counter() - begin,
        )
    best = study.best_trial
    return parse(
        Search,
        {
            "trials": len(study.trials),
            "space": ends,
            "best": {key: float(f"{best.params[key]:.3g}") for key in TUNED},
            "best_val_acc": best.value,
            "per": "variant",
            "epochs": search.epochs,
            "seed": search.seed,
            "all": [{**t.params, "val_acc": t.value} for t in study.trials],
        },
    )


def _say(values: Mapping[str, float | None]) -> str:
    return f"lr {values['lr']:.3g}, weight decay {values['weight_decay']:.3g}"
