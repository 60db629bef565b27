"""A network is the same in every format."""

import copy
import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchmetrics.functional.classification as reference
from onnx.external_data_helper import set_external_data
from PIL import Image
from sklearn import metrics as sklearn

from dwsep_zoo import UserError, create_model, open_artefact
from dwsep_zoo.artefacts import evaluate, export
from dwsep_zoo.artefacts.evaluate import calibration_error
from dwsep_zoo.artefacts.export import Exported, card, compare
from dwsep_zoo.artefacts.formats import FORMATS
from dwsep_zoo.artefacts.overlay import grad_cam, save_annotated
from dwsep_zoo.cli import main
from dwsep_zoo.config import compose_settings
from dwsep_zoo.schema.artefact import KEY
from dwsep_zoo.schema.settings import parse_settings
from tests.artefacts.conftest import COLOURS, SIDE, picture

NAMES = list(COLOURS)


INSTALLED = [name for name, kind in FORMATS.items() if not kind.missing()]
EACH = [
    pytest.param(name, marks=pytest.mark.skipif(name not in INSTALLED, reason="not installed"))
    for name in FORMATS
]


@pytest.fixture(scope="module")
def artefact(saved):
    return open_artefact(saved)


@pytest.fixture(scope="module")
def files(artefact, pictures, tmp_path_factory):
    """A file of each format, for one image at a time."""
    folder, chosen = tmp_path_factory.mktemp("files"), sorted(pictures.rglob("*.png"))
    return {
        name: export(artefact, name, folder / f"model{FORMATS[name].suffix}", pictures=chosen)
        for name in INSTALLED
    }


def test_a_saved_network_is_an_artefact(artefact):
    assert artefact.class_names == tuple(NAMES)
    assert artefact.input_size == (3, SIDE, SIDE)
    image = picture(COLOURS["red"], 7)
    x = artefact.preprocess([image])
    want = (np.array(image) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.3)
    torch.testing.assert_close(
        x[0].permute(1, 2, 0).double(), torch.tensor(want), rtol=0, atol=1e-5
    )
    logits = artefact.model(x)
    torch.testing.assert_close(artefact.logits(x), logits)
    (found,) = artefact.predict([image], top_k=3)
    top = logits[0].softmax(0).topk(3)
    assert found.classes == tuple(NAMES[i] for i in top.indices)
    assert found.probabilities == pytest.approx(top.values.tolist())


@pytest.mark.parametrize("name", EACH)
def test_a_file_computes_what_the_network_does(name, files, artefact, pictures):
    made = files[name]
    theirs = open_artefact(made.files[0])
    assert theirs.about == artefact.about.replace(batch_size=1)
    assert theirs.model is None
    assert made.real
    assert made.images == 30
    assert made.top1_agreement == 1
    chosen = sorted(pictures.rglob("*.png"))
    x = artefact.preprocess(chosen)  # more than a call of the file takes
    torch.testing.assert_close(theirs.logits(x), artefact.model(x), rtol=1e-4, atol=1e-4)
    ours, others = artefact.predict(chosen), theirs.predict(chosen)
    assert [p.classes[0] for p in ours] == [p.classes[0] for p in others]
    assert theirs.size_bytes == sum(Path(f).stat().st_size for f in made.files)


