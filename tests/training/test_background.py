"""The colour below transparent pictures: of a run, of what is made of it, and of its table."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from data_helpers import data_settings
from PIL import Image

from dwsep_zoo import UserError, open_artefact
from dwsep_zoo.artefacts import evaluate
from dwsep_zoo.artefacts.data import batches, data_for, ready
from dwsep_zoo.report import load_results

BLUE = "#204060"


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures with holes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels, "RGBA").save(path)
    return tmp_path / "pictures"


@pytest.fixture
def blue(run, folder, tmp_path):
    """Overrides of a run on it, which has been made."""
    overrides = ["data=folder", f"data.root={folder}", "data.batch_size=8"]
    run("run", *overrides, f"data.background='{BLUE}'", "trainer.max_epochs=1")
    return overrides


def test_whatever_is_made_of_a_run_sees_pictures_as_it_did(blue, folder, tmp_path):
    alone = shutil.copy(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    path = next(folder.rglob("*.png"))
    filled = Image.new("RGBA", (32, 32), BLUE)
    filled.alpha_composite(Image.open(path))
    for source in (tmp_path / "run", alone):
        artefact = open_artefact(source)
        assert artefact.about.background == BLUE
        seen, expected = artefact.preprocess([path]), artefact.preprocess([filled.convert("RGB")])
        torch.testing.assert_close(seen, expected, atol=0.02, rtol=0)  # of 1 / 255
        settings = data_settings("folder", root=str(folder))
        data = ready(artefact, data_for(artefact, settings, tmp_path / "data"))
        images = torch.cat([images for images, _ in batches(data, "test")])
        names = [folder / name for name in data.splits["test"].names]
        assert torch.equal(images, artefact.preprocess(names))


def test_weights_bring_the_background_and_the_table_has_it(blue, run, tmp_path):
    begun = f"model.pretrained={tmp_path / 'run'}"
    run("next", *blue, begun, "trainer.max_epochs=1")
    run("white", *blue, "data.background=white", "trainer.max_epochs=1")
    run("plain", *blue, "trainer.max_epochs=1")
    runs = {run.name: run for run in load_results([tmp_path])[0]}
    found = {name: dict(run.setting).get("data.background") for name, run in runs.items()}
    assert found == {"run": BLUE, "next": BLUE, "white": None, "plain": None}
    assert runs["white"].setting == runs["plain"].setting
    assert (
        evaluate(open_artefact(tmp_path / "run"), data_dir=tmp_path / "data").record.data.background
        == BLUE
    )


def test_a_run_does_not_go_on_with_another_one(blue, run, tmp_path):
    with pytest.raises(UserError, match=f"cannot change data.background from '{BLUE}' to"):
        run("run", f"resume={tmp_path / 'run'}", "data.background=black", "trainer.max_epochs=2")
