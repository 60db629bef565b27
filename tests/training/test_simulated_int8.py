"""``recipe=qat``: runs in simulated int8."""

import pytest
import torch
from helpers import SMALL, composed, different

from dwsep_zoo import open_artefact
from dwsep_zoo.artefacts import evaluate
from dwsep_zoo.errors import UserError
from dwsep_zoo.quantise import BACKENDS, quantise
from dwsep_zoo.training.check import check

WIDTH = "model.width_mult=0.25"
PRECISE = "recipe.norm_statistics=precise"


def state(folder, name):
    return torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def test_a_run_trains_and_is_tested_in_int8(run, tmp_path):
    """Its accuracy is that of the file made from it; its norms keep their statistics."""
    float_run = tmp_path / "float"
    run("float", WIDTH, PRECISE, "trainer.limit_train_batches=1.0")
    per_tensor = "recipe.simulated_int8=per_tensor"
    record = run("qat", WIDTH, "recipe=qat", per_tensor, f"model.pretrained={float_run}")
    before, after = state(float_run, "best"), state(tmp_path / "qat", "best")
    for name, value in after.items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, before[name])
    assert any(not torch.equal(after[name], before[name]) for name in after)
    if line := BACKENDS["openvino"].missing():
        pytest.skip(line)
    file, artefact = tmp_path / "int8.xml", open_artefact(tmp_path / "qat")
    quantise(artefact, "openvino", file, scheme="per_tensor", equalise=False)
    found = evaluate(open_artefact(file), composed(*SMALL).data, latency_s=0).record.metrics
    assert abs(found["test/acc"] - record["metrics"]["test/acc"]) < 0.03


def test_a_stopped_run_ends_where_the_whole_one_does(run, tmp_path, stopped_in):
    run("float", "trainer.max_epochs=1")
    qat = ("recipe=qat", f"model.pretrained={tmp_path / 'float'}")
    run("whole", *qat)
    with stopped_in(1, 2):
        run("stopped", *qat)
    run("stopped", f"resume={tmp_path / 'stopped'}")
    whole, stopped = (state(tmp_path / name, "last") for name in ("whole", "stopped"))
    assert not different(whole, stopped)


def test_without_trained_weights_it_is_refused():
    with pytest.raises(UserError, match=r"set model.pretrained"):
        check(composed(*SMALL, "recipe=qat"))


def test_it_is_not_compiled():
    given = ("model.pretrained=IMAGENET1K_V1", "trainer.compile=true", "model=mobilenet_v2")
    with pytest.raises(UserError, match=r"not compiled"):
        check(composed(*SMALL, "recipe=qat", *given))
