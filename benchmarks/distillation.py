"""Does the standard network teach its separable twin? With and without a teacher, the same seeds.

For every seed a network with ``conv=standard`` is trained, then its separable twin alone, and once
for each lesson with that teacher. All runs have one recipe. A teacher's own training comes on top.

    python benchmarks/distillation.py --root data/cifar10    # CIFAR-10 as pictures in folders
    python benchmarks/distillation.py --data digits --epochs 20

The default trains twelve narrow networks on 2,000 pictures of each class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from record import Ratio, Record, finish, machine, parse, parser

from dwsep_zoo.config import compose_settings
from dwsep_zoo.report.comparison import collect
from dwsep_zoo.report.table import Row, Table
from dwsep_zoo.schema.measures import MEASURES
from dwsep_zoo.schema.record import FILE_NAME
from dwsep_zoo.training import train

LESSONS = ("kd", "js")
SIDES = ("profile.patience=0", "profile.roofline=false", "logger.pictures=false")
PICTURES = ("experiment=cifar10_fast", "data=folder", "recipe.initial_size=null")


def run(folder: Path, seed: int, words: Sequence[str]) -> None:
    """Train once, unless the folder has the run."""
    if not (folder / FILE_NAME).is_file():
        train(compose_settings([*words, f"seed={seed}", f"paths.output_dir={folder}", *SIDES]))
        print(f"trained {folder.name}", flush=True)


def trained(folder: Path, lessons: Sequence[str], seeds: int, words: Sequence[str]) -> Table:
    """Train all networks and put them side by side."""
    for seed in range(seeds):
        teacher = folder / f"teacher-s{seed}"
        run(teacher, seed, ["conv=standard", *words])
        run(folder / f"alone-s{seed}", seed, words)
        for lesson in lessons:
            own = [f"distill={lesson}", f"distill.teacher={teacher}"]
            run(folder / f"{lesson}-s{seed}", seed, [*own, *words])
    (table,) = collect([folder], folder).tables
    return table


def error(row: Row | None) -> float:
    """The mean test error in percent."""
    assert row is not None
    assert row.accuracy is not None
    return 100 * (1 - row.accuracy.mean)


def ratio(row: Row, teacher: Row) -> Ratio:
    """The error of a student with a teacher against that of one without."""
    assert row.paired is not None
    (macs,) = (measure for measure in MEASURES if measure.name == "macs")
    figures = {
        "teacher error %": error(teacher),
        "alone error %": error(row.reference),
        "taught error %": error(row),
        "gain points": 100 * row.paired.mean,
        "teacher M MACs": (teacher.value(macs) or 0) / 1e6,
        "student M MACs": (row.value(macs) or 0) / 1e6,
    }
    value = error(row) / error(row.reference)
    return Ratio(f"{row.first.model}: {row.first.taught}", value, None, figures, at_most=True)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", choices=("pictures", "digits"), default="pictures")
    arguments.add_argument("--root", default="data/cifar10", help="folder with train/ and test/")
    arguments.add_argument("--images", type=int, default=2_000, help="of each class of pictures")
    arguments.add_argument("--model", default="mobilenet_v1")
    arguments.add_argument("--width-mult", type=float, default=0.25)
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--lessons", nargs="+", choices=LESSONS, default=LESSONS)
    arguments.add_argument(
        "--keep", help="folder of the runs, for dwsep compare; finished ones stay"
    )
    options = parse(arguments)
    words = [f"model={options.model}", f"model.width_mult={options.width_mult}", "trainer=cpu"]
    words += [f"recipe.epochs={options.epochs}", "trainer.enable_progress_bar=false"]
    if options.data == "pictures":
        if not Path(options.root).is_dir():
            arguments.error(f"--root: there is no folder {options.root}")
        words = [*PICTURES, f"data.root={options.root}", "model.output_stride=16", *words]
        words.append(f"data.subset.images_per_class={options.images}")
    with tempfile.TemporaryDirectory() as made:
        table = trained(Path(options.keep or made), options.lessons, options.seeds, words)
    (teacher,) = (row for row in table.rows if row.is_reference)
    taught = [row for row in table.rows if row.first.taught and row.paired]
    said = "; ".join(f"{row.first.taught}: {row.paired.words}" for row in taught if row.paired)
    of = f"{options.images} training pictures a class of CIFAR-10"
    conditions = (
        f"{of if options.data == 'pictures' else 'digits'}, width {options.width_mult:g}, "
        f"{options.epochs} epochs, {options.seeds} seeds, each with a teacher of its own and the "
        f"same recipe; {said}. The teacher's training comes on top. {machine()}"
    )
    claim = "Distillation: test error of a separable network with and without its standard twin"
    ratios = [ratio(row, teacher) for row in taught]
    finish(
        Record("distillation", claim, conditions, ratios, options.arguments), check=options.check
    )


if __name__ == "__main__":
    main()
