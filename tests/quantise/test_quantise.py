"""int8 files: what is in them, what they compute, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import calibrate
from PIL import Image
from torch import nn

from dwsep_zoo import create_model, open_artefact
from dwsep_zoo.artefacts import Artefact
from dwsep_zoo.artefacts.open import describe
from dwsep_zoo.cli import main
from dwsep_zoo.errors import UserError
from dwsep_zoo.nn.int8 import step_of
from dwsep_zoo.quantise import BACKENDS, quantise
from dwsep_zoo.quantise.calibration import calibration_images, pictures_of
from dwsep_zoo.quantise.quantise import prepared
from dwsep_zoo.quantise.rounding import learned_copy
from dwsep_zoo.report.results import Run
from dwsep_zoo.schema.artefact import SUFFIXES
from dwsep_zoo.schema.record import parse_record

CLASSES = ["cat", "dog", "fox"]
SIZE = 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for i in range(8):
            small = numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(small).resize((SIZE, SIZE)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def artefact(pictures: Path) -> Artefact:
    """The shallow MobileNetV1 with the ReLU6 of TF-Slim."""
    torch.manual_seed(0)
    model = create_model("mobilenet_v1_shallow", num_classes=3, width_mult=0.25, output_stride=8)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.ReLU6())
    model.class_names = list(CLASSES)
    model.default_cfg = {**model.default_cfg, "input_size": (3, SIZE, SIZE), "crop_pct": 1.0}
    made = Artefact("net", "pytorch", "eager", describe(model), 0, model, 1, model)
    calibrate(model, made.preprocess(sorted(pictures.rglob("*.png"))))
    return made


@pytest.mark.parametrize(
    ("to", "scheme", "equalise", "batch_size"),
    [
        ("onnx", "per_channel", None, None),
        ("openvino", "per_tensor", "ceilings", 2),
        ("executorch", "per_channel", None, 1),
        ("litert", "per_channel", None, 1),
        pytest.param("onnx", "per_tensor", "ceilings", 2, marks=pytest.mark.slow),
        pytest.param("openvino", "per_channel", None, None, marks=pytest.mark.slow),
    ],
)
def test_a_file_is_int8_opens_and_computes_nearly_the_same(
    artefact, pictures, tmp_path, to, scheme, equalise, batch_size
):
    for package in BACKENDS[to].packages:
        pytest.importorskip(package)
    suffix = SUFFIXES[to]
    files = pictures_of(artefact, str(pictures))
    made = artefact.quantise(
        to,
        tmp_path / f"small{suffix}",
        scheme=scheme,
        equalise=equalise,
        calibration=8,
        pictures=files,
        batch_size=batch_size,
    )
    opened = open_artefact(tmp_path / f"small{suffix}", threads=1)
    assert (opened.about.precision, opened.class_names) == ("int8", tuple(CLASSES))
    assert opened.about.quantisation == {
        "scheme": scheme,
        "equalised": equalise or scheme == "per_tensor",
        "learned_rounding": False,
        "bias_corrected": True,
        "calibration": 8,
    }
    images = artefact.preprocess(files)
    want, got = artefact.logits(images), opened.logits(images)
    difference = (got - want).norm() / (want - want.mean(0)).norm()
    assert 0 < difference < 0.9  # random weights amplify noise; other pictures have about 1.4
    assert made.file.images == len(files) - 8
    weights = sum(p.numel() for p in artefact.model.parameters())
    assert made.file.size_bytes < 3 * weights + 250_000  # of 4 bytes before; and the graph
    assert {p.name for p in tmp_path.iterdir()} >= {f"small{suffix}", f"small{suffix}.json"}
    assert "int8: scheme" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("trained", ["per_tensor", "per_channel"])
def test_channels_stay_as_they_were_trained_per_tensor(artefact, pictures, tmp_path, trained):
    pytest.importorskip("nncf")
    record = {"config": {"recipe": {"simulated_int8": trained}}}
    own = replace(artefact, about=artefact.about.replace(record=record))
    files = pictures_of(artefact, str(pictures))
    made = quantise(
        *(own, "openvino", tmp_path / "small.xml"),
        scheme="per_tensor",
        calibration=8,
        pictures=files,
    )
    assert made.making["equalised"] == (trained != "per_tensor")


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights of an int8 file in float, by the names of their layers."""
    openvino = pytest.importorskip("openvino")
    found = {}
    for node in openvino.Core().read_model(path).get_ordered_ops():
        if "Convolution" in node.get_type_name():
            multiply = node.input_value(1).get_node()
            convert, steps = (value.get_node() for value in multiply.input_values())
            levels = convert.input_value(0).get_node().get_data().astype(np.float32)
            found[node.get_friendly_name()] = levels * steps.get_data()
    return found


