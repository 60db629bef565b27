"""Precise statistics of norms: what they are, and where a run uses them."""

import copy
import csv

import numpy as np
import pytest
import torch
from data_helpers import in_process, load_data
from helpers import composed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dwsep_zoo import create_model, list_convs
from dwsep_zoo.data import create_data
from dwsep_zoo.schema.record import parse_record
from dwsep_zoo.training.norm_statistics import IN_TEST, IN_VALIDATION, batch_moments, set_statistics

PRECISE = "recipe.norm_statistics=precise"
SMALL = {"num_classes": 10, "in_chans": 1, "width_mult": 0.125, "output_stride": 4}


def all_norms(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}


def renew(model, batches, norms=None):
    norms = all_norms(model) if norms is None else norms
    with torch.no_grad():
        set_statistics(norms, torch.stack(list(batch_moments(model, norms, batches))))


def state(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")}


def recomputed(weights, record, num_images):
    """Statistics made anew for these weights from the digits."""
    model = create_model(**record["network"])
    model.load_state_dict(weights)
    model.eval()
    data = load_data(batch_size=record["config"]["data"]["batch_size"])
    batches = data.statistics_dataloader(num_images)
    renew(model, [data.prepare_batch(batch)[0] for batch in batches])
    return model.state_dict()


@pytest.mark.parametrize("sizes", [[48], [16, 16, 16], [20, 20, 8], [3, 45]])
def test_a_norm_has_the_moments_of_all_its_values(sizes):
    images = torch.randn(48, 3, 5, 7) * 4 + 9
    norm = nn.BatchNorm2d(3)
    renew(norm, images.split(sizes))
    values = images.double().permute(1, 0, 2, 3).flatten(1).numpy()
    np.testing.assert_allclose(norm.running_mean, values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, values.var(1, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("conv", list_convs())
def test_from_one_batch_evaluation_computes_what_training_computes(conv):
    model = create_model("mobilenet_v1", **SMALL, conv=conv).eval()
    images = torch.randn(64, 1, 16, 16)
    renew(model, [images])
    assert not any(module.training for module in model.modules())
    evaluated = model(images)
    for norm in all_norms(model).values():
        norm.train()
    # The variance that normalises is biased, the one that is kept is not.
    torch.testing.assert_close(evaluated, model(images), rtol=2e-2, atol=2e-2)


def test_dropout_and_stochastic_depth_are_off():
    torch.manual_seed(0)
    options = {**SMALL, "drop_rate": 0.9, "drop_path_rate": 0.9}
    model = create_model("mobilenet_v2", **options).eval()
    other = create_model("mobilenet_v2", **SMALL).eval()
    other.load_state_dict(model.state_dict())
    before = torch.random.get_rng_state()
    for network in (model, other):
        renew(network, torch.randn(32, 1, 16, 16, generator=torch.manual_seed(1)).split(16))
        torch.random.set_rng_state(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_all_but_the_statistics_of_the_named_norms_stays():
    model = create_model("mobilenet_v1", **SMALL).train()
    for norm in all_norms(model).values():
        norm.num_batches_tracked.fill_(7)
    frozen = [name for name in all_norms(model) if name.startswith("stem")]
    norms = {name: norm for name, norm in all_norms(model).items() if name not in frozen}
    norms[next(iter(norms))].running_var.fill_(float("inf"))
    before = copy.deepcopy(model.state_dict())
    modes = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
    renew(model, [torch.randn(8, 1, 16, 16)], norms)
    assert [(m.training, getattr(m, "momentum", None)) for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        assert torch.isfinite(value).all(), name
        if name in parameters:
            assert torch.equal(value, before[name]), name
        elif module in norms:
            renewed = kind in ("running_mean", "running_var")
            assert torch.equal(value, before[name]) != renewed, name


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("limit", [100, 10_000])
def test_processes_share_the_pictures_in_batches_of_one_size(world_size, limit):
    settings = composed("data.batch_size=32").data
    data = create_data(settings, seed=1, data_dir="unused")
    data.setup()
    labels = []
    for rank in range(world_size):
        shares = in_process(data, rank, world_size).statistics_dataloader(limit)
        sizes = [len(batch.labels) for batch in shares]
        assert set(sizes) == {min(32, limit // world_size)}
        labels.append(len(sizes))
    assert len(set(labels)) == 1
    used = min(limit, len(data.splits["train"]))
    assert used - 32 * world_size < sum(labels) * sizes[0] <= used


@pytest.mark.parametrize("average", [None, 0.5])
def test_checkpoints_have_the_statistics_of_their_weights(run, tmp_path, average):
    record = run("run", PRECISE, f"recipe.model_ema_decay={average or 'null'}")
    folder = tmp_path / "run" / "checkpoints"
    for name, num_images in (("last", IN_VALIDATION), ("best", IN_TEST)):
        weights = state(folder / f"{name}.ckpt")
        again = recomputed(weights, record, num_images)
        for key, value in weights.items():
            torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_running_statistics_are_left_alone(run, tmp_path):
    tables, weights = [], []
    for kind in ("precise", "running"):
        run(kind, f"recipe.norm_statistics={kind}", "test=false")
        with (tmp_path / kind / "metrics.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
        weights.append(state(tmp_path / kind / "checkpoints/last.ckpt"))
    for precise, running in zip(*tables, strict=True):
        assert precise["train/loss"] == running["train/loss"]
        assert precise["val/loss"] != running["val/loss"]
    for key, value in weights[0].items():
        renewed = key.endswith(("running_mean", "running_var"))
        assert torch.equal(value, weights[1][key]) != renewed, key


def test_frozen_norms_keep_their_statistics(run, tmp_path):
    run("first")
    before = state(tmp_path / "first/checkpoints/best.ckpt")
    run("tuned", PRECISE, f"model.pretrained={tmp_path / 'first'}", "recipe.freeze=[stem,stages.0]")
    after = state(tmp_path / "tuned/checkpoints/best.ckpt")
    for key, value in before.items():
        if key.endswith(("running_mean", "running_var")):
            assert torch.equal(value, after[key]) == key.startswith(("stem", "stages.0")), key


def test_a_test_without_training_uses_the_checkpoint_as_it_is(run, tmp_path):
    trained = run("run", "recipe.norm_statistics=running")
    best = tmp_path / "run/checkpoints/best.ckpt"
    before = best.read_bytes()
    tested = run("tested", f"ckpt_path={best}", "train=false", PRECISE)
    assert tested["metrics"]["test/loss"] == trained["metrics"]["test/loss"]
    assert best.read_bytes() == before


@pytest.mark.parametrize("schema", [1, 2])
def test_older_records_had_running_statistics(schema):
    config = {**composed().plain(), "recipe": {"lr": 0.1}}
    record = parse_record({"schema": schema, "model": "m", "conv": "c", "config": config})
    assert record.configured("recipe.norm_statistics") == "running"
