"""The pictures of a run: their words and numbers are those of the run, and none fails it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dwsep_zoo.errors import UserError
from dwsep_zoo.report.classes import confusions, per_class, surest_mistakes
from dwsep_zoo.report.pictures import (
    PICTURES,
    Captioned,
    Course,
    RunParts,
    draw_pictures,
    sheet_picture,
)
from dwsep_zoo.report.pictures.tiles import filter_mosaic
from dwsep_zoo.report.predictions import Predictions
from dwsep_zoo.report.tensorboard import write_pictures
from dwsep_zoo.schema.record import parse_record

EPOCHS = [{"epoch": e, "train/loss": 9.0 / e, "val/loss": 0.1, "val/acc": 0.5} for e in (1, 2)]
COURSE = Course(
    epochs=(0, 0.5, 1),
    rates={"stem": (0.1, 0.2, 0.1), "classifier": (1, 2, 1)},
    decays=False,
    sizes=(24, 24, 32),
    average=(0.1, 0.2, 0.3),
    alone=1,
    steps=3,
    images=1234,
)
ODD = ("cat", "\u72ac", "$x_$", "a very long name of a class", "by\udcffte", "")


def parts(num_images: int = 60, num_classes: int = 6, side: int = 9, chans: int = 3) -> RunParts:
    """A run that never was."""
    random = np.random.default_rng(0)
    names = [ODD[n] if n < len(ODD) else f"class {n}" for n in range(num_classes)]
    probability = random.dirichlet(np.ones(num_classes), num_images).astype(np.float16)
    label, name = random.integers(0, num_classes, num_images), [f"{i}.png" for i in range(999)]
    found = Predictions(
        label, probability.argmax(1), tuple(names), probability, None, np.array(name[:num_images])
    )
    record = {"schema": 4, "model": "mobilenet_v1", "conv": "blueprint", "best_epoch": 2}
    # A record is UTF-8 and holds no odd bytes.
    listed = [text.encode("utf-8", "replace").decode() for text in names]
    return RunParts(
        parse_record({**record, "data": {"name": "folder", "class_names": listed}}),
        EPOCHS,
        lambda: found,
        lambda: captioned(random, side, chans, [names[place] for place in label[:40]]),
        lambda places: random.random((len(places), side, side, chans)).astype(np.float32),
        lambda: {"first": random.normal(size=(70, 3, 3)), "second": np.zeros((2, 5, 1))},
        lambda: COURSE,
    )


def captioned(random: np.random.Generator, side: int, chans: int, captions: list[str]) -> Captioned:
    """Random images with words about them."""
    return random.random((len(captions), side, side, chans)).astype(np.float32), captions


def words(name: str, run: RunParts) -> list[str]:
    """The texts of a picture."""
    return [text.get_text() for text in PICTURES[name](run).figure.findobj(Text)]


@pytest.mark.parametrize(("num_classes", "side", "chans"), [(2, 9, 1), (6, 70, 3), (130, 9, 3)])
def test_all_of_them_are_drawn(tmp_path, num_classes, side, chans):
    EventFileWriter(str(tmp_path)).close()
    with Image.new("L", (3, 2)) as image:
        image.save(tmp_path / "earlier.png")
    write_pictures(tmp_path, {"batch": (tmp_path / "earlier.png").read_bytes()})
    drawn = draw_pictures(parts(60, num_classes, side, chans), tmp_path)
    assert (drawn.left_out, drawn.failed) == ({}, {})
    assert drawn.names == [f"{name}.png" for name in PICTURES]
    for name in drawn.names:
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(set(image.convert("L").tobytes())) > 20  # not blank
    # TensorBoard has the same ones, once
    assert len(list(tmp_path.glob("*.pictures"))) == 1
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"run/{name}" for name in PICTURES]
    for name in PICTURES:
        (image,) = events.Images(f"run/{name}")
        assert image.encoded_image_string == (tmp_path / f"{name}.png").read_bytes()


def test_mistakes_are_named_in_their_order():
    run = parts(num_classes=3)
    found = run.predictions()
    texts = words("mistakes", run)
    places = surest_mistakes(found, 24)
    sure = found.probability_of(found.predicted)
    said = [text for text in texts if text.startswith("said: ")]
    assert said == [f"said: {ODD[found.predicted[p]]}, {100 * sure[p]:.0f} %" for p in places]
    assert [t for t in texts if t.startswith("true: ")] == [
        f"true: {ODD[found.label[p]]}" for p in places
    ]
    assert [t for t in texts if t.endswith(".png")] == [f"{p}.png" for p in places]


def test_the_matrix_has_the_shares_of_each_class():
    run = parts(num_classes=4)
    found, figure = run.predictions(), PICTURES["confusion"](run).figure
    right, wrong = (np.ma.filled(one.get_array(), 0) for one in figure.axes[0].images)
    assert (right + wrong).sum(1) == pytest.approx(np.ones(4))
    scores = per_class(found, 4)
    assert right == pytest.approx(np.diag(scores.accuracy))
    assert not np.diag(wrong).any()
    bars = [bar.get_width() for bar in figure.axes[1].patches]
    assert bars == pytest.approx([100 * accuracy for accuracy in scores.accuracy])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][:2] == ["cat", "\u72ac"]


def test_many_classes_are_listed_by_name():
    run = parts(400, num_classes=50)
    figure = PICTURES["confusion"](run).figure
    worst = confusions(run.predictions(), 20)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [one.images for one in worst]
    first = figure.axes[0].get_yticklabels()[0].get_text()
    assert first.startswith(run.class_name(worst[0].true)[:10])
    bars = [bar.get_width() for bar in figure.axes[1].patches]
    every = [100 * a for a in per_class(run.predictions(), 50).accuracy if a is not None]
    assert bars == pytest.approx(sorted(every)[:20])


def test_filters_are_scaled_one_by_one():
    weights = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    weights[3] = 0
    grid = filter_mosaic(weights, 4)
    assert grid.shape == (2 * 4 - 1, 4 * 3 - 1)
    for n, filter in enumerate(weights):
        row, column = divmod(n, 4)
        cell = grid[4 * row : 4 * row + 3, 3 * column : 3 * column + 2]
        assert cell * np.abs(filter).max() == pytest.approx(filter)
        assert np.abs(cell).max() == pytest.approx(float(n != 3))
    assert np.isnan(grid[3]).all()
    assert np.isfinite(grid).sum() == weights.size


def broken() -> None:
    raise RuntimeError("no\nmemory")


def gone() -> None:
    raise UserError("the data are gone")


def test_a_picture_that_fails_fails_alone_and_the_earlier_one_stays(tmp_path):
    run = parts()
    earlier = {name: tmp_path / f"{name}.png" for name in ("batch", "mistakes", "filters")}
    for file in earlier.values():
        file.write_text("earlier")
    (tmp_path / "curves.png").mkdir()
    found = run.predictions()
    older = Predictions(found.label, found.predicted)
    run = replace(run, batch=broken, filters=gone, predictions=lambda: older)
    drawn = draw_pictures(run, tmp_path)
    assert (drawn.names, drawn.left_out) == (["confusion.png", "recipe.png"], {})
    assert drawn.failed.pop("curves.png")
    assert drawn.failed == {
        "batch.png": "RuntimeError: no",
        "filters.png": "the data are gone",
        "mistakes.png": "predictions.npz is of an older version, without probabilities",
    }
    assert [file.read_text() for file in earlier.values()] == ["earlier"] * 3
    assert len(list(tmp_path.iterdir())) == 6


def test_nothing_to_show_leaves_no_picture(tmp_path):
    run = parts()
    (tmp_path / "mistakes.png").write_text("of an earlier epoch")
    found = run.predictions()
    right = Predictions(found.label, found.label, found.class_names, found.probability)
    run = replace(run, predictions=lambda: right, filters=dict, epochs=())
    drawn = draw_pictures(run, tmp_path)
    assert set(drawn.left_out) == {"mistakes.png", "curves.png", "filters.png"}
    assert drawn.left_out["mistakes.png"] == "all 60 test images are classified correctly"
    assert "conv=blueprint" in drawn.left_out["filters.png"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"batch.png", "confusion.png", "recipe.png"}


def test_the_course_of_a_recipe_names_its_parts_and_shows_what_changes():
    shown = words("recipe", parts())
    assert {"stem", "classifier", "learning rate"} <= set(shown)
    assert any("3 steps of 1,234 images" in text for text in shown)
    assert any("side" in text for text in shown)
    plain = replace(COURSE, rates={"all": (1, 2, 3)}, sizes=(32,) * 3, average=())
    shown = words("recipe", replace(parts(), course=lambda: plain))
    assert not any("side" in text or "average" in text or text == "all" for text in shown)


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_each_epoch():
    random = np.random.default_rng(0)
    epochs = [
        captioned(
            random, side, 3, [f"{n} % {side}\n{100 - n} % {odd}" for n, odd in enumerate(ODD)]
        )
        for side in (8, 12, 12)
    ]
    drawing = sheet_picture("a title", epochs)
    found = [text.get_text() for text in drawing.figure.findobj(Text)]
    assert any("6 training pictures" in text and "epochs 1 to 3" in text for text in found)
    assert any("8 x 8 pixels to 12 x 12 pixels" in text for text in found)
    (axes,) = drawing.figure.axes
    assert len(axes.images) == 18
    assert [image.get_array().shape[0] for image in axes.images] == [8, 12, 12] * 6
    rows = [f"{n} % {side}" for n in range(6) for side in (8, 12, 12)]
    assert [text for text in found if text in rows] == rows


@pytest.mark.parametrize("recipe", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": None}])
def test_curves_say_which_class_of_a_mixed_image_counts(recipe):
    run = parts()
    run = replace(run, record=run.record.model_copy(update={"config": {"recipe": recipe}}))
    said = any("larger share" in text for text in words("curves", run))
    assert said == any(recipe.values())
