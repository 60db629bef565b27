"""What a run leaves behind, and how it fails."""

import json
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch
from data_helpers import load_data
from helpers import composed, last_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import dwsep_zoo
from dwsep_zoo import UserError, count, create_model
from dwsep_zoo.data.augment import normalise
from dwsep_zoo.training.classifier import LitClassifier
from dwsep_zoo.training.prepare import auto_output_stride
from dwsep_zoo.training.process_memory import keep_memory
from dwsep_zoo.training.trainer import auto_precision

pytestmark = pytest.mark.bounds


def test_the_record_of_a_run(run, tmp_path):
    changes = ("seed=3", "tags=[a]", "profile.roofline=true", "logger.pictures=true")
    result = run("run", "conv=standard", *changes)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["status"] == "finished"
    assert (result["model"], result["conv"], result["seed"]) == (
        "mobilenet_v1_shallow",
        "standard",
        3,
    )
    cost = count(create_model(**result_network(tmp_path / "run")), result["input_size"])
    assert (result["params"], result["macs"]) == (cost.params, cost.macs)
    assert result["config"]["tags"] == ["a"]
    assert set(result["metrics"]) >= {"train/acc", "val/loss", "val/acc", "val/acc_top5"}
    assert set(result["metrics"]) >= {"test/loss", "test/acc", "test/acc_top5"}
    assert result["data"]["splits"] == {"train": 1259, "val": 179, "test": 359}
    (latency,) = result["latency"]
    assert 0 < latency["p10_ms"] <= latency["p50_ms"] <= latency["p90_ms"]
    assert latency["threads"] == 1
    (network,) = result["roofline"]["networks"]
    assert network["layers"]
    assert result["time"]["train_s"] < result["time"]["total_s"]
    assert result["images_per_second"] > 0
    assert 4 * result["params"] < result["size_bytes"] < 5 * result["params"]
    assert torch.__version__.startswith(result["versions"]["torch"])
    files = {path.name for path in (tmp_path / "run").iterdir()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert files - events == {
        *("checkpoints", "metrics.csv", "predictions.npz", "result.json", "train.log"),
        *("batch.png", "confusion.png", "mistakes.png", "curves.png"),  # no depthwise filters
    }


def test_the_predictions_are_those_of_the_tested_network(run, tmp_path):
    result = run("run")
    kept = np.load(tmp_path / "run" / "predictions.npz")
    assert kept["label"].shape == kept["predicted"].shape == (359,)
    model = dwsep_zoo.load(tmp_path / "run").eval()
    data = load_data()
    images = data.splits["test"]
    assert kept["label"].tolist() == images.labels.tolist()
    x = normalise(images.pixels.permute(0, 3, 1, 2), data.mean, data.std)
    with torch.inference_mode():
        assert kept["predicted"].tolist() == model(x).argmax(1).tolist()
    right = (kept["label"] == kept["predicted"]).mean()
    assert right == pytest.approx(result["metrics"]["test/acc"], abs=1e-6)


def test_a_matched_run_has_the_width_that_was_found(run, tmp_path, caplog):
    result = run("run", "match=macs", "trainer.max_epochs=1")
    match = result["match"]
    standard = run("standard", "match=macs", "conv=standard", "trainer.max_epochs=1")
    assert standard["match"] is None
    assert (match["quantity"], match["to"], match["target"]) == (
        *("macs", "standard"),
        standard["macs"],
    )
    assert match["achieved"] == result["macs"]
    assert result["width_mult"] == match["width_mult"] == result["network"]["width_mult"]
    assert result["config"]["model"]["width_mult"] == standard["width_mult"] == 0.125
    assert count(dwsep_zoo.load(tmp_path / "run"), result["input_size"]).macs == result["macs"]


def result_network(folder):
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return saved["dwsep_zoo"]["model"]


@pytest.mark.parametrize("decay", ["null", "0.5"])
def test_a_checkpoint_is_plain_data_that_builds_the_network_again(run, tmp_path, decay):
    result = run("run", f"recipe.model_ema_decay={decay}")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    about = saved["dwsep_zoo"]
    assert about["class_names"] == [str(i) for i in range(10)]
    assert about["preprocessing"]["mean"] == result["data"]["mean"]
    model = create_model(**about["model"]).eval()
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if prefix in k}
    model.load_state_dict(state)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_tensorboard_has_the_curves_and_hparams_in_one_run(run, tmp_path):
    result = run("run", "trainer.limit_train_batches=10")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {"train/loss", "train/acc", "train/lr", "val/loss", "val/acc", "test/acc"}
    for tag in ("perf/params_m", "perf/macs_m", "best/val_acc", "perf/size_mb", "perf/train_s"):
        assert tag in scalars
    assert "perf/images_per_second" in scalars
    latency = events.Scalars("perf/latency_ms_p50")[-1].value
    assert latency == pytest.approx(result["latency"][0]["p50_ms"])
    assert [event.step for event in events.Scalars("val/acc")] == [9, 19]
    assert [event.step for event in events.Scalars("test/acc")] == [20]
    assert "epoch" not in scalars
    assert not [p for p in (tmp_path / "run").rglob("events*") if p.parent != tmp_path / "run"]


