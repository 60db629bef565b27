"""The data module as a whole, and as lightning uses it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from data_helpers import batches, data_settings, load_data
from lightning_utilities.core.apply_func import apply_to_collection

from dwsep_zoo.data import DATASETS, create_data, list_options
from dwsep_zoo.data.augment import normalise
from dwsep_zoo.data.pipelines import FilePipeline, MemoryPipeline
from dwsep_zoo.errors import UserError


@pytest.fixture
def photos(pictures) -> Callable[..., Path]:
    """A folder of pictures too large to be decoded into memory by themselves."""
    return lambda counts: pictures(counts, size=(80, 70))


def test_digits_are_described():
    data = load_data()
    described = data.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["splits"] == {"train": 1259, "val": 179, "test": 359}
    assert (data.num_classes, data.in_chans, data.image_size, data.batch_size) == (10, 1, 32, 64)
    assert described["subset"] is None
    assert described["augment"] == {
        "crop_padding": 4,
        "padding_mode": "zeros",
        "flip": False,
        "cutout": 0,
        "auto_augment": None,
        "color_jitter": None,
        "erase": None,
    }


def test_training_images_are_normalised_by_their_own_statistics():
    data = load_data(augment={"crop_padding": 0}, batch_size=1259)
    ((images, _),) = batches(data)
    assert images.shape == (1259, 1, 32, 32)
    assert images.dtype == torch.float32
    assert abs(images.mean().item()) < 1e-3
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_runs_share_splits_and_differ_in_order():
    one, other = load_data(seed=0), load_data(seed=1)
    assert one.describe() == other.describe()
    assert one.splits["test"].names == other.splits["test"].names
    assert not torch.equal(batches(one)[0][1], batches(other)[0][1])
    assert load_data(split_seed=1).fingerprint != one.fingerprint


def test_training_is_augmented_and_evaluation_is_not():
    data = load_data()
    first, second = batches(data)[0][0], batches(data)[0][0]
    assert torch.equal(first, second)
    assert not torch.equal(first, batches(data, epoch=1)[0][0])
    plain = torch.cat([images for images, _ in batches(data, "val")])
    expected = data.splits["val"].pixels.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(plain, (expected - data.mean[0]) / data.std[0])


def test_reduced_precision_does_not_touch_the_augmentation():
    """Trainers of reduced precision round all floating-point numbers of a batch."""
    data = load_data()
    batch = next(iter(data.train_dataloader()))
    rounded = apply_to_collection(
        batch, torch.Tensor, lambda x: x.bfloat16() if x.is_floating_point() else x
    )
    assert type(rounded) is type(batch)
    for one, other in zip(
        data.prepare_batch(batch),
        data.prepare_batch(rounded),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_large_batch_is_lowered(caplog):
    data = load_data(subset={"images_per_class": 2})
    assert data.batch_size == 20
    assert "batch_size=64 is lowered to the 20" in caplog.text
    assert [len(labels) for _, labels in batches(data)] == [20]


def test_processes_have_their_share():
    data = load_data()
    seen = []
    for rank in range(2):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            num_devices=2,
            overfit_batches=0,
            strategy=strategy,
            precision="32-true",
        )
        assert len(data.train_dataloader()) == 1259 // 2 // 64
        seen += [labels for _, labels in batches(data, "test")]
    data.trainer = None
    alone = [labels for _, labels in batches(data, "test")]
    assert sorted(torch.cat(seen).tolist()) == sorted(torch.cat(alone).tolist())


def test_subset_is_recorded():
    data = load_data(subset={"classes": ["3", "8", "1"], "images_per_class": 10, "seed": 7})
    subset = data.describe()["subset"]
    assert subset["seed"] == 7
    assert subset["classes"] == ["1", "3", "8"] == data.class_names
    assert subset["num_images"]["train"] == len(subset["images"]["train"]) == 30
    assert subset["num_images"] == data.describe()["splits"]
    assert data.splits["train"].names == subset["images"]["train"]
    assert data.fingerprint != load_data().fingerprint


@pytest.mark.parametrize(
    ("sides", "size"),
    [([20], 20), ([64], 64), ([20, 30, 64], 64), (49 * [40] + [500], 40), ([40, 500, 500], 224)],
)
def test_the_size_of_most_pictures_decides(pictures, sides, size):
    for number, side in enumerate(max(2, 12 // len(sides)) * sides):
        root = pictures({f"{'ab'[number % 2]}/{number}": 1}, size=(side, side))
    for seed in (0, 1):
        data = load_data("folder", root=str(root), split_seed=seed, batch_size=2, num_workers=0)
        assert data.image_size == size
        assert isinstance(data.pipeline, MemoryPipeline) == (size <= 64)


def test_small_folder_lives_in_memory(pictures):
    root = pictures({"train/a": 20, "train/b": 20, "test/a": 5, "test/b": 5}, size=(16, 16))
    data = load_data("folder", root=str(root))
    assert data.describe()["splits"] == {"train": 36, "val": 4, "test": 10}
    assert (data.image_size, data.in_chans, data.pipeline.crop_pct) == (16, 3, 1.0)
    assert isinstance(data.pipeline, MemoryPipeline)
    assert data.mean != (0.485, 0.456, 0.406)
    assert data.pipeline.augment.flip
    images, labels = batches(data)[0]
    assert images.shape == (36, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(labels.tolist()) == [0] * 18 + [1] * 18


@pytest.mark.parametrize("num_workers", [0, 2])
def test_large_folder_is_read_by_workers(photos, num_workers):
    root = photos({"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 3})
    data = load_data(
        "imagenet",
        root=str(root),
        image_size=48,
        batch_size=4,
        num_workers=num_workers,
        val_fraction=0.2,
    )
    assert data.describe()["splits"] == {"train": 16, "val": 4, "test": 6}
    assert isinstance(data.pipeline, FilePipeline)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.describe()["crop_pct"] == 0.875
    read = batches(data)
    assert [tuple(images.shape) for images, _ in read] == [(4, 3, 48, 48)] * 4
    assert read[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([labels for _, labels in batches(data, "test")]).tolist() == [0] * 3 + [1] * 3

    alone = load_data("imagenet", root=str(root), image_size=48, batch_size=4, num_workers=0,
                    val_fraction=0.2)  # fmt: skip
    for one, other in zip(read, batches(alone), strict=True):
        assert torch.equal(one[0], other[0])


def test_large_folder_goes_into_memory_if_asked(photos):
    data = load_data("folder", root=str(photos({"a": 5, "b": 5})), image_size=32, in_memory=True)
    assert data.splits["train"].pixels.shape[1:] == (32, 32, 3)
    assert data.describe()["splits"] == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize("options", [{}, {"in_memory": True}, {"cache": True}], ids=str)
def test_pictures_for_people_are_those_of_the_network(photos, tmp_path, options):
    """Read beside the loaders, they are the same and leave those as they are."""
    root = photos({"cat": 9, "dog": 8})
    options = {"root": str(root), "image_size": 24, "batch_size": 4, "num_workers": 0, **options}
    data = load_data("folder", data_dir=tmp_path / "maps", **options)
    state = torch.get_rng_state()
    images, labels, _ = data.first_batch()
    shown = data.test_images(torch.tensor([2, 0]))
    assert torch.equal(torch.get_rng_state(), state)
    (first, *_), (test,) = batches(data), batches(data, "test")
    assert torch.equal(images, first[0])
    assert torch.equal(labels, first[1])
    assert torch.equal(shown, test[0][[2, 0]])
    pixels = data.for_display(shown)
    assert pixels.shape == (2, 24, 24, 3)
    again = normalise(pixels.permute(0, 3, 1, 2) * 255, data.mean, data.std)
    torch.testing.assert_close(again, shown, rtol=0, atol=1e-5)


def test_damaged_picture_is_named(photos):
    root = photos({"a": 6, "b": 6})
    whole = (root / "a" / "3.png").read_bytes()
    (root / "a" / "3.png").write_bytes(whole[:3000])  # its head is intact
    with pytest.raises(UserError, match=r"a/3\.png"):
        load_data("folder", root=str(root), image_size=32, in_memory=True)
    data = load_data("folder", root=str(root), image_size=70, num_workers=1)
    (split,) = [name for name, images in data.splits.items() if "a/3.png" in images.names]
    with pytest.raises(UserError, match=r"^cannot read the picture .*a/3\.png.*$"):
        batches(data, split)


def test_fingerprint_is_of_the_pictures_not_of_the_place(pictures, tmp_path):
    root = pictures({"x/a": 5, "x/b": 5}) / "x"
    first = load_data("folder", root=str(root)).fingerprint
    moved = root.rename(tmp_path / "moved")
    assert load_data("folder", root=str(moved), batch_size=2).fingerprint == first
    (moved / "a" / "0.png").write_bytes((moved / "a" / "1.png").read_bytes() + b"more")
    assert load_data("folder", root=str(moved)).fingerprint != first


BAD_VALUES = {
    "name": ("cifar", "did you mean 'cifar10'"),
    "batch_size": (0, "at least 1 or auto; got 0"),
    "val_fraction": (1.0, "less than 1"),
    "test_fraction": ("x", "a number; got 'x'"),
    "split_seed": (-1, "at least 0; got -1"),
    "subset.num_classes": (11, "there are 10 classes"),
    "subset.classes": (["3", "11"], "choices: 0, 1, 2"),
    "subset.images_per_class": (1000, "class '0' has 124"),
    "subset.fraction": (1.1, "got 1.1"),
    "subset.seed": (0.5, "a whole number; got 0.5"),
    "root": (5, "text; got 5"),
    "on_error": ("keep", "choices: raise, skip"),
    "background": (5, "text; got 5"),
    "url": (5, "text; got 5"),
    "size": (200, "160 or 320 or full; got 200"),
    "sampler": ("balance", "did you mean 'balanced'"),
    "image_size": (100_000, "at most 4096; got 100000"),
    "in_memory": ("maybe", "true or false; got 'maybe'"),
    "num_workers": (500, "at most 256; got 500"),
    "mean": ([0.5], "set together"),
    "std": ([0.0], "greater than 0"),
    "interpolation": ("cubic", "did you mean 'bicubic'"),
    "crop_pct": (0.0, "greater than 0"),
    "cache": ("yes", "true or false or verify"),
    "cache_size": (64, "no effect without data.cache"),
    "augment.flip": ("yes", "true or false or alternate"),
    "augment.crop_padding": (32, "mirrors more than the whole image"),
    "augment.padding_mode": ("zero", "did you mean 'zeros'"),
    "augment.cutout": (0.5, "a whole number; got 0.5"),
    "augment.scale": ([0.5, 2.0], "at most 1.0; got"),
    "augment.ratio": ([math.inf, math.inf], "a finite number; got"),
    "augment.interpolation": ("cubic", "did you mean 'bicubic'"),
    "augment.auto_augment": (3, "text; got 3"),
    "augment.color_jitter": (-1.0, "got -1.0"),
    "augment.erase": (1.5, "at most 1.0; got 1.5"),
}


@pytest.mark.parametrize("key", sorted(list_options("imagenette")))
def test_bad_values_are_named(key):
    value, hint = BAD_VALUES[key]
    group, _, leaf = key.rpartition(".")
    changes = {group: {leaf: value}} if group else {leaf: value}
    if key == "augment.crop_padding":
        changes["augment"]["padding_mode"] = "reflect"
    with pytest.raises(UserError) as caught:
        load_data(**changes)
    message = str(caught.value)
    assert leaf in message.replace("unknown data 'cifar'", "name")
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits", {"cache": True}, r"^data\.cache=true has no effect on data=digits; it takes "),
        (
            "digits",
            {"augment": {"scale": [0.1, 1]}},
            r"augment\.scale=\[0\.1, 1\.0\] has no effect",
        ),
        ("digits", {"test_fraction": None}, "test_fraction must be set"),
        ("cifar10", {"image_size": 16}, "data.image_size=16 has no effect on data=cifar10"),
        ("cifar10", {"test_fraction": 0.5}, "has no effect"),
        ("folder", {"url": "x"}, "data.url=x has no effect on data=folder; it takes"),
        ("folder", {}, "data=folder needs data.root="),
        ("folder", {"root": "nowhere"}, "there is no such folder"),
        ("imagenet", {}, "data=imagenet needs data.root="),
        ("imagenette", {"root": "~nobody/nowhere"}, "there is no such folder"),
    ],
)
def test_keys_without_effect_and_missing_folders(name, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(name, **changes)
    assert "\n" not in str(caught.value)


def test_the_nearest_key_comes_first():
    with pytest.raises(UserError, match=r"it takes augment\.crop_padding"):
        load_data(crop_pct=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": {"cutout": 4}}, "cutout has no effect on images that are read from files"),
        ({"mean": [0.5], "std": [0.5]}, "must have 3 numbers"),
        ({"augment": {"auto_augment": "best"}}, "auto_augment='best' is no policy; there are"),
    ],
)
def test_options_that_do_not_fit_the_pictures(photos, options, message):
    with pytest.raises(UserError, match=message):
        load_data("folder", root=str(photos({"a": 5, "b": 5})), **options)


def test_images_larger_than_the_memory(pictures):
    root = str(pictures({"a": 2, "b": 2}))
    for name, changes in (("digits", {}), ("folder", {"root": root, "in_memory": True})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.sysconf", lambda name: 1000)
            with pytest.raises(UserError, match=r"images of 1024 pixels take .* GB of memory"):
                load_data(name, image_size=1024, **changes)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_the_config_of_a_data_set_sets_only_its_options(name, tmp_path):
    settings = data_settings(name)
    assert settings.name == name
    (tmp_path / "table.csv").touch()
    places = {
        "digits": {},
        "csv": {"root": str(tmp_path), "csv": "table.csv"},
        "hf": {"hf": str(tmp_path)},
    }
    if name == "hf":
        pytest.importorskip("datasets")
    settings = settings.replace(**places.get(name, {"root": str(tmp_path)}))
    create_data(settings, seed=0, data_dir=tmp_path)


class _Recorder(L.LightningModule):
    """Keeps a number of every training batch; can stop in the middle of an epoch."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.seen: list[float] = []
        self.evaluated = 0

    def training_step(self, batch, batch_idx):
        images, _ = self.trainer.datamodule.prepare_batch(batch)
        self.seen.append(images.double().sum().item())
        return self.weight * images.mean()

    def on_train_batch_end(self, *args):
        if len(self.seen) == self.stop_after:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir, "middle.ckpt"))
            raise KeyboardInterrupt

    def validation_step(self, batch, batch_idx):
        self.evaluated += len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def _trainer(folder: Path, **options) -> L.Trainer:
    return L.Trainer(
        **{"max_epochs": 3, **options},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")  # lightning with torch 2.15
@pytest.mark.parametrize("kind", ["memory", "workers"])
def test_lightning_goes_on_inside_an_epoch(photos, tmp_path, kind):
    if kind == "memory":
        name, options = "digits", {"batch_size": 256}
    else:
        name = "folder"
        options = {"root": str(photos({"a": 17, "b": 17})), "image_size": 70, "batch_size": 6}
        options["num_workers"] = 2
    data = load_data(name, **options)
    whole = _Recorder()
    _trainer(tmp_path).fit(whole, datamodule=data)
    assert len(whole.seen) == 3 * len(data.train_dataloader()) == 12
    assert len(set(whole.seen)) == 12
    assert whole.evaluated == 3 * len(data.splits["val"])

    first = _Recorder(stop_after=6)
    with pytest.raises(SystemExit):
        _trainer(tmp_path).fit(first, datamodule=load_data(name, **options))
    second = _Recorder()
    _trainer(tmp_path).fit(
        second,
        datamodule=load_data(name, **options),
        ckpt_path=tmp_path / "middle.ckpt",
        weights_only=True,
    )
    assert first.seen + second.seen == whole.seen


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_overfitting_sees_the_same_batches_in_every_epoch(tmp_path):
    model = _Recorder()
    data = load_data(augment={"crop_padding": 0})
    _trainer(tmp_path, overfit_batches=2).fit(model, datamodule=data)
    assert model.seen[:2] * 3 == model.seen


@pytest.mark.parametrize("flip", [True, "alternate"])
def test_a_balanced_set_has_every_class_equally_often(flip, pictures):
    root = pictures({"a": 20, "b": 4, "c": 6})
    options = {"root": str(root), "sampler": "balanced", "batch_size": 3, "val_fraction": 0.2}
    data = load_data("folder", augment={"flip": flip}, test_fraction=0.2, **options)
    labels = torch.cat([labels for _, labels in batches(data)])
    assert set(labels.bincount().tolist()) == {len(data.splits["train"]) // 3}
    shown = data.statistics_dataloader(6)
    assert len(torch.cat([batch.labels for batch in shown])) == 6


def test_white_is_no_background_of_its_own(pictures):
    """Runs with either are of one table."""
    root = pictures({"a": 4, "b": 4})
    found = {
        background: load_data("folder", root=str(root), background=background).describe()
        for background in (None, "white", "#FFF", "black", "#000")
    }
    assert found[None] == found["white"] == found["#FFF"]
    assert found["black"] == found["#000"]
    assert (found[None]["background"], found["black"]["background"]) == (None, "#000000")


def _repeats(pictures, place, **augment):
    """Batches of epochs in which the one training picture of a class comes thirteen times."""
    few = {f"{split}/{name}": 1 for split in ("val", "test") for name in "ab"}
    root = pictures({"train/a": 25, "train/b": 1, **few}, size=(20, 16))
    options = {"root": str(root), "sampler": "balanced", "batch_size": 13, "image_size": 12}
    data = load_data("folder", augment=augment, data_dir=root / "data", **options, **place)

    def shown(epoch: int) -> torch.Tensor:
        found = batches(data, epoch=epoch)
        return torch.cat([images[labels == 1] for images, labels in found])

    return shown


PLACES = [{"num_workers": 0, "in_memory": False}, {"in_memory": True}, {"cache": True}]


@pytest.mark.parametrize("place", PLACES, ids=["files", "memory", "cache"])
def test_a_picture_that_an_epoch_repeats_looks_different_each_time(pictures, place):
    shown = _repeats(pictures, place, auto_augment="rand-m9-n2")
    first, second = shown(3), shown(4)
    assert len(first) == len(second) == 13
    assert len(torch.cat([first, second]).flatten(1).unique(dim=0)) > 23
    assert torch.equal(first, shown(3))


def test_a_picture_that_an_epoch_repeats_is_mirrored_every_other_time(pictures):
    flip = {"flip": "alternate", "crop_padding": 0}
    shown = _repeats(pictures, {"in_memory": True}, **flip)
    once, twice = shown(0), torch.cat([shown(0), shown(1)])
    assert sorted(once.flatten(1).unique(dim=0, return_counts=True)[1].tolist()) == [6, 7]
    assert twice.flatten(1).unique(dim=0, return_counts=True)[1].tolist() == [13, 13]


def test_a_batch_is_no_larger_than_a_balanced_epoch(pictures, caplog):
    """Ten training images of three classes are nine in an epoch."""
    root = pictures({"train/a": 7, "train/b": 2, "train/c": 1, **{f"val/{n}": 1 for n in "abc"},
                     **{f"test/{n}": 1 for n in "abc"}})  # fmt: skip
    data = load_data("folder", root=str(root), sampler="balanced", batch_size=10)
    assert data.epoch_images == data.batch_size == 9
    assert "data.batch_size=10 is lowered to the 9 training images of an epoch" in caplog.text
    assert [len(labels) for _, labels in batches(data)] == [9]
