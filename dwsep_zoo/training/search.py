"""Tuning the recipe of a variant before it is trained: ``hparams_search=optuna``."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dwsep_zoo.errors import UserError, choose
from dwsep_zoo.training.shared import shared

log = logging.getLogger("dwsep_zoo")

TUNED = ("lr", "weight_decay")  # keys of the recipe
AROUND = 10  # times smaller and larger than the recipe's own, where no ends are given
KEYS = ("trials", "epochs", "seed", *TUNED)

Trial = Callable[[dict[str, float], int], float]
"""Trains with these values of the recipe, as the trial of this number; validation accuracy."""


def check_search(
    options: dict[str, Any] | None, recipe: dict[str, Any], strategy: str = "auto"
) -> None:
    """Raises UserError for options that cannot work, before anything is loaded."""
    if options is None:
        return
    for key in options:
        choose(key, KEYS, "key of hparams_search")
    for key, least in (("trials", 1), ("epochs", 1), ("seed", 0)):
        value = options[key]
        if not (value is None and key == "epochs") and (
            not isinstance(value, int) or value < least
        ):
            raise UserError(
                f"hparams_search.{key} must be a whole number from {least} up; got {value!r}"
            )
    for key in TUNED:
        ends = options[key]
        if ends is None:
            if not recipe[key] > 0:
                raise UserError(
                    f"hparams_search.{key}=null searches around recipe.{key}, which is "
                    f"{recipe[key]!r}; set hparams_search.{key}=[lowest, highest]"
                )
        elif not (isinstance(ends, list) and len(ends) == 2 and 0 < ends[0] <= ends[1] < math.inf):
            raise UserError(
                f"hparams_search.{key} must be [lowest, highest], both greater than 0, or null; "
                f"got {ends!r}"
            )
    if strategy == "ddp":
        raise UserError("hparams_search cannot run with trainer=ddp; search on one device first")
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "hparams_search needs Optuna, which is not installed: pip install 'dwsep-zoo[search]'"
        ) from error


def space(options: dict[str, Any], recipe: dict[str, Any]) -> dict[str, list[float]]:
    """Both ends of what is searched, by key: as given, or around the recipe's own value."""
    found = {key: options[key] or [recipe[key] / AROUND, recipe[key] * AROUND] for key in TUNED}
    return {key: [float(f"{end:.6g}") for end in ends] for key, ends in found.items()}


def search_recipe(cfg: dict[str, Any], folder: Path, run: Trial) -> dict[str, Any]:
    """Find the learning rate and weight decay of a variant, or read what its last run found.

    The runs of a sweep that differ in nothing but the seed share one search.

    Args:
        cfg: the configuration of the run.
        folder: of the run.
        run: one trial.

    Returns:
        What ``result.json`` has under ``search``: number of trials, space, best values and their
        validation accuracy, all trials.
    """

    def make() -> dict[str, Any]:
        return _search(cfg["hparams_search"], cfg["recipe"], run)

    found, new = shared("search", cfg, folder, make)
    if not new:
        log.info("recipe as searched for this variant: %s", _say(found["best"]))
    return found


def _search(options: dict[str, Any], recipe: dict[str, Any], run: Trial) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends = space(options, recipe)
    distributions: dict[str, Any] = {
        key: optuna.distributions.FloatDistribution(low, high, log=True)
        for key, (low, high) in ends.items()
    }
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=options["seed"])
    )
    for number in range(options["trials"]):
        trial = study.ask(distributions)
        # As many digits as one would type.
        values = {key: float(f"{trial.params[key]:.3g}") for key in TUNED}
        begin = time.perf_counter()
        accuracy = run(values, number)
        study.tell(trial, accuracy)
        log.info(
            "search %d/%d   %s   val acc %.2f%%   %.0f s",
            number + 1,
            options["trials"],
            _say(values),
            100 * accuracy,
            time.perf_counter() - begin,
        )
    best = study.best_trial
    return {
        "trials": len(study.trials),
        "space": ends,
        "best": {key: float(f"{best.params[key]:.3g}") for key in TUNED},
        "best_val_acc": best.value,
        "per": "variant",
        "epochs": options["epochs"],
        "seed": options["seed"],
        "all": [{**t.params, "val_acc": t.value} for t in study.trials],
    }


def _say(values: dict[str, float]) -> str:
    return f"lr {values['lr']:.3g}, weight decay {values['weight_decay']:.3g}"
