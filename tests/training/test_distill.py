"""``distill.teacher=``: the losses, and the teacher that they need."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_helpers import load_data
from helpers import calibrate, composed
from scipy.spatial.distance import jensenshannon

from dwsep_zoo import UserError, create_model, open_artefact
from dwsep_zoo.analysis.memory import inference_memory
from dwsep_zoo.artefacts import export
from dwsep_zoo.artefacts.formats import FORMATS
from dwsep_zoo.hub import save_pretrained
from dwsep_zoo.training.check import check
from dwsep_zoo.training.distill import feature_distance, js, kd
from dwsep_zoo.training.teacher import Outputs, fingerprint, open_teacher

DIGITS = [str(digit) for digit in range(10)]
NETWORK = {"name": "mobilenet_v1_shallow", "width_mult": 0.125, "output_stride": 16, "in_chans": 1}


@pytest.fixture
def logits():
    return (3 * torch.randn(8, 5, dtype=torch.double), 3 * torch.randn(8, 5, dtype=torch.double))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_is_the_divergence_of_softened_outputs(logits, temperature):
    def softened(x):
        powers = np.exp(x.numpy() / temperature)
        return powers / powers.sum(1, keepdims=True)

    p, q = softened(logits[1]), softened(logits[0])
    divergence = (p * np.log(p / q)).sum(1).mean()
    found = kd(*logits, temperature)
    assert found.item() == pytest.approx(temperature**2 * divergence, rel=1e-9)
    own, theirs = ((x / temperature).softmax(1) for x in logits)
    torchs = F.kl_div(own.log(), theirs, reduction="batchmean")
    assert torch.allclose(found, temperature**2 * torchs)


def test_the_gradient_of_kd_at_high_temperatures_matches_logits(logits):
    """Hinton et al., equation 4, with logits that are zero-meaned for each image."""
    student, teacher = logits[0].requires_grad_(), logits[1]
    kd(student, teacher, 1e5).backward()
    centred = [x - x.mean(1, keepdim=True) for x in (student.detach(), teacher)]
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / (8 * 5), atol=1e-5)


def test_js_is_symmetric_and_bounded(logits):
    one, other = logits
    p, q = (x.softmax(1).numpy() for x in logits)
    assert js(one, other, 1.0).item() == pytest.approx((jensenshannon(p, q, axis=1) ** 2).mean())
    assert torch.allclose(js(one, other, 3.0), js(other, one, 3.0))
    apart = (100 * F.one_hot(torch.tensor([0, 1]), 3).float(),)
    assert js(apart[0], apart[0].flip(0), 1.0).item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("loss", [kd, js])
def test_equal_outputs_have_no_divergence_and_no_gradient(loss, logits):
    own = logits[0].requires_grad_()
    found = loss(own, logits[0].detach(), 4.0)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert own.grad.abs().max() < 1e-12


def test_feature_distance_is_the_mean_over_the_maps():
    one, other = ([torch.randn(2, c, 4, 4) for c in (3, 5)] for _ in range(2))
    each = [((a - b) ** 2).mean() for a, b in zip(one, other, strict=True)]
    assert torch.allclose(feature_distance(one, other), sum(each) / 2)


@pytest.fixture(scope="module")
def data():
    return load_data()


@pytest.fixture
def network():
    model = create_model(**NETWORK, conv="standard", num_classes=10)
    for name, value in {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,)}.items():
        model.default_cfg = {**model.default_cfg, name: value}
    return calibrate(model, torch.randn(64, 1, 32, 32))


@pytest.fixture
def saved(tmp_path):
    def save(network, names=DIGITS):
        save_pretrained(network, tmp_path / "teacher", names)
        return tmp_path / "teacher"

    return save


def teacher_of(source, data, **changes):
    settings = composed().distill.replace(teacher=str(source), **changes)
    return open_teacher(settings, data, create_model(**NETWORK, num_classes=10))


def batch(data, pixels):
    """Pixels of 0-1 as the training has them."""
    return (pixels - data.mean[0]) / data.std[0]


def test_the_teacher_sees_the_batch_as_its_own_images(network, saved, data):
    pixels = torch.rand(4, 1, 32, 32)
    teacher = teacher_of(saved(network), data)
    want, before = network((pixels - 0.5) / 0.25), fingerprint(teacher.artefact)
    assert torch.allclose(teacher(batch(data, pixels)).logits, want, atol=1e-3)
    assert fingerprint(teacher.artefact) == before  # nor have the norms' statistics changed
    assert not teacher(batch(data, pixels).requires_grad_()).logits.requires_grad
    network.default_cfg = {**network.default_cfg, "input_size": (1, 16, 16)}
    smaller = F.interpolate(pixels, 16, mode="bilinear", antialias=True)
    teacher = teacher_of(saved(network), data)
    want = network((smaller - 0.5) / 0.25)
    assert torch.allclose(teacher(batch(data, pixels)).logits, want, atol=1e-3)


@pytest.mark.parametrize("names", [DIGITS[::-1], ["a", *DIGITS, "b"]], ids=["reordered", "more"])
def test_classes_are_matched_by_name(names, network, saved, data):
    images = torch.randn(4, 1, 32, 32)
    before = teacher_of(saved(network), data)(images).logits
    place = [DIGITS.index(name) if name in DIGITS else 0 for name in names]
    other = create_model(**NETWORK, conv="standard", num_classes=len(names))
    state = network.state_dict()
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = state[key][place]
    other.load_state_dict(state)
    other.default_cfg = {**network.default_cfg, "num_classes": len(names)}
    after = teacher_of(saved(other, names), data)(images).logits
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    ("network_of", "names", "changes", "message"),
    [
        ({}, [*DIGITS[:9], "ten"], {}, "has no class '9' of the data"),
        ({"in_chans": 3}, DIGITS, {}, "takes images with 3 channels; the data have 1"),
        ({"width_mult": 0.25}, DIGITS, {"features": 1.0}, "has feature maps of"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(network_of, names, changes, message, saved, data):
    source = saved(create_model(**{**NETWORK, **network_of}, num_classes=10), names)
    with pytest.raises(UserError, match=message) as error:
        teacher_of(source, data, **changes)
    assert str(error.value).startswith("distill.")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (None, "nowhere", "no such file or folder"),
        (None, "gone.onnx", "no such file"),
        (b"not a network", "damaged.onnx", "damaged"),
        (b"not a network", "damaged.ckpt", "damaged"),
        (None, "timm:resnet1", "timm has no network 'resnet1'; did you mean"),
        (None, "timm:resnet18.mine", "resnet18 has resnet18"),
    ],
)
def test_a_missing_or_damaged_teacher_is_refused_first(content, given, message, tmp_path):
    source = given if given.startswith("timm") else str(tmp_path / given)
    if content:
        (tmp_path / given).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        check(composed(f"distill.teacher={source}"))
    assert str(error.value).startswith("distill.teacher: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["recipe.initial_size=24", "recipe.simulated_int8=per_channel", "trainer.compile=true"]
)
def test_features_are_compared_at_full_size_and_without_a_compiler(key, network, saved):
    given = (f"distill.teacher={saved(network)}", "distill.features=1", key)
    with pytest.raises(UserError, match=rf"distill.features=1 .*{key}"):
        check(composed("model.pretrained=IMAGENET1K_V1", "model=mobilenet_v2", *given))


def test_the_loss_of_a_step(network, saved, data):
    teacher = teacher_of(saved(network), data, weight=0.25, temperature=2.0, features=3.0)
    images, labels = torch.randn(4, 1, 32, 32), torch.randn(())
    taught = teacher(images)
    student = Outputs(torch.randn(4, 10), tuple(torch.randn_like(m) for m in taught.maps))
    found = teacher.blend(labels, student, taught)
    want = 0.75 * labels + 0.25 * kd(student.logits, taught.logits, 2.0)
    want += 3 * feature_distance(student.maps, taught.maps)
    assert torch.allclose(found, want)
    assert torch.equal(teacher.blend(labels, taught, taught), 0.75 * labels)
    _, maps = network.forward_intermediates(images)
    assert [m.shape for m in taught.maps] == [m.shape for m in maps]


def test_the_memory_of_a_teacher(network, saved, data):
    teacher = teacher_of(saved(network), data)
    assert teacher.memory(8) == inference_memory(network, (1, 32, 32), batch_size=8)
    assert teacher.memory(16) > teacher.memory(8) > 4 * teacher.cost.params


def test_a_step_reads_nothing_from_the_device(network, saved, data):
    """A CUDA graph could not. The values of the meta device cannot be read at all."""
    teacher = teacher_of(saved(network), data, features=1.0, kind="js")
    teacher.to(torch.device("meta"), torch.float32)
    taught = teacher(torch.empty(4, 1, 32, 32, device="meta"))
    assert teacher.blend(torch.empty((), device="meta"), taught, taught).shape == ()


def test_a_file_can_teach(network, saved, data, tmp_path):
    if line := FORMATS["onnx"].missing():
        pytest.skip(line)
    path = tmp_path / "teacher.onnx"
    export(open_artefact(saved(network)), "onnx", path)
    teacher, images = teacher_of(path, data), torch.randn(4, 1, 32, 32)
    want = teacher_of(tmp_path / "teacher", data)
    logits = teacher(images).logits
    assert torch.allclose(logits, want(images).logits, atol=1e-3)
    student = torch.randn(4, 10, requires_grad=True)
    kd(student, logits, 4.0).backward()  # tensors of inference mode would be refused
    assert copy.deepcopy(teacher) is teacher
    record, reference = teacher.record(data), want.record(data)
    assert record.name == f"{reference.name} as onnx fp32"
    assert record.fingerprint not in (None, reference.fingerprint)


def test_a_network_of_timm_can_teach(data, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet10t", num_classes=10, in_chans=1).eval()
    theirs.pretrained_cfg.update(input_size=(1, 32, 32), mean=(0.5,), std=(0.25,))
    config, args = {"label_names": DIGITS}, {"in_chans": 1}
    timm.models.save_for_hf(theirs, tmp_path, config, model_args=args, safe_serialization=True)
    teacher = teacher_of(f"timm:local-dir:{tmp_path}", data)
    pixels = torch.rand(2, 1, 32, 32)
    want = theirs((pixels - 0.5) / 0.25)
    assert torch.allclose(teacher(batch(data, pixels)).logits, want, atol=1e-3)
    record = teacher.record(data)
    assert record.params == sum(p.numel() for p in theirs.parameters())
    assert record.test_acc is None


# Runs

RUN = ("recipe.model_ema_decay=0.9", "distill.features=0.5")


@pytest.fixture
def lesson(network, saved):
    """Arguments of a run with a teacher."""
    return f"distill.teacher={saved(network)}"


def test_a_taught_run(run, lesson, network, tmp_path, stopped_in):
    """The teacher is nowhere but in the record; a stopped run ends where the whole one does."""
    record = run("whole", lesson, *RUN)
    student = create_model(**record["network"])
    assert record["params"] == sum(p.numel() for p in student.parameters())
    assert record["teacher"]["name"] == "mobilenet_v1_shallow standard width 0.125"
    assert record["teacher"]["params"] == sum(p.numel() for p in network.parameters())
    assert record["teacher"]["fingerprint"] == fingerprint(open_artefact(tmp_path / "teacher"))
    with stopped_in(1, 1):
        run("stopped", lesson, *RUN)
    moved = (tmp_path / "teacher").rename(tmp_path / "moved")
    run("stopped", f"resume={tmp_path / 'stopped'}", f"distill.teacher={moved}")
    whole, stopped = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        for name in ("whole", "stopped")
    )
    for key in ("state_dict", "current_model_state", "optimizer_states", "dwsep_zoo"):
        assert_equal(whole[key], stopped[key])
    assert {f"model.{name}" for name in student.state_dict()} == set(whole["state_dict"])
    kept = sum(tensor.nbytes for tensor in tensors(whole))  # weights, their average, momentum
    assert 2 * record["size_bytes"] < kept < 3.1 * record["size_bytes"]
    assert record["size_bytes"] < record["teacher"]["params"]  # which has four bytes each


def test_a_run_goes_on_with_its_own_teacher_only(run, lesson, network, saved, tmp_path, stopped_in):
    with stopped_in(1, 1):
        run("stopped", lesson)
    record = (tmp_path / "stopped/result.json").read_text()
    with torch.no_grad():
        network.classifier.weight.mul_(2)
    saved(network)
    with pytest.raises(UserError, match="is not the teacher with which this run began") as error:
        run("stopped", f"resume={tmp_path / 'stopped'}")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="it names the place of the teacher"):
        run("stopped", f"resume={tmp_path / 'stopped'}", "distill.teacher=null")
    assert (tmp_path / "stopped/result.json").read_text() == record


def assert_equal(one, other):
    """Plain data with tensors, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def tensors(value):
    """All tensors in plain data."""
    if isinstance(value, torch.Tensor):
        yield value
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple):
        for part in parts:
            yield from tensors(part)
