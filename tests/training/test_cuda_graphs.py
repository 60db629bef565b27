"""Training steps as CUDA graphs: when they are recorded, and that they compute the same.

Without a GPU a recorder replays a step by running it again, so everything is tested but CUDA: what
the step reads, where its tensors are, that it never waits for the device, and when it is recorded.
"""

from __future__ import annotations

import copy
import csv
import logging
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import different
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dwsep_zoo import create_model
from dwsep_zoo.acceleration import accelerate, unchanged
from dwsep_zoo.data.augment import CropFlip
from dwsep_zoo.data.loader import BatchKey, RawBatch
from dwsep_zoo.data.mix import Mixing, mix
from dwsep_zoo.training import compile as compiling
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.cuda_graphs import WARM_UP, StepGraph
from dwsep_zoo.training.metrics import Mean
from dwsep_zoo.training.muon import Muon
from dwsep_zoo.training.objective import cross_entropy, main_labels
from dwsep_zoo.training.progressive import resize

EPOCH = 5  # steps of the runs below


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU's step would wait for the device, or copy from the CPU."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "lift_fresh")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITS), f"{name} in a recorded step"
        return func(*args, **(kwargs or {}))


class Again:
    """Replays a step by running it again.

    A real recorder runs the Python of the step once and its kernels when it is replayed, right
    after that. This one runs both at once. Gradients of a replay are where those of the first are.
    """

    guard = NoWaiting

    def __init__(self, network):
        self.network = network
        self.calls = []

    def aside(self, step):
        self.calls.append("run")
        step()

    def record(self, step):
        self.calls.append("record")
        with self.guard():
            step()
        places = [(p, p.grad) for p in self.network.parameters() if p.grad is not None]

        def replay():
            self.calls.append("replay")
            if self.calls[-2] == "record":
                return
            before = [parameter.grad for parameter in self.network.parameters()]
            with self.guard():
                step()
            with torch.no_grad():
                for parameter, place in places:
                    place.copy_(parameter.grad)
            for parameter, gradient in zip(self.network.parameters(), before, strict=True):
                parameter.grad = gradient  # a graph knows nothing of Python

        return replay


