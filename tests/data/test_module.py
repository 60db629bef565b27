"""The data module as a whole, and as lightning uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml

from dwsep_zoo.data import DATASETS, ImageData, create_data, list_options
from dwsep_zoo.errors import UserError


def _create(name: str = "digits", seed: int = 0, **options) -> ImageData:
    data = create_data(name, seed=seed, data_dir="unused", **options)
    data.prepare_data()
    data.setup()
    return data


def _batches(data: ImageData, split: str = "train", epoch: int = 0):
    loader = getattr(data, f"{split}_dataloader")()
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.fixture
def photos(pictures) -> Callable[..., Path]:
    """A folder of pictures too large to be decoded into memory by themselves."""
    return lambda counts: pictures(counts, size=(80, 70))


def test_digits_are_described():
    data = _create()
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
    }


def test_training_images_are_normalised_by_their_own_statistics():
    data = _create(augment={"crop_padding": 0}, batch_size=1259)
    ((images, _),) = _batches(data)
    assert images.shape == (1259, 1, 32, 32)
    assert images.dtype == torch.float32
    assert abs(images.mean().item()) < 1e-3
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_runs_share_splits_and_differ_in_order():
    one, other = _create(seed=0), _create(seed=1)
    assert one.describe() == other.describe()
    assert one.splits["test"].names == other.splits["test"].names
    assert not torch.equal(_batches(one)[0][1], _batches(other)[0][1])
    assert _create(split_seed=1).fingerprint != one.fingerprint


def test_training_is_augmented_and_evaluation_is_not():
    data = _create()
    first, second = _batches(data)[0][0], _batches(data)[0][0]
    assert torch.equal(first, second)
    assert not torch.equal(first, _batches(data, epoch=1)[0][0])
    plain = torch.cat([images for images, _ in _batches(data, "val")])
    expected = data.splits["val"].pixels.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(plain, (expected - data.mean[0]) / data.std[0])


def test_reduced_precision_does_not_touch_the_augmentation():
    """Trainers of reduced precision round all floating-point numbers of a batch."""
    data = _create()
    batch = next(iter(data.train_dataloader()))
    rounded = tuple(x.bfloat16() if x.is_floating_point() else x for x in batch)
    for one, other in zip(
        data.on_after_batch_transfer(batch, 0),
        data.on_after_batch_transfer(rounded, 0),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_large_batch_is_lowered(caplog):
    data = _create(subset={"images_per_class": 2})
    assert data.batch_size == 20
    assert "batch_size=64 is lowered to the 20" in caplog.text
    assert [len(labels) for _, labels in _batches(data)] == [20]


def test_processes_have_their_share():
    data = _create()
    seen = []
    for rank in range(2):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, overfit_batches=0, strategy=strategy
        )
        assert len(data.train_dataloader()) == 1259 // 2 // 64
        seen += [labels for _, labels in _batches(data, "test")]
    data.trainer = None
    alone = [labels for _, labels in _batches(data, "test")]
    assert sorted(torch.cat(seen).tolist()) == sorted(torch.cat(alone).tolist())


def test_subset_is_recorded():
    data = _create(subset={"classes": ["3", "8", "1"], "images_per_class": 10, "seed": 7})
    subset = data.describe()["subset"]
    assert subset["seed"] == 7
    assert subset["classes"] == ["1", "3", "8"] == data.class_names
    assert subset["num_images"]["train"] == len(subset["images"]["train"]) == 30
    assert subset["num_images"] == data.describe()["splits"]
    assert data.splits["train"].names == subset["images"]["train"]
    assert data.fingerprint != _create().fingerprint


def test_small_folder_lives_in_memory(pictures):
    root = pictures({"train/a": 20, "train/b": 20, "test/a": 5, "test/b": 5}, size=(16, 16))
    data = _create("folder", root=str(root))
    assert data.describe()["splits"] == {"train": 36, "val": 4, "test": 10}
    assert (data.image_size, data.in_chans, data.crop_pct, data.in_memory) == (16, 3, 1.0, True)
    assert data.mean != (0.485, 0.456, 0.406)
    assert data.augment.flip
    images, labels = _batches(data)[0]
    assert images.shape == (36, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(labels.tolist()) == [0] * 18 + [1] * 18


@pytest.mark.parametrize("num_workers", [0, 2])
def test_large_folder_is_read_by_workers(photos, num_workers):
    root = photos({"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 3})
    data = _create(
        "imagenet",
        root=str(root),
        image_size=48,
        batch_size=4,
        num_workers=num_workers,
        val_fraction=0.2,
    )
    assert data.describe()["splits"] == {"train": 16, "val": 4, "test": 6}
    assert (data.in_memory, data.mean) == (False, (0.485, 0.456, 0.406))
    assert data.describe()["crop_pct"] == 0.875
    batches = _batches(data)
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 48, 48)] * 4
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([labels for _, labels in _batches(data, "test")]).tolist() == [0] * 3 + [1] * 3

    alone = _create("imagenet", root=str(root), image_size=48, batch_size=4, num_workers=0,
                    val_fraction=0.2)  # fmt: skip
    for one, other in zip(batches, _batches(alone), strict=True):
        assert torch.equal(one[0], other[0])


def test_large_folder_goes_into_memory_if_asked(photos):
    data = _create("folder", root=str(photos({"a": 5, "b": 5})), image_size=32, in_memory=True)
    assert data.splits["train"].pixels.shape[1:] == (32, 32, 3)
    assert data.describe()["splits"] == {"train": 6, "val": 2, "test": 2}


def test_damaged_picture_is_named(photos):
    root = photos({"a": 6, "b": 6})
    whole = (root / "a" / "3.png").read_bytes()
    (root / "a" / "3.png").write_bytes(whole[:3000])  # its head is intact
    with pytest.raises(UserError, match=r"a/3\.png"):
        _create("folder", root=str(root), image_size=32, in_memory=True)
    data = _create("folder", root=str(root), image_size=70, num_workers=1)
    (split,) = [name for name, images in data.splits.items() if "a/3.png" in images.names]
    with pytest.raises(UserError, match=r"^cannot read the picture .*a/3\.png.*$"):
        _batches(data, split)


def test_fingerprint_is_of_the_pictures_not_of_the_place(pictures, tmp_path):
    root = pictures({"x/a": 5, "x/b": 5}) / "x"
    first = _create("folder", root=str(root)).fingerprint
    moved = root.rename(tmp_path / "moved")
    assert _create("folder", root=str(moved), batch_size=2).fingerprint == first
    (moved / "a" / "0.png").write_bytes((moved / "a" / "1.png").read_bytes() + b"more")
    assert _create("folder", root=str(moved)).fingerprint != first


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar", {}, "unknown data 'cifar'; did you mean 'cifar10'"),
        ("digits", {"batchsize": 3}, "data=digits 'batchsize'; did you mean 'batch_size'"),
        ("digits", {"batch_size": 0}, "data.batch_size must be a whole number from 1 up; got 0"),
        ("digits", {"image_size": 0}, "data.image_size must be"),
        ("digits", {"image_size": "large"}, "got 'large'"),
        ("digits", {"val_fraction": 1.0}, "val_fraction must be greater than 0 and less than 1"),
        ("digits", {"test_fraction": "x"}, "data.test_fraction"),
        ("digits", {"augment": {"flap": True}}, "key of data.augment 'flap'; did you mean 'flip'"),
        ("digits", {"augment": {"flip": "yes"}}, "flip must be true or false"),
        ("digits", {"augment": {"scale": 0.5}}, "scale must be two numbers; got 0.5"),
        ("digits", {"augment": {"scale": [0.1, 1]}}, "scale has no effect on images in memory"),
        ("digits", {"augment": {"crop_padding": -1}}, "crop_padding must be a whole number from 0"),
        ("digits", {"subset": {"num_classes": 11}}, "there are 10 classes"),
        ("folder", {}, "data=folder needs data.root="),
        ("folder", {"root": "nowhere"}, "there is no such folder"),
        ("folder", {"root": "x", "mean": [0.5] * 3}, "set together"),
        ("folder", {"root": "x", "mean": [0.5] * 3, "std": [0] * 3}, "std must be greater than 0"),
        ("folder", {"root": "x", "mean": 1, "std": 1}, "data.mean must be a list"),
        ("folder", {"root": "x", "crop_pct": 0}, "crop_pct"),
        ("folder", {"root": "x", "in_memory": "maybe"}, "in_memory must be"),
        ("folder", {"root": "x", "num_workers": -1}, "num_workers"),
        ("folder", {"root": "x", "interpolation": "cubic"}, "did you mean 'bicubic'"),
        ("imagenet", {}, "data=imagenet needs data.root="),
        ("imagenette", {"size": 200}, "unknown data.size '200'"),
        ("imagenette", {"root": "nowhere"}, "there is no such folder"),
    ],
)  # fmt: skip
def test_impossible_options(name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        _create(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": {"cutout": 4}}, "cutout has no effect on images that are read from files"),
        ({"mean": [0.5], "std": [0.5]}, "must have 3 numbers"),
    ],
)
def test_options_that_do_not_fit_the_pictures(photos, options, message):
    with pytest.raises(UserError, match=message):
        _create("folder", root=str(photos({"a": 5, "b": 5})), **options)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_option_can_be_set_in_its_config(name):
    folder = Path(__file__).parents[2] / "configs" / "data"

    def load(stem: str) -> dict:
        own = yaml.safe_load((folder / f"{stem}.yaml").read_text())
        merged: dict = {}
        for parent in own.pop("defaults", []):
            merged.update(load(parent))
        return {**merged, **own}

    config = load(name)
    assert config.pop("name") == name
    assert sorted(config) == list_options(name)


class _Recorder(L.LightningModule):
    """Keeps a number of every training batch; can stop in the middle of an epoch."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.seen: list[float] = []
        self.evaluated = 0

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].double().sum().item())
        return self.weight * batch[0].mean()

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
    data = _create(name, **options)
    whole = _Recorder()
    _trainer(tmp_path).fit(whole, datamodule=data)
    assert len(whole.seen) == 3 * len(data.train_dataloader()) == 12
    assert len(set(whole.seen)) == 12
    assert whole.evaluated == 3 * len(data.splits["val"])

    first = _Recorder(stop_after=6)
    with pytest.raises(SystemExit):
        _trainer(tmp_path).fit(first, datamodule=_create(name, **options))
    second = _Recorder()
    _trainer(tmp_path).fit(
        second,
        datamodule=_create(name, **options),
        ckpt_path=tmp_path / "middle.ckpt",
        weights_only=True,
    )
    assert first.seen + second.seen == whole.seen


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_overfitting_sees_the_same_batches_in_every_epoch(tmp_path):
    model = _Recorder()
    data = _create(augment={"crop_padding": 0})
    _trainer(tmp_path, overfit_batches=2).fit(model, datamodule=data)
    assert model.seen[:2] * 3 == model.seen