def onnx_weights(path: Path) -> dict[str, np.ndarray]:
    """The same of a file of ONNX Runtime."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(path).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            levels, step, _ = (values[name] for name in makers[node.input[1]].input)
            found[node.name] = levels * step.reshape(-1, 1, 1, 1).astype(np.float32)
    return found


def test_every_channel_has_a_step_of_its_own(artefact, pictures, tmp_path):
    """Also the narrow ones beside a channel whose weights are ten thousand times as large."""
    pytest.importorskip("nncf")
    model = copy.deepcopy(artefact.model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for norm, depthwise in pairwise(layers):
            if isinstance(depthwise, nn.Conv2d) and depthwise.groups > 1:
                norm.weight[0] *= 1e-4
                norm.bias[0] *= 1e-4
                depthwise.weight[0] *= 1e4
    wide = replace(artefact, model=model, call=model)
    files = pictures_of(artefact, str(pictures))
    file = tmp_path / "wide.xml"
    quantise(wide, "openvino", file, bias_correction=False, calibration=8, pictures=files)
    folded = prepared(model, artefact.preprocess(files[:2]), equalise=False)
    weights = [m.weight.detach().numpy() for m in folded.modules() if isinstance(m, nn.Conv2d)]
    stored = stored_weights(file)
    assert len(stored) == len(weights)
    for want, got in zip(weights, stored.values(), strict=True):
        got = got.reshape(want.shape)
        largest = np.abs(want).max((1, 2, 3), keepdims=True)
        step = largest / (63 if want is weights[0] else 127)  # NNCF spares a bit of a first layer
        assert (np.abs(got - want) <= 0.51 * step).all()


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardswish])
def test_zero_is_the_middle_or_the_lowest_level_of_activations(artefact, pictures, tmp_path, act):
    """Others, zero points, make OpenVINO slow."""
    pytest.importorskip("nncf")
    model = copy.deepcopy(artefact.model)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, act())
    other = replace(artefact, model=model, call=model)
    file = tmp_path / "small.xml"
    quantise(other, "openvino", file, calibration=8, pictures=pictures_of(artefact, str(pictures)))
    lowest, highest = activation_ranges(file)
    assert len(lowest) > 100
    assert (np.isclose(lowest, 0) | np.isclose(lowest, -highest * 128 / 127)).all()


def activation_ranges(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest level of all activations, or of their channels."""
    openvino = pytest.importorskip("openvino")
    nodes = openvino.Core().read_model(path).get_ordered_ops()
    found = [node for node in nodes if node.get_type_name() == "FakeQuantize"]
    low, high = (
        np.concatenate([node.input_value(i).get_node().get_data().ravel() for node in found])
        for i in (1, 2)
    )
    return low, high


@pytest.mark.parametrize(("to", "scheme"), [("openvino", "per_tensor"), ("onnx", "per_channel")])
def test_learned_levels_reach_the_file(artefact, pictures, tmp_path, to, scheme):
    pytest.importorskip("nncf" if to == "openvino" else to)
    files = pictures_of(artefact, str(pictures))
    file = tmp_path / f"learned{SUFFIXES[to]}"
    options = {"scheme": scheme, "equalise": False, "calibration": 8, "pictures": files}
    artefact.quantise(to, file, learned_rounding=True, bias_correction=False, **options)
    assert open_artefact(file, threads=1).about.quantisation["learned_rounding"] is True
    images, _ = calibration_images(artefact, files, 8, tmp_path)
    network = learned_copy(prepared(artefact.model, images, equalise=False), images, scheme)
    wanted = [m.weight.detach() for m in network.modules() if isinstance(m, nn.Conv2d)]
    stored = stored_weights(file) if to == "openvino" else onnx_weights(file)
    assert len(stored) == len(wanted)
    for want, got in list(zip(wanted, stored.values(), strict=True))[1:]:
        step = step_of(want, scheme)
        assert ((torch.from_numpy(got).view_as(want) - want).abs() <= 0.01 * step).all()