def steps(network, *, whole=True, recorder=None):
    """A function that makes a step with images and labels."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=True)
    recorder = recorder or Again(network)
    graph = StepGraph(network, optimizer, whole=whole, recorder=recorder)

    def run(x, y, kind=None):
        def gradients():
            optimizer.zero_grad()
            F.cross_entropy(network(x).mean((2, 3)), y).backward()
            if whole:
                optimizer.step()

        graph.run(kind, (x, y), gradients)
        if not whole:
            optimizer.step()

    return run, graph, recorder.calls


def conv():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def batch(seed, images=6, side=8):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, side, side, generator=g), torch.arange(images) % 4


FIRST = [*["run"] * WARM_UP, "record", "replay"]
"""What a kind of steps begins with."""


@pytest.mark.parametrize("whole", [True, False])
def test_replayed_steps_are_the_steps(whole):
    """The learning rate changes in every step."""
    torch.manual_seed(0)
    network = conv()
    plain = copy.deepcopy(network)
    run, graph, calls = steps(network, whole=whole)
    optimizer = graph.optimizer
    other = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, fused=True)
    for number in range(8):
        rate = 2.0**-number
        optimizer.param_groups[0]["lr"] = other.param_groups[0]["lr"] = rate
        x, y = batch(number)
        run(x, y)
        assert optimizer.param_groups[0]["lr"] == rate  # a number again
        F.cross_entropy(plain(x).mean((2, 3)), y).backward()
        other.step()
        other.zero_grad()
    assert different(network.state_dict(), plain.state_dict()) == []
    assert calls == [*FIRST, *["replay"] * (7 - WARM_UP)]


@pytest.mark.parametrize(
    "changed",
    [
        {"images": 5},  # a smaller last batch
        {"side": 16},
        {"kind": "compiled"},
    ],
    ids=str,
)
def test_another_kind_of_batches_is_recorded_anew(changed):
    run, graph, calls = steps(conv())
    kind = changed.pop("kind", None)
    for number in range(WARM_UP + 2):
        run(*batch(number))
    before = graph.replay
    calls.clear()
    for number in range(WARM_UP + 1):
        run(*batch(number, **changed), kind=kind)
    assert calls == FIRST
    assert graph.replay is not before


def frozen(network, optimizer):
    network[0].requires_grad_(False)


def evaluated(network, optimizer):
    network[1].eval()


def moved(network, optimizer):
    network[0].weight.data = network[0].weight.data.clone()


@pytest.mark.parametrize("change", [frozen, evaluated, moved])
def test_what_a_graph_takes_for_granted(change):
    network = conv()
    run, graph, _ = steps(network)
    for number in range(WARM_UP + 1):
        run(*batch(number))
    graph.look()
    assert graph.replay  # nothing has changed
    change(network, graph.optimizer)
    graph.look()
    assert graph.replay is None


def test_loaded_weights_keep_their_place_and_an_optimizer_does_not():
    network = conv()
    run, graph, calls = steps(network)
    for number in range(WARM_UP + 1):
        run(*batch(number))
    network.load_state_dict(conv().state_dict())
    graph.look()
    assert graph.replay
    graph.optimizer.load_state_dict(copy.deepcopy(graph.optimizer.state_dict()))
    run(*batch(0))
    assert calls == [*FIRST, "run"]


def test_hooks_are_called_in_every_step():
    network, heard = conv(), []
    run, graph, calls = steps(network)
    hook = network[0].register_forward_hook(lambda *args: heard.append(args))
    for number in range(WARM_UP + 2):
        run(*batch(number))
    assert calls == ["run"] * (WARM_UP + 2)
    assert len(heard) == WARM_UP + 2
    hook.remove()
    run(*batch(0))
    assert calls[-2:] == ["record", "replay"]
    network[0].register_forward_hook(lambda *args: heard.append(args))
    graph.look()
    run(*batch(0))
    assert len(heard) == WARM_UP + 3


def test_gradients_are_where_the_optimizer_looks_for_them():
    """Validation sets them to None, which a replay does not undo."""
    network = conv()
    run, graph, _ = steps(network, whole=False)
    for number in range(WARM_UP + 1):
        run(*batch(number))
    graph.optimizer.zero_grad()
    run(*batch(0))
    assert all(p.grad is not None for p in network.parameters())


class Broken(Again):
    def __init__(self, error):
        super().__init__(None)
        self.error = error

    def record(self, step):
        raise self.error


def test_where_it_is_impossible_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    error = RuntimeError("operation not permitted when stream is capturing\nand more")
    network = conv()
    run, _, _ = steps(network, recorder=Broken(error))
    with caplog.at_level(logging.WARNING, "dwsep_zoo"):
        for number in range(WARM_UP + 3):
            before = network[0].weight.clone()
            run(*batch(number))
            assert not torch.equal(network[0].weight, before)
    assert [r.message for r in caplog.records] == [
        "training steps: not as CUDA graphs: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]


def test_no_memory_is_no_reason_to_go_on():
    run, _, _ = steps(conv(), recorder=Broken(torch.OutOfMemoryError("CUDA out of memory")))
    for number in range(WARM_UP):
        run(*batch(number))
    with pytest.raises(torch.OutOfMemoryError):
        run(*batch(0))


def test_statistics_and_random_numbers_are_given_back():
    norm, x = nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    before, state = copy.deepcopy(norm.state_dict()), torch.get_rng_state()
    with unchanged(norm):
        norm(x)
        torch.randn(1)
    assert all(torch.equal(norm.state_dict()[key], before[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "clip", "scaler", "recorded"),
    [
        *((name, None, None, True) for name in ("sgd", "adamw", "muon")),
        ("lamb", None, None, False),
        ("sgd", 0.1, None, False),
        ("adamw", None, object(), False),
    ],
)
def test_whose_steps_are_recorded(name, clip, scaler, recorded):
    trainer = SimpleNamespace(
        gradient_clip_val=clip, precision_plugin=SimpleNamespace(scaler=scaler)
    )
    assert compiling.optimizer_can_be_recorded(trainer, name) is recorded


def places(module, graph):
    """The addresses of everything that a step changes."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for index, state in enumerate(graph.optimizer.state.values()):
        tensors |= {f"{key} of {index}": value for key, value in state.items()}
    tensors |= {f"rate {index}": rate for index, rate in enumerate(graph.rates)}
    for name, metric in module.named_modules():
        if isinstance(metric, Mean):
            tensors |= {f"{name}.total": metric.total, f"{name}.count": metric.count}
    for callback in module.trainer.callbacks:
        if average := getattr(callback, "_average_model", None):
            tensors |= {f"average {k}": v for k, v in average.state_dict().items()}
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