@pytest.mark.parametrize(
    "name",
    ["torch_export", *(pytest.param(n, marks=pytest.mark.slow) for n in ("onnx", "openvino"))],
)
def test_a_file_for_pixels_and_any_number_of_images(name, artefact, pictures, tmp_path):
    path = tmp_path / f"any{FORMATS[name].suffix}"
    export(
        artefact, name, path, batch_size=None, pixels=True, pictures=sorted(pictures.rglob("*.png"))
    )
    theirs = open_artefact(path)
    assert theirs.about.pixels
    assert theirs.about.batch_size is None
    for count in (1, 2, 5):
        x = artefact.preprocess([picture(COLOURS["pink"], n) for n in range(count)])
        torch.testing.assert_close(theirs.logits(x), artefact.model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pytorch", "onnx"])
def test_evaluation(name, saved, files, pictures, tmp_path):
    theirs = open_artefact(saved if name == "pytorch" else files[name].files[0])
    data = compose_settings(["data=folder", f"data.root={pictures}"]).data
    found = evaluate(theirs, data, split="all", data_dir=tmp_path, latency_s=0.01)
    # The folders are in alphabetical order, and their names in another case.
    chosen = sorted(pictures.rglob("*.png"))
    labels = [NAMES.index(path.parent.name.lower()) for path in chosen]
    logits = theirs.logits(theirs.preprocess(chosen)).double()
    predicted = logits.argmax(1).numpy()
    assert found.predictions.label.tolist() == labels
    assert found.predictions.class_names == tuple(NAMES)
    assert [*found.predictions.name] == [str(path.relative_to(pictures)) for path in chosen]
    assert found.record.per_class.balanced_acc == pytest.approx(
        sklearn.balanced_accuracy_score(labels, predicted)
    )
    want = {
        "test/acc": sklearn.accuracy_score(labels, predicted),
        "test/loss": torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item(),
        "test/acc_top5": sklearn.top_k_accuracy_score(labels, logits, k=5),
    }
    assert {key: found.record.metrics[key] for key in want} == pytest.approx(want, abs=1e-6)
    assert found.record.latency[0].runtime == theirs.runtime
    found.save(tmp_path / "record")
    values = json.loads((tmp_path / "record" / "result.json").read_text())
    assert values["artefact"]["format"] == name
    assert values["data"]["mean"] == [0.5, 0.4, 0.3]  # as they were prepared, not their own


def test_evaluation_lists_the_pictures_that_are_left_out(artefact, pictures, tmp_path):
    root = shutil.copytree(pictures, tmp_path / "pictures")
    broken = next(root.rglob("*.png")).with_name("zz.png")
    broken.write_bytes(b"no picture")
    options = [f"data.root={root}", "data.on_error=skip"]
    data = compose_settings(["data=folder", *options]).data
    found = evaluate(artefact, data, split="all", data_dir=tmp_path, latency_s=0)
    found.save(tmp_path / "record")
    (line,) = (tmp_path / "record" / "skipped.txt").read_text().splitlines()
    assert line == next(iter(found.skipped.values()))
    assert str(broken) in line
    assert found.record.data.skipped == 1
    broken.unlink()
    evaluate(artefact, data, split="all", data_dir=tmp_path, latency_s=0).save(tmp_path / "record")
    assert not (tmp_path / "record" / "skipped.txt").exists()


def test_a_network_of_no_run_has_no_data_of_its_own(artefact):
    with pytest.raises(UserError, match="names no data of its own"):
        artefact.evaluate()


def test_calibration_error():
    torch.manual_seed(1)
    p, label = (torch.randn(400, 7) * 2).softmax(1), torch.randint(7, (400,))
    want = reference.multiclass_calibration_error(p, label, 7, n_bins=15)
    assert calibration_error(label.numpy(), p.numpy()) == pytest.approx(want.item(), abs=1e-6)


def test_agreement_counts_where_the_top_class_is_sure():
    want = torch.tensor([[1.0, 0.0], [0.5, 0.5002], [0.0, 2.0]])
    assert compare(want.flip(1), want) == (2.0, 0.0)
    difference, agreement = compare(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), want)
    assert (difference, agreement) == (pytest.approx(0.5002), 1.0)