def test_all_of_tensorboard_is_written_when_the_run_ends(run, tmp_path):
    before = set(threading.enumerate())
    result = run("run")
    assert not [t for t in set(threading.enumerate()) - before if "Writer" in type(t).__name__]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (said,) = events.Tensors("latency/text_summary")
    latency = f"latency {result['latency'][0]['p50_ms']:.2f} ms"
    assert latency in said.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(("logs", "shown"), [(".", "."), ("logs", "run")])
def test_the_last_lines_name_a_folder_that_has_the_run(run, tmp_path, logs, shown):
    run("run", f"paths.log_dir={tmp_path / logs}")
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert lines[-2].endswith(f"tensorboard --logdir {tmp_path / shown}")
    assert lines[-1].endswith(f"dwsep compare {tmp_path / shown}")


def test_both_variants_see_the_same_batches(run, monkeypatch):
    seen = []
    step = LitClassifier.training_step

    def training_step(self, batch, batch_idx):
        seen.append((batch[0].clone(), batch[1].clone()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    run("separable")
    run("standard", "conv=standard", "model=mobilenet_v2")
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == 8
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    assert not torch.equal(first[0][0], first[1][0])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run):
    def values(result):
        return {k: v for k, v in result["metrics"].items() if k.startswith(("train", "test"))}

    first = values(run("first"))
    assert values(run("again")) == first
    assert values(run("other", "seed=1")) != first


def test_a_loss_that_is_not_finite_ends_the_run(run, tmp_path):
    with pytest.raises(UserError, match=r"train/loss became .* smaller recipe.lr"):
        run("run", "recipe.lr=1e30", "recipe.schedule=constant", "recipe.warmup_fraction=0")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "train/loss became" in result["error"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image_size=8", r"images of 8 pixels are smaller than the network's output stride"),
        ("conv.depth_multiplier=0", "conv.depth_multiplier must be a whole number from 1 up"),
        ("profile.runtimes=[pytorch]", "pytorch"),
        ("to=standart", "unknown to 'standart'; did you mean 'standard'"),
        ("data.cutout=3", "cutout"),
        ("data.root=pictures", "data.root"),
        ("model.act=relu7", "'relu7'; did you mean 'relu"),
        ("recipe.optimizer=adahessian", "recipe.optimizer=adahessian needs second derivatives"),
    ],
)
def test_values_that_only_their_users_know_are_refused_before_anything_is_written(
    run, tmp_path, override, message
):
    extra = ["model.output_stride=16"] if "image_size" in override else []
    with pytest.raises(UserError, match=message) as error:
        run("run", override, *extra)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_the_training(run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(UserError, match="has 0 MB free; the checkpoints of this run need about"):
        run("run")


@pytest.mark.parametrize(
    ("size", "stride"), [(224, 32), (96, 32), (64, 32), (63, 16), (32, 16), (28, 8), (8, 4), (1, 1)]
)
def test_auto_output_stride_leaves_two_pixels(size, stride):
    assert auto_output_stride(size) == stride


def test_precision_is_bfloat16_where_the_hardware_has_it(monkeypatch):
    for bf16, amx, expected in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda bf16=bf16: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert auto_precision("cpu").startswith(expected)
    assert auto_precision("mps") == "32-true"


def test_memory_is_kept_where_there_is_a_glibc():
    assert keep_memory() in (True, False)
    assert torch.ones(20_000_000).sum() == 20_000_000


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_clipped_gradients(run, tmp_path, precision):
    """To next to nothing: without momentum and decay the weights then stay where they begin."""
    plain = ("recipe.momentum=0", "recipe.weight_decay=0", f"trainer.precision={precision}")
    ends = []
    for epochs in (1, 2):
        folder = f"{epochs}-epochs"
        run(folder, *plain, "trainer.gradient_clip_val=1e-9", f"trainer.max_epochs={epochs}")
        ends.append(last_weights(tmp_path / folder))
    for name, weight in ends[0].items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(ends[1][name], weight, rtol=0, atol=1e-6)
    assert dwsep_zoo.load(tmp_path / folder).stem[0].conv.weight.dtype == torch.float32


def test_outputs_for_several_views_are_averaged(run, tmp_path, monkeypatch):
    overrides = ["recipe.eval_flip=true", "recipe.eval_shift=true"]
    recipe = composed(*overrides).recipe
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
    module = LitClassifier(model, num_classes=3, recipe=recipe, seed=0, description={})
    seen = {}
    monkeypatch.setattr(module, "log", lambda name, *_, **__: seen.setdefault(name, 1))
    images, labels = torch.randn(50, 3, 3, 3), torch.zeros(50, dtype=torch.int64)
    moved = [images, images[..., [1, 0, 1], :][..., [1, 0, 1]]]  # to the lower right
    moved.append(images[..., [1, 2, 1], :][..., [1, 2, 1]])
    want = sum(model(view) + model(view.flip(3)) for view in moved).argmax(1)
    assert not torch.equal(model(images).argmax(1), want)
    assert torch.equal(module.test_step((images, labels), 0)["predicted"], want)
    assert "test/acc" in seen
    run("run", *overrides)
    log = (tmp_path / "run" / "train.log").read_text()
    said = "each image and the same moved by a pixel to two sides and mirrored averaged"
    assert f"the best on validation; {said})" in log