@pytest.fixture
def recorders(monkeypatch):
    """The recorders of the runs that follow, whose steps are recorded; one a run.

    Each has the places of the run's tensors after each step.
    """
    made = []

    def graph(network, optimizer, *, whole):
        made.append(Again(network))
        made[-1].places = []
        return StepGraph(network, optimizer, whole=whole, recorder=made[-1])

    own = LitClassifier.optimizer_step

    def optimizer_step(self, *args, **kwargs):
        own(self, *args, **kwargs)
        if self.graph:
            made[-1].places.append(places(self, self.graph))

    monkeypatch.setattr(Again, "guard", nullcontext)  # fused operators give way to a guard
    monkeypatch.setattr(compiling, "StepGraph", graph)
    monkeypatch.setattr(compiling, "can_be_graphs", lambda trainer, device: True)
    monkeypatch.setattr(LitClassifier, "optimizer_step", optimizer_step)
    return made


def end(folder):
    """With which a run ended: network, optimizer and average; and the table of its epochs."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    tensors = {f"state {k}": v for k, v in saved["state_dict"].items()}
    tensors |= {f"current {k}": v for k, v in saved.get("current_model_state", {}).items()}
    tensors |= {
        f"{key} of {index}": value
        for index, state in optimizer["state"].items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    with (folder / "metrics.csv").open() as file:
        rows = [
            {k: v for k, v in row.items() if k not in ("images_per_second", "seconds")}
            for row in csv.DictReader(file)
        ]
    rates = [group["lr"] for group in optimizer["param_groups"]]
    return tensors, (rows, rates, saved["global_step"], saved["lr_schedulers"])


def compare(folder, one="graph", other="plain"):
    (tensors, values), (other_tensors, other_values) = end(folder / one), end(folder / other)
    assert different(tensors, other_tensors) == []
    assert values == other_values


RUN = (f"trainer.limit_train_batches={EPOCH}", "model.drop_rate=0.5", "test=false")
AVERAGE = "recipe.model_ema_decay=0.9"
EXACT = ("recipe.lr=0.0009765625", "recipe.schedule=constant", "recipe.warmup_fraction=0")
"""A rate that float32 has, of which a graph has tensors."""
WHOLE = [*FIRST, *["replay"] * (2 * EPOCH - WARM_UP - 1)]


@pytest.mark.parametrize(
    "extra",
    [
        ("recipe.optimizer=sgd", AVERAGE),
        ("recipe.optimizer=muon", AVERAGE, "trainer.precision=bf16-mixed"),
        ("trainer.gradient_clip_val=0.1", AVERAGE),  # the optimizer is not recorded
    ],
    ids=lambda extra: extra[0],
)
def test_a_run_of_graphs_ends_as_one_without(run, tmp_path, recorders, extra):
    """Its tensors stay where they are, also through validation and the average's use in it."""
    run("plain", "trainer.compile=false", *RUN, *extra)
    assert recorders == []
    run("graph", *RUN, *extra)
    (recorder,) = recorders
    assert recorder.calls == WHOLE
    compare(tmp_path)
    first, *others = recorder.places
    assert len(others) == 2 * EPOCH - 1
    assert all(other == first for other in others)
    assert any(name.startswith("average") for name in first) is (AVERAGE in extra)
    assert {"rate 0", "train_metrics.loss.total"} < set(first)


def test_no_step_of_a_run_waits_for_the_device(run, recorders, monkeypatch):
    monkeypatch.setattr(Again, "guard", NoWaiting)
    run("run", *RUN, "recipe.optimizer=muon", AVERAGE, "data.augment.cutout=8")
    assert recorders[0].calls == WHOLE


def test_a_change_between_epochs_is_recorded_anew(run, tmp_path, recorders):
    """More parameters are trained, on larger pictures, with statistics that were exchanged."""
    extra = (*RUN, "recipe=finetune", "recipe.layer_decay=0.5", "recipe.norm_statistics=precise")
    extra += ("recipe.initial_size=16", "recipe.full_size_from=0.5", *EXACT)
    run("plain", "trainer.compile=false", *extra)
    run("graph", *extra)
    (recorder,) = recorders
    assert recorder.calls == 2 * [*FIRST, *["replay"] * (EPOCH - WARM_UP - 1)]
    compare(tmp_path)


def test_a_resumed_run_records_anew_and_ends_alike(run, tmp_path, recorders, monkeypatch):
    extra = (*RUN, AVERAGE)
    run("plain", "trainer.compile=false", *extra)
    own = LitClassifier.on_train_batch_start

    def stop(self, batch, batch_idx):
        own(self, batch, batch_idx)
        if batch_idx == WARM_UP:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "on_train_batch_start", stop)
        with pytest.raises(SystemExit):
            run("graph", *extra)
    run("graph", f"resume={tmp_path / 'graph'}")
    assert [recorder.calls.count("record") for recorder in recorders] == [1, 1]
    (tensors, _), (others, _) = end(tmp_path / "graph"), end(tmp_path / "plain")
    assert different(tensors, others) == []


