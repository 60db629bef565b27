"""What is frozen stays bit for bit, and the rest learns at the rate of its part."""

import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from helpers import composed, recipe
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dwsep_zoo import UserError, create_model
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.finetune import check_freeze, frozen_names
from dwsep_zoo.training.optim import create_optimizer, parameter_groups
from dwsep_zoo.training.prepare import auto_output_stride, check_network_and_data, prepare

TRAIN = Path(__file__).parents[2] / "train.py"
FINETUNE = ("recipe=finetune", "recipe.lr=0.01")
CLASSIFIER = {"classifier.weight", "classifier.bias"}


@pytest.fixture
def states(monkeypatch):
    """The network's tensors at the beginning of every training step, by (epoch, batch)."""
    seen = {}
    step = LitClassifier.training_step

    def training_step(self, batch, batch_idx):
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        seen[self.current_epoch, batch_idx] = state
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    return seen


def last(folder, key="state_dict"):
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[key]
    prefix = "model."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("extra", [(), ("recipe.optimizer=sgd", "recipe.weight_decay=0.1")])
def test_first_the_classifier_then_everything(run, tmp_path, states, extra):
    run("run", *FINETUNE, *extra)
    begin, between, end = states[0, 0], states[1, 0], last(tmp_path / "run")
    assert changed(begin, between) == CLASSIFIER
    assert changed(between, end) == set(begin)  # the running statistics are among them
    log = (tmp_path / "run" / "train.log").read_text()
    assert "recipe.freeze_epochs=1 first trains a classifier of random features" in log
    model = create_model(
        "mobilenet_v1_shallow", width_mult=0.125, num_classes=10, in_chans=1, output_stride=16
    )
    total = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in model.classifier.parameters())
    assert f"from epoch 1: training {head:,} of {total:,} parameters, the classifier\n" in log
    assert f"from epoch 2: training {total:,} of {total:,} parameters\n" in log


def test_patterns_are_frozen_for_the_whole_run(run, tmp_path, states):
    patterns = ["stem", "stages.0*", "stages.1.*.norm", "stages.4.1.conv.pointwise.weight"]
    run("run", *FINETUNE, f"recipe.freeze=[{','.join(patterns)}]")
    begin = states[0, 0]
    expected = {
        name
        for name in begin
        if name.startswith(("stem.", "stages.0.", "stages.1.0.norm.", "stages.1.1.norm."))
    } | {"stages.4.1.conv.pointwise.weight"}
    assert set(begin) - changed(begin, last(tmp_path / "run")) == expected


def test_the_average_of_what_is_frozen_is_what_is_frozen(run, tmp_path, states):
    run("run", *FINETUNE, "recipe.freeze_epochs=2", "recipe.model_ema_decay=0.9")
    current, average = last(tmp_path / "run", "current_model_state"), last(tmp_path / "run")
    assert changed(states[0, 0], current) == CLASSIFIER
    assert changed(current, average) >= CLASSIFIER
    for name, tensor in current.items():
        if name not in CLASSIFIER and tensor.is_floating_point():  # 0.9 x + 0.1 x is rounded
            torch.testing.assert_close(average[name], tensor, rtol=1e-6, atol=1e-6)


def test_no_backward_pass_through_what_is_frozen(run, monkeypatch):
    """Only the classifier's gradients exist, and its input is in evaluation mode."""
    seen = []
    hook = lightning.LightningModule.on_after_backward

    def on_after_backward(self):
        grads = {name for name, p in self.model.named_parameters() if p.grad is not None}
        modes = {module.training for module in self.model.stages.modules()}
        seen.append((grads, modes, self.model.dropout.training))
        return hook(self)

    monkeypatch.setattr(LitClassifier, "on_after_backward", on_after_backward, raising=False)
    run("run", *FINETUNE)
    assert seen[:4] == [(CLASSIFIER, {False}, True)] * 4
    assert all(grads > CLASSIFIER and modes == {True} for grads, modes, _ in seen[4:])


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small", "efficientnet_lite0"])
def test_each_part_has_its_rate(name):
    model = create_model(name, width_mult=0.25)
    groups = parameter_groups(model, 0.5, layer_decay=0.8)
    optimizer = create_optimizer(recipe(lr=2.0), groups)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    tail = [*model.head.parameters(), *model.hidden.parameters()]
    body = [list(part.parameters()) for part in (model.stem, *model.stages)]
    parts = [*body, *([tail] if tail else []), list(model.classifier.parameters())]
    for depth, part in enumerate(reversed(parts)):
        for parameter in part:
            assert rates.pop(parameter) == pytest.approx(2.0 * 0.8**depth)
    assert not rates


