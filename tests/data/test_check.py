"""The look at a data set before training."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_helpers import load_data
from PIL import Image, ImageEnhance

from dwsep_zoo.cli import main


def _scene(seed: int) -> Image.Image:
    """Smooth blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((60, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    """Ten scenes of each of two classes; some of the test repeat those of train."""
    root = tmp_path / "scenes"
    for i in range(20):
        path = root / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _scene(i).save(path)
    for name in "ab":
        (root / "test" / name).mkdir(parents=True)
    test = root / "test" / "a"
    _scene(0).save(test / "same.png")
    _scene(1).save(test / "other_label.png")
    _scene(2).resize((44, 36)).save(test / "smaller.jpg", quality=60)
    ImageEnhance.Brightness(_scene(4)).enhance(1.15).convert("L").save(test / "grey.png")
    _scene(50).save(test / "new.png")
    Image.new("RGB", (900, 3), "red").save(test / "thin.png")
    (root / "test" / "b" / "bad.jpg").write_bytes(b"no picture")
    _scene(60).save(root / "test" / "b" / "fine.png")
    return root


def _checked(capsys, *words: str) -> dict[str, object]:
    main(["data", "check", "--json", *words])
    return json.loads(capsys.readouterr().out)


def test_what_is_wrong_is_found(root, capsys):
    found = _checked(capsys, str(root))
    assert found["pictures"] == 28
    assert list(found["unreadable"]) == ["test/test/b/bad.jpg"]
    assert found["fingerprint"] is None
    assert found["classes"]["test"] == {"a": 6, "b": 2}
    same = {frozenset(name.rsplit("/", 1)[1] for name in group) for group in found["same"]}
    assert same == {frozenset({"0.png", "same.png"}), frozenset({"1.png", "other_label.png"})}
    near = {frozenset(name.rsplit("/", 1)[1] for name in group) for group in found["near"]}
    assert near == {frozenset({"2.png", "smaller.jpg"}), frozenset({"4.png", "grey.png"})}
    assert found["across"] == {"same": 2, "near": 2}
    assert found["labels"] == {"same": 1, "near": 0}
    assert found["odd"] == {
        "test/test/a/thin.png": "900 x 3 pixels, one colour",
        "test/test/a/grey.png": "mode L",
    }
    main(["data", "check", str(root)])
    text = capsys.readouterr().out
    assert "cannot identify image file" in text
    assert "2 groups that have the same bytes: 2 across splits, 1 with two labels" in text


def test_the_fingerprint_is_that_of_a_run(root, capsys):
    (root / "test" / "b" / "bad.jpg").unlink()
    found = _checked(capsys, "data=folder", f"data.root={root}")
    assert found["fingerprint"] == load_data("folder", root=str(root)).fingerprint


def test_images_in_memory(capsys):
    found = _checked(capsys, "data=digits")
    assert found["fingerprint"] == load_data().fingerprint
    assert (found["pictures"], found["sizes"]) == (1797, {"32 x 32": 1797})


def test_show_draws_the_batch_of_the_run(root, tmp_path, capsys):
    (root / "test" / "b" / "bad.jpg").unlink()
    out = tmp_path / "sheet.png"
    chosen = ["data=folder", f"data.root={root}", "data.batch_size=8", "data.augment.flip=false"]
    main(["data", "show", *chosen, "data.augment.cutout=8", f"out={out}"])
    assert capsys.readouterr().out == f"{out}\n"
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.std() > 20


@pytest.mark.parametrize(
    "words",
    [
        ["data", "look"],
        ["data", "check"],
        ["data", "check", "nowhere"],
        ["data", "check", "a", "b"],
        ["data", "check", "a", "data=digits"],
        ["data", "show", "data=cifar10_1"],
        ["data", "show", "data=digits", "out=."],
        ["data", "show", "out=/dev/null/x.png", "data=digits"],
    ],
)
def test_bad_lines(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["fotos_ä", "x${y}", "it's", "a b"])
def test_folders_of_any_name(root, tmp_path, name, capsys):
    root.rename(tmp_path / name)
    main(["data", "check", str(tmp_path / name)])
    assert "fingerprint" in capsys.readouterr().out