def test_activation_map_of_a_linear_head(artefact):
    """With pooling and a linear layer behind the features it is CAM, Zhou et al. 2016, eq. 2."""
    x = artefact.preprocess([picture(COLOURS["blue"], 3)])
    model = artefact.model
    with torch.no_grad():
        features = model.forward_features(x)[0]
        maps = torch.einsum("kc,chw->khw", model.classifier.weight, features).relu()
        want = maps[output := int(maps.amax((1, 2)).argmax())]
    found = grad_cam(model, x, output)
    assert found.shape == (SIDE, SIDE)
    want = torch.nn.functional.interpolate(want[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
    torch.testing.assert_close(found, want / want.max())


@pytest.mark.parametrize("cam", [False, True])
def test_annotated_pictures(cam, artefact, tmp_path):
    image = picture(COLOURS["blue"], 3, (40, 60))
    (found,) = artefact.predict([image])
    paths = [save_annotated(artefact, image, "a/b c.png", found, tmp_path, cam) for _ in range(2)]
    assert [path.name for path in paths] == ["b_c.png", "b_c-2.png"]
    with Image.open(paths[0]) as page:
        shape = (SIDE, SIDE) if cam else (60, 40)
        assert page.height - page.width * shape[1] / shape[0] >= 5 * 16  # five lines of text


# ---- what is no artefact of this project --------------------------------------------------------


def with_description(path, change, to):
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = change(entry.value)
    onnx.save(model, to)


def changed(**values):
    return lambda text: json.dumps({**json.loads(text), **values})


LIES = {
    "fewer names than classes": changed(class_names=["a", "b"]),
    "a class twice": changed(class_names=["red"] * 6),
    "other classes than outputs": changed(class_names=[], num_classes=7),
    "another size": changed(image_size=64),
    "another batch": changed(batch_size=None),
    "channels": changed(mean=[0.5]),
    "a newer version": changed(schema=99),
    "no number": changed(std=["a", 1, 1]),
    "nothing": lambda _: "",
    "no JSON": lambda text: text[:-5],
    "a list": lambda _: "[]",
    "deep": lambda _: "[" * 100_000,
}


@pytest.mark.parametrize("lie", LIES)
def test_descriptions_that_lie(lie, files, tmp_path):
    path = tmp_path / "model.onnx"
    with_description(files["onnx"].files[0], LIES[lie], path)
    with pytest.raises(UserError) as caught:
        open_artefact(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_configuration_of_an_older_file_is_upgraded(files, tmp_path):
    config = compose_settings([]).plain()
    del config["logger"]["pictures"]
    path = tmp_path / "model.onnx"
    record = {"model": "mobilenet_v1", "conv": "standard", "config": config}
    with_description(files["onnx"].files[0], changed(record=record), path)
    assert parse_settings(open_artefact(path).about.record["config"]).logger.pictures


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("damage", ["empty", "cut off", "text"])
def test_damaged_files(name, damage, files, tmp_path):
    content = Path(files[name].files[0]).read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "cut off": content[:middle],
        "text": b"not a network",
    }[damage]
    path = tmp_path / f"model{FORMATS[name].suffix}"
    path.write_bytes(damaged)
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match=str(path)):
        open_artefact(path)


def test_weights_that_are_missing_or_elsewhere(files, tmp_path):
    path = tmp_path / "model.xml"
    path.write_bytes(Path(files["openvino"].files[0]).read_bytes())
    with pytest.raises(UserError, match=r"model\.bin"):
        open_artefact(path)
    path = tmp_path / "model.onnx"
    model = onnx.load(files["onnx"].files[0])
    set_external_data(model.graph.initializer[0], "../outside")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="other files"):
        open_artefact(path)


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


def rewritten(path, to, change):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(name, content) if not name.endswith("/") else content)
    return to


def pickled_weights(name, content):
    if name.endswith("weights_config.json"):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true')
    return pickle.dumps(Payload()) if "weights/weight_" in name else content


def code_as_a_size(name, content):
    if not name.endswith("models/model.json"):
        return content
    values = json.loads(content)
    values["x"] = {"expr_str": "eval(chr(49))"}
    return json.dumps(values).encode()