def test_layer_decay_leaves_the_weight_decay_as_it_is():
    model = create_model("mobilenet_v2", width_mult=0.25)

    def decays(**options):
        groups = parameter_groups(model, 0.5, **options)
        return {p: group["weight_decay"] for group in groups for p in group["params"]}

    assert decays(layer_decay=0.7) == decays()
    names = [group["name"] for group in parameter_groups(model, 0.5, layer_decay=0.7)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("given", "rate"), [("null", 0.01), ("0.02", 0.02)])
def test_the_rates_are_in_tensorboard(run, tmp_path, given, rate):
    run(
        *("run", *FINETUNE, "trainer.limit_train_batches=10", "recipe.schedule=constant"),
        *("recipe.warmup_fraction=0", "recipe.freeze=[stem]", "recipe.layer_decay=0.5"),
        f"recipe.classifier_lr={given}",
    )
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("lr/")}
    assert tags == {"lr/classifier", *(f"lr/stages.{i}" for i in range(5))}

    def curve(tag):
        return [event.value for event in events.Scalars(tag)]

    assert curve("train/lr") == curve("lr/classifier") == pytest.approx([rate, rate])
    assert curve("lr/stages.4") == pytest.approx([0, 0.005])  # the first epoch, the second
    assert curve("lr/stages.0") == pytest.approx([0, 0.01 * 0.5**5])
    log = (tmp_path / "run" / "train.log").read_text()
    assert "learning rates: stages.0 0.000313, stages.1 0.000625, " in log


def test_names_are_modules_or_parameters_or_patterns_of_them():
    model = create_model("mobilenet_v1", width_mult=0.125)
    everything = {name for name, _ in model.named_parameters()}

    def below(*prefixes):
        return {name for name in everything if name.startswith(prefixes)}

    assert frozen_names(model, []) == set()
    assert frozen_names(model, ["stem"]) == below("stem.")
    assert frozen_names(model, ["stages.[01]", "stem.0.norm.bias"]) == below(
        "stages.0.", "stages.1.", "stem.0.norm.bias"
    )
    assert frozen_names(model, ["*"]) == everything
    norms = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.endswith("norm")
        for kind in ("weight", "bias")
    }
    assert frozen_names(model, ["*.norm"]) == norms


@pytest.mark.parametrize(
    ("freeze", "epochs", "message"),
    [
        (["stem", "stage.0"], None, "recipe.freeze: the network has no 'stage.0'; did you mean "),
        (["stage.0"], None, "did you mean 'stages.0'. parts: stem, stages.0, stages.1, .*, class"),
        (["ste"], None, "did you mean 'stem'"),
        (["*"], None, r"recipe.freeze=\['\*'\] leaves nothing to train"),
        (["classifier"], 1, r"leaves nothing to train in the first 1 epochs, which train the cl"),
    ],
)
def test_names_that_cannot_be_frozen(freeze, epochs, message):
    model = create_model("mobilenet_v1", width_mult=0.125)
    with pytest.raises(UserError, match=message) as error:
        check_freeze(model, recipe(freeze=freeze, freeze_epochs=epochs))
    assert "\n" not in str(error.value)


def test_they_are_found_before_the_data_is_looked_for(run):
    with pytest.raises(UserError, match="the network has no 'body'"):
        run("run", *FINETUNE, "recipe.freeze=[body]", "data=folder", "data.root=nowhere")