def test_compiled_steps_are_recorded_too(run, recorders, monkeypatch):
    passes = []

    def compiled_forward(model, device, *, recorded):
        def forward(x):
            passes.append(recorded)
            return model(x)

        return forward

    monkeypatch.setattr(compiling, "compiled_forward", compiled_forward)
    run("run", "trainer.compile=true", *RUN)
    (recorder,) = recorders
    assert recorder.calls == [*FIRST, *WHOLE]  # the measured step first
    assert passes == [True] * (len(FIRST) - 1 + 2 * EPOCH)


def test_no_step_asks_the_device():
    """Fake tensors of a GPU refuse to become numbers, and to meet tensors of the CPU.

    PyTorch has no fake kernels of fused optimizers, and no backward pass without a driver.
    """
    mean = Mean()
    augment = CropFlip(cutout=4, auto_augment="rand-m9-mstd0.5", color_jitter=0.4, erase=0.25)
    drawn = augment.draw(4, torch.Generator().manual_seed(0), 16).tolist()
    mixed = Mixing(0.2, 1.0).draw(BatchKey(0, 0, 0, 0, torch.arange(4), torch.zeros(4))).tolist()
    with FakeTensorMode(), torch.device("cuda"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 1))
        matrices = [network[0].weight, network[2].weight]
        rate = torch.zeros(())
        muon = Muon([{"params": matrices, "lr": rate, "momentum": 0.6, "orthogonal": True}])
        images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
        labels = torch.zeros(4, dtype=torch.int64)
        raw = RawBatch(images, labels, True, torch.tensor(drawn), torch.tensor(mixed))
        mean.total, mean.count = torch.zeros(2)
        for _ in range(2):
            x = augment(raw.images, raw.draws, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
            x, share = mix(x, raw.mix)
            logits = network(resize(x, 12)).mean((2, 3))
            loss = cross_entropy(logits, raw.labels, share=share, label_smoothing=0.1)
            for matrix in matrices:
                matrix.grad = torch.zeros_like(matrix)
            muon.step()
            mean.add((logits.topk(5).indices == main_labels(labels, share)[:, None]).sum(), 4)
        with pytest.raises(DataDependentOutputException):
            loss.item()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(16, device="cpu")


def test_the_mean_of_an_epoch():
    mean = Mean()
    for part in ([1.0, 2.0], [6.0]):
        mean.add(torch.tensor(part).sum(), len(part))
    mean.update()
    place = mean.total.data_ptr()
    assert mean.compute() == 3
    mean.reset()
    assert not mean.update_called
    assert (mean.total, mean.count, mean.total.data_ptr()) == (0, 0, place)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_equals_eager_steps(name, dtype, tolerance, monkeypatch):
    """Steps of two sizes of images, with what they leave in the network.

    In a graph cuBLAS may split sums differently, which bfloat16 and some steps make visible.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def train(graphs):
        torch.manual_seed(0)
        model = create_model(name, num_classes=10, width_mult=0.25, drop_rate=0.0).cuda()
        model = accelerate(model.to(memory_format=torch.channels_last))
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, fused=True)
        graph = StepGraph(model, optimizer, whole=True)
        for number in range(2 * (WARM_UP + 1)):
            side = 64 if number <= WARM_UP else 32
            x = torch.randn(8, 3, side, side, device="cuda")
            x = x.to(memory_format=torch.channels_last)
            y = torch.arange(8, device="cuda")

            def step(x=x, y=y):
                with torch.autocast("cuda", torch.bfloat16, dtype is torch.bfloat16, False):
                    logits = model(x)
                optimizer.zero_grad()
                F.cross_entropy(logits.float(), y).backward()
                optimizer.step()

            graph.run(None, (x, y), step) if graphs else step()
            assert bool(graph.replay) is (graphs and number % (WARM_UP + 1) == WARM_UP)
        return model.state_dict()

    for (key, a), b in zip(train(True).items(), train(False).values(), strict=True):
        error = (a.double() - b.double()).norm() / (b.double().norm() + 1e-3)
        assert error < tolerance, key


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_run_on_a_gpu_ends_as_one_without_graphs(run, tmp_path, optimizer, caplog):
    extra = ("trainer.accelerator=gpu", f"recipe.optimizer={optimizer}", *RUN[:1])
    extra += (AVERAGE,)
    run("plain", "trainer.compile=false", *extra)
    run("graph", *extra)
    assert "not as CUDA graphs" not in caplog.text
    (tensors, _), (others, _) = end(tmp_path / "graph"), end(tmp_path / "plain")
    for key, value in others.items():
        error = (tensors[key].double() - value.double()).norm()
        assert error <= 0.01 * value.double().norm() + 1e-3, key