def test_files_of_one_run_have_names_of_their_own_in_a_report():
    def form(**making: object) -> str:
        artefact = {"format": "onnx", "precision": "int8", "quantisation": making}
        record = {"schema": 3, "model": "a", "conv": "standard", "artefact": artefact}
        return Run(Path(), parse_record(record)).form

    ways = [
        {"scheme": "per_tensor", "equalised": False, "bias_corrected": True, "calibration": 32},
        {"scheme": "per_tensor", "equalised": True, "bias_corrected": True, "calibration": 32},
        {"scheme": "per_tensor", "equalised": True, "bias_corrected": False, "calibration": 32},
        {"scheme": "per_tensor", "equalised": True, "bias_corrected": False, "calibration": 64},
        {"scheme": "per_tensor", "equalised": True, "learned_rounding": True, "calibration": 64},
    ]
    assert len({form(**way) for way in ways}) == len(ways)


def test_the_table_names_the_worst_layer(artefact, pictures, monkeypatch, capsys):
    monkeypatch.setattr("dwsep_zoo.artefacts.open_artefact", lambda _: artefact)
    main(["quantise", "net", f"pictures={pictures}", "calibration=4", "--diagnose"])
    printed = capsys.readouterr().out
    layers = sum(isinstance(m, torch.nn.Conv2d) for m in artefact.model.modules()) + 1
    assert sum(" │ " in line for line in printed.splitlines()) == layers
    assert "most is lost in" in printed


def test_classes_of_the_pictures_are_checked(artefact, pictures, tmp_path):
    (tmp_path / "horse").mkdir()
    source = next(pictures.rglob("*.png"))
    (tmp_path / "horse" / "a.png").write_bytes(source.read_bytes())
    with pytest.raises(UserError, match="horse"):
        pictures_of(artefact, str(tmp_path))
    assert pictures_of(artefact, str(tmp_path / "*" / "*.png"))  # a pattern has no classes


@pytest.mark.parametrize(
    ("count", "message"), [(0, "at least 2"), (1, "at least 2")], ids=["none", "one"]
)
def test_too_few_pictures_are_refused_and_nothing_is_written(
    artefact, pictures, tmp_path, count, message
):
    files = sorted(map(str, pictures.rglob("*.png")))[:count]
    with pytest.raises(UserError, match=message):
        quantise(artefact, "onnx", tmp_path / "a.onnx", pictures=files)
    assert not list(tmp_path.iterdir())


def test_weights_without_data_need_pictures(artefact, tmp_path):
    with pytest.raises(UserError, match="pictures=FOLDER"):
        quantise(artefact, "onnx", tmp_path / "a.onnx")


def test_a_file_cannot_be_quantised(artefact, tmp_path):
    file = Artefact("a.onnx", "onnx", "onnxruntime", artefact.about, 0, artefact.call, 1)
    with pytest.raises(UserError, match="quantise the run"):
        quantise(file, "onnx", tmp_path / "b.onnx")


@pytest.mark.parametrize(
    "words",
    [
        ["net"],
        ["to=onnx"],
        ["net", "to=tflite"],
        ["net", "to=onnx", "calibration=1"],
        ["net", "to=onnx", "scheme=per_layer"],
        ["net", "to=onnx", "equalise=perhaps"],
        ["net", "to=onnx", "bits=4"],
        ["nowhere", "to=onnx"],
    ],
    ids=" ".join,
)
def test_wrong_lines_end_in_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["quantise", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.strip()
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["to=onnx", "scheme=per_tensor", "out=x.onnx"])
def test_a_diagnosis_takes_no_options_of_writing(word, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quantise", "net", word, "--diagnose"])
    assert stop.value.code == 2
    assert f"{word.partition('=')[0]}= has no effect on --diagnose" in capsys.readouterr().err


def test_a_comparison_on_the_calibration_pictures_says_so(artefact, pictures, tmp_path):
    files = pictures_of(artefact, str(pictures))[:4]
    for number, said in ((4, True), (3, False)):
        file = tmp_path / f"{number}.onnx"
        made = artefact.quantise("onnx", file, calibration=number, pictures=files)
        assert ("no others" in made.line()) is said