@pytest.mark.slow
def test_two_processes_freeze_and_go_on(tmp_path):
    """DDP counts its gradients once, but more of them are used in the second epoch."""
    first, second = tmp_path / "first", tmp_path / "second"
    small = [
        *("recipe=finetune", "recipe.lr=0.01", "model=mobilenet_v1", "model.width_mult=0.125"),
        *("trainer.precision=32-true", "trainer.limit_train_batches=4", "data.batch_size=32"),
    ]

    def go(*overrides):
        command = [
            sys.executable,
            str(TRAIN),
            "trainer=ddp",
            "trainer.accelerator=cpu",
            "profile.patience=0",
        ]
        done = subprocess.run(
            [*command, "trainer.devices=2", *overrides],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    settings = composed(*small)
    lightning.seed_everything(settings.seed, verbose=False)
    begin = prepare(settings).model.state_dict()
    go(*small, "trainer.max_epochs=1", f"hydra.run.dir={first}")
    assert changed(begin, last(first)) == CLASSIFIER
    checkpoint = first / "checkpoints" / "last.ckpt"
    go(*small, "trainer.max_epochs=2", f"ckpt_path={checkpoint}", f"hydra.run.dir={second}")
    assert changed(last(first), last(second)) == set(begin)


PREPROCESSING = {
    "image_size": 48,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "interpolation": "bilinear",
    "crop_pct": 0.75,
}


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, and a checkpoint whose network knows other ones."""
    for number in range(40):
        path = tmp_path / "pictures" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    network = {"name": "mobilenet_v1", "width_mult": 0.125, "num_classes": 3, "output_stride": 8}
    model = create_model(**network)
    about = {"model": network, "class_names": ["a", "b", "c"], "preprocessing": PREPROCESSING}
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "dwsep_zoo": about}, tmp_path / "weights.ckpt")
    return tmp_path


OWN = {"image_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}


@pytest.mark.parametrize("given", [{}, OWN, {"image_size": 64, "interpolation": "lanczos"}])
@pytest.mark.parametrize("pretrained", [True, False])
def test_images_are_prepared_as_the_weights_know_them(pictures, given, pretrained):
    """Where the user says nothing; the weights of digits, which have one size, change nothing."""
    weights = pictures / "weights.ckpt" if pretrained else "null"
    small = ("model.width_mult=0.125", f"model.pretrained={weights}")
    folder = ["data=folder", f"data.root={pictures / 'pictures'}", "data.in_memory=false"]
    own = [f"data.{key}={value}" for key, value in given.items()]
    prepared = prepare(composed(*small, *folder, *own))
    data = prepared.data.describe()
    stride = auto_output_stride(data["image_size"])
    assert prepared.network["output_stride"] == (8 if pretrained else stride) <= stride
    expected = {**(PREPROCESSING if pretrained else {}), **given}
    assert {key: data[key] for key in expected} == expected
    digits = prepare(composed(*small, "model=mobilenet_v1")).data.describe()
    assert (digits["image_size"], len(digits["mean"])) == (32, 1)


def test_weights_of_another_network_are_refused_before_the_data_are_read(pictures):
    weights = f"model.pretrained={pictures / 'weights.ckpt'}"
    others = {
        "has width 0.125, the network 0.5": ("model.width_mult=0.5",),
        "conv=depthwise_separable, the network has standard": (
            *("model.width_mult=0.125", "conv=standard"),
        ),
        "weights of mobilenet_v1, not mobilenet_v2": ("model=mobilenet_v2",),
    }
    for message, words in others.items():
        settings = composed(weights, *words, "data=folder", f"data.root={pictures / 'none'}")
        with pytest.raises(UserError, match=message):
            check_network_and_data(settings)


@pytest.mark.slow
def test_few_images_of_new_classes_after_training_on_others(run, tmp_path):
    """Also: the new checkpoint builds its network without the weights that it began with."""
    size = ("model.width_mult=0.25", "trainer.limit_train_batches=1.0")
    run("old", *size, "trainer.max_epochs=3", "data.subset.classes=['0','1','2','3','4']")
    new = (
        *(*size, "recipe=finetune", "recipe.lr=3e-3", "data.batch_size=10"),
        *("data.subset.classes=['5','6','7','8','9']", "data.subset.images_per_class=10"),
        "trainer.max_epochs=5",
    )
    scratch = run("scratch", *new)["metrics"]["test/acc"]
    tuned = run("tuned", *new, f"model.pretrained={tmp_path / 'old'}")["metrics"]["test/acc"]
    assert tuned > scratch + 0.1
    saved = torch.load(tmp_path / "tuned" / "checkpoints" / "last.ckpt", weights_only=True)
    assert "pretrained" not in saved["dwsep_zoo"]["model"]
    assert create_model(**saved["dwsep_zoo"]["model"]).num_classes == 5