@pytest.mark.parametrize("change", [pickled_weights, code_as_a_size])
def test_no_code_is_run(change, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = rewritten(files["torch_export"].files[0], tmp_path / "evil.pt2", change)
    with pytest.raises(UserError, match=r"evil\.pt2"):
        open_artefact(path)
    assert not (tmp_path / "ran").exists()


def test_an_unchanged_copy_of_an_archive_opens(files, tmp_path):
    path = rewritten(files["torch_export"].files[0], tmp_path / "copy.pt2", lambda _, c: c)
    assert open_artefact(path).class_names == tuple(NAMES)


def test_nothing_is_written_if_outputs_differ(artefact, tmp_path, monkeypatch):
    other = copy.copy(artefact)
    other.model = copy.deepcopy(artefact.model)
    torch.nn.init.normal_(other.model.classifier.weight)  # its call is still that of the first
    with pytest.raises(UserError, match="nothing is written"):
        export(other, "torch_export", tmp_path / "new" / "model.pt2")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "tflite3"}, "tflite3"),
        ({"format": "onnx", "out": "model.xml"}, r"\.onnx"),
        ({"format": "executorch", "out": "model.pte", "batch_size": None}, "set batch_size"),
        ({"format": "onnx", "out": "model.onnx", "pictures": []}, "pictures"),
    ],
)
def test_exports_that_cannot_be(options, words, artefact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        export(artefact, **options)
    assert not [*tmp_path.iterdir()]


def test_the_card_names_every_file_of_the_network(artefact, tmp_path):
    def made(name, text="", about=artefact.about):
        path = tmp_path / name
        path.touch()
        found = Exported("onnx", (str(path),), 10**6, 5, True, 0.0, 1.0)
        return card(artefact, about, path, found, text)

    text = made("gone.onnx", made("b.onnx", made("a.onnx")))
    (tmp_path / "gone.onnx").unlink()
    text = made("a.onnx", text, artefact.about.replace(pixels=True))
    lines = re.findall(r"^- `(.*)`: 1.0 MB; the same.*?(; takes.*)?$", text, re.M)
    assert lines == [("a.onnx", "; takes uint8 pixels"), ("b.onnx", "")]
    other = copy.copy(artefact)
    other.about = artefact.about.replace(class_names=list("abcdef"))
    found = Exported("onnx", ("c.onnx",), 10**6, 5, True, 0.0, 1.0)
    assert "`a.onnx`" not in card(other, other.about, tmp_path / "c.onnx", found, text)


def test_a_readme_of_the_user_stays(artefact, tmp_path):
    for _ in range(2):
        export(artefact, "torch_export", tmp_path / "model.pt2", pictures=[picture((1, 2, 3), 0)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.pt2",
        "model.pt2.json",
        "README.md",
    }
    (tmp_path / "README.md").write_text("mine")
    export(artefact, "torch_export", tmp_path / "model.pt2", pictures=[picture((1, 2, 3), 0)])
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "exported by" in (tmp_path / "model.pt2.md").read_text()


def test_a_file_is_not_exported_again(files):
    with pytest.raises(UserError, match="export the run"):
        open_artefact(files["onnx"].files[0]).export("openvino", "x.xml")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros(4, np.uint8), np.zeros((4, 4, 5), np.uint8)]
)
def test_arrays_that_are_no_pictures(array, artefact):
    with pytest.raises(UserError, match="not a picture"):
        artefact.predict([array])


def test_channels_that_no_picture_has(tmp_path):
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=3, in_chans=5)
    from dwsep_zoo.hub import save_pretrained

    save_pretrained(model, tmp_path / "five")
    with pytest.raises(UserError, match="5 channels"):
        open_artefact(tmp_path / "five").predict([Image.new("RGB", (64, 64))])


def test_classes_that_the_network_does_not_have(artefact, pictures, tmp_path):
    root = tmp_path / "others"
    for name in ("Red", "Yellow"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            picture((1, 2, 3), number).save(root / name / f"{number}.png")
    data = compose_settings(["data=folder", f"data.root={root}"]).data
    with pytest.raises(UserError, match="'Yellow'"):
        evaluate(artefact, data, data_dir=tmp_path)


def test_unreadable_pictures_keep_their_place(artefact, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    good = picture(COLOURS["red"], 1)
    given = [good, tmp_path / "empty.png", good, tmp_path / "text.png"]
    found = [one for _, batch in artefact.predict_batches(given, batch_size=2) for one in batch]
    assert [isinstance(one, UserError) for one in found] == [False, True, False, True]
    assert "empty.png" in str(found[1])
    with pytest.raises(UserError, match=r"empty\.png"):
        artefact.predict(given)


def test_bytes_of_a_picture_and_lists_on_standard_input():
    from dwsep_zoo.artefacts.sources import from_stdin

    file = io.BytesIO()
    picture(COLOURS["red"], 1).save(file, "png")
    file.seek(0)
    assert from_stdin(file).size == (SIDE, SIDE)
    assert from_stdin(io.BytesIO(b"a.png\n\n b c.png \n")) == ["a.png", "b c.png"]
    for content in (b"", b"\xff\xfe\x00"):
        with pytest.raises(UserError, match="standard input"):
            from_stdin(io.BytesIO(content))


def test_each_choice_of_data_and_split_is_an_evaluation_of_its_own(saved, pictures, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "copy")
    for words in (
        [f"data.root={pictures}"],
        [f"data.root={pictures}"],
        [f"data.root={copy}"],
        [f"data.root={copy}", "split=all"],
    ):
        main(["eval", str(saved), "data=folder", *words, f"out={tmp_path / 'out'}", "latency=0"])
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 3
