"""The memory map of decoded pictures, by itself and as the data module uses it."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_helpers import batches, load_data
from filelock import FileLock
from PIL import Image

from dwsep_zoo.data import ImageData, cache
from dwsep_zoo.data.cache import Cache, Pictures, open_cache, read_all
from dwsep_zoo.data.contents import Kept, contents_of
from dwsep_zoo.data.splits import Images
from dwsep_zoo.data.store import Files
from dwsep_zoo.errors import UserError

SIZE = 16


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twenty smooth JPEGs of different shapes in two classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for i in range(20):
        width, height = rng.integers(80, 140, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        path = root / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


@pytest.fixture
def decodings(monkeypatch) -> list[int]:
    """How many pictures each decoding was of."""
    counts = []
    decoded = cache.decoded

    def counted(root, names, size, interpolation):
        counts.append(len(names))
        return decoded(root, names, size, interpolation)

    monkeypatch.setattr(cache, "decoded", counted)
    return counts


def _pictures(root: Path, size: int = SIZE, interpolation: str = "bilinear") -> Pictures:
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.jpg"))
    train = Images(names[::2], np.zeros(len(names[::2]), dtype=np.int64))
    test = Images(names[1::2], np.zeros(len(names[1::2]), dtype=np.int64))
    splits = {"train": train, "val": test, "test": test}
    store = Files(root)
    return Pictures(store, splits, contents_of(store, splits, Kept()), size, interpolation)


def _open(root: Path, *, path: Path | None = None, verify: bool = False, **options) -> Cache:
    return open_cache(path or _file(root), _pictures(root, **options), verify=verify)


def _file(root: Path) -> Path:
    return root.parent / "cache" / "map.npy"


def test_map_is_built_once(photos, decodings, caplog):
    first = _open(photos)
    again = _open(photos)
    assert decodings == [20]
    assert first.pixels.shape == (20, SIZE, SIZE, 3)
    assert torch.equal(first.pixels, again.pixels)
    assert [p.tolist() for p in first.positions.values()] == [
        list(range(0, 20, 2)),
        *[list(range(1, 20, 2))] * 2,
    ]
    assert not caplog.records or max(record.levelno for record in caplog.records) < logging.WARNING
    assert sorted(path.suffix for path in _file(photos).parent.iterdir()) in (
        [".json", ".lock", ".npy"],
        [".json", ".npy"],  # newer versions of filelock tidy up
    )


def test_map_is_an_array_with_the_checksum_it_names(photos):
    result = _open(photos)
    file = _file(photos)
    assert torch.equal(torch.from_numpy(np.load(file)), result.pixels)
    sidecar = json.loads(file.with_suffix(".json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sidecar["recipe"]["size"] == SIZE
    picture = Image.open(photos / "a" / "0.jpg")
    short = min(picture.size)
    side = [int(SIZE * length / short) for length in picture.size]
    left, top = (round((length - SIZE) / 2) for length in side)
    resized = np.asarray(picture.resize(side, Image.Resampling.BILINEAR))
    expected = resized[top : top + SIZE, left : left + SIZE]
    assert (result.pixels[0].numpy() == expected).all()


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def _lengthen(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"more")


def _forget(file: Path) -> None:
    file.with_suffix(".json").unlink()


def _cut_description(file: Path) -> None:
    file.with_suffix(".json").write_text('{"recipe": ')


def _other_description(file: Path) -> None:
    file.with_suffix(".json").write_text('["recipe"]')


def _other_array(file: Path) -> None:
    np.save(file, np.zeros(3))


def _edit(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        content.write(b"\0\1\2\3")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_edit, "wrong checksum"),
        (_cut, "its length is wrong"),
        (_lengthen, "its length is wrong"),
        (_forget, "map.json is missing"),
        (_cut_description, "map.json is missing or damaged"),
        (_other_description, "map.json is missing or damaged"),
        (_other_array, "its length is wrong"),
    ],
)
def test_damaged_map_is_built_again(photos, decodings, caplog, spoil, reason):
    whole = _open(photos).pixels.clone()
    spoil(_file(photos))
    assert torch.equal(_open(photos).pixels, whole)
    assert decodings == [20, 20]
    (warning,) = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert "is built again: " in warning
    assert reason in warning
    assert "\n" not in warning
    assert torch.equal(_open(photos).pixels, whole)
    assert len(decodings) == 2


def test_damage_that_leaves_no_trace_is_found_if_asked(photos, decodings, caplog):
    whole = _open(photos).pixels.clone()
    before = _file(photos).stat()
    _edit(_file(photos))
    os.utime(_file(photos), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not torch.equal(_open(photos).pixels, whole)
    assert torch.equal(_open(photos, verify=True).pixels, whole)
    assert "wrong checksum" in caplog.text
    assert torch.equal(_open(photos, verify=True).pixels, whole)
    assert decodings == [20, 20]


def test_copy_of_a_map_is_read_through_once(photos, decodings, monkeypatch):
    whole = _open(photos).pixels.clone()
    os.utime(_file(photos), ns=(1, 1))
    checked = []
    sha256_of = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: checked.append(path) or sha256_of(path))
    for _ in range(2):
        assert torch.equal(_open(photos).pixels, whole)
    assert (len(checked), decodings) == (1, [20])


def test_map_in_use_is_not_overwritten(photos):
    """Whoever has mapped it keeps what he has, when another process builds it again."""
    old = _open(photos).pixels
    before = old.clone()
    _open(photos, interpolation="nearest")
    assert torch.equal(old, before)


def _add(root: Path) -> None:
    shutil.copy(root / "a" / "0.jpg", root / "b" / "99.jpg")


def _remove(root: Path) -> None:
    (root / "a" / "4.jpg").unlink()


def _change(root: Path) -> None:
    Image.new("RGB", (50, 50)).save(root / "a" / "4.jpg")


def _rename(root: Path) -> None:
    (root / "a" / "4.jpg").rename(root / "a" / "z.jpg")


def _change_pixels_alone(root: Path) -> None:
    """As many bytes, under the same name."""
    path = root / "a" / "4.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:-10] + bytes(8) + content[-2:])


@pytest.mark.parametrize("change", [_add, _remove, _change, _change_pixels_alone, _rename])
def test_other_pictures_make_another_map(photos, decodings, caplog, change):
    _open(photos)
    change(photos)
    _open(photos)
    assert len(decodings) == 2
    assert "is built again: pictures were added, removed or changed" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"size": 8}, "size was 16 and is 8"), ({"interpolation": "bicubic"}, "interpolation was")],
)
def test_other_resizing_makes_another_map(photos, caplog, options, reason):
    _open(photos)
    _open(photos, **options)
    assert reason in caplog.text


def test_other_pillow_makes_another_map(photos, decodings, caplog, monkeypatch):
    _open(photos)
    monkeypatch.setattr("PIL.__version__", "99.0")
    _open(photos)
    assert len(decodings) == 2
    assert "and is 99.0" in caplog.text


class _Interrupted(BaseException):
    pass


def test_interrupted_building_leaves_nothing(photos, decodings, monkeypatch):
    decoded = cache.decoded

    def interrupted(*args):
        yield from decoded(*args)
        raise _Interrupted

    monkeypatch.setattr(cache, "decoded", interrupted)
    with pytest.raises(_Interrupted):
        _open(photos)
    assert not list(_file(photos).parent.glob("*.npy*")) + list(_file(photos).parent.glob("*.json"))
    monkeypatch.setattr(cache, "decoded", decoded)
    assert _open(photos).pixels.float().std() > 10


def test_half_of_a_map_of_a_killed_process_is_not_used(photos, decodings):
    whole = _open(photos).pixels.clone()
    content = _file(photos).read_bytes()
    _file(photos).with_suffix(".npy.part").write_bytes(content[: len(content) // 2])
    _file(photos).unlink()
    assert torch.equal(_open(photos).pixels, whole)
    assert decodings == [20, 20]
    assert not list(_file(photos).parent.glob("*.part"))


def test_damaged_picture_is_named_and_leaves_nothing(photos):
    path = photos / "a" / "4.jpg"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"^cannot read the picture .*a/4\.jpg.*$"):
        _open(photos)
    assert not list(_file(photos).parent.glob("*.npy*"))


def test_full_disk_is_noticed_before_decoding(photos, decodings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    message = r"^data\.cache needs 1\.55e-05 GB for 20 pictures of 16 pixels, .*cache has 1e-05 GB"
    with pytest.raises(UserError, match=message):
        _open(photos)
    assert not decodings


def test_disk_that_fills_up_meanwhile(photos, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"map\.npy: No space left on device; set paths\.data_dir="):
        _open(photos)
    assert not list(_file(photos).parent.glob("*.npy*"))


def test_folder_that_cannot_be_written_to(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write .*set paths\.data_dir= to another place$"):
        _open(photos, path=tmp_path / "file" / "map.npy")


def test_map_in_a_folder_that_cannot_be_written_to(photos, decodings, monkeypatch):
    """One that is right needs no lock; a wrong one cannot be helped."""
    whole = _open(photos).pixels.clone()

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(_file(photos).with_suffix(".lock")))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert torch.equal(_open(photos).pixels, whole)
    _add(photos)
    with pytest.raises(UserError, match=r"^cannot write .*map\.lock: Permission denied; set"):
        _open(photos)
    assert len(decodings) == 1


def _build_in_process(root: Path, barrier, results) -> None:
    counts = []
    decoded = cache.decoded
    cache.decoded = lambda *args: counts.append(1) or decoded(*args)
    barrier.wait()
    results.put((len(counts), _open(root).pixels.long().sum().item(), len(counts)))


def test_threads_build_one_map(photos, decodings):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: _open(photos).pixels, range(3)))
    assert decodings == [20]
    assert all(torch.equal(pixels, results[0]) for pixels in results)


@pytest.mark.slow  # two imports of lightning
def test_processes_build_one_map(photos):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_build_in_process, args=(photos, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    one, other = (results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert sorted([one[2], other[2]]) == [0, 1]
    assert one[1] == other[1] == np.load(_file(photos)).astype(int).sum()


def test_waiting_is_said(photos, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    path = _file(photos)
    path.parent.mkdir()
    lock = FileLock(path.with_suffix(".lock"), thread_local=False)
    lock.acquire()
    info = logging.getLogger("dwsep_zoo").info

    def release(message, *args):
        info(message, *args)
        if message.startswith("waiting"):
            lock.release()

    monkeypatch.setattr(cache.log, "info", release)
    _open(photos)
    assert "waiting for the process that builds" in caplog.text


def test_all_pictures_are_read_from_the_map(photos, decodings):
    pictures = _pictures(photos)
    mapped = _open(photos)
    found = read_all([_file(photos)], pictures)
    assert decodings == [20]
    assert found["val"] is found["test"]
    for split, images in pictures.splits.items():
        assert found[split].names == images.names
        assert torch.equal(found[split].pixels, mapped.pixels[mapped.positions[split]])


@pytest.mark.parametrize("full", [False, True])
def test_pictures_are_kept_elsewhere_or_not_at_all(photos, tmp_path, decodings, caplog, full):
    """A folder that cannot be written to, and a full disk; never an error."""
    (tmp_path / "file").touch()
    refused, other = tmp_path / "file" / "map.npy", tmp_path / "other" / "map.npy"
    whole = read_all([refused, other], _pictures(photos))["train"].pixels
    assert other.exists()
    assert torch.equal(read_all([refused, other], _pictures(photos))["train"].pixels, whole)
    assert (decodings, caplog.text) == ([20], "")
    places = [refused]
    with pytest.MonkeyPatch.context() as patch:
        if full:
            places = [_file(photos)]
            patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        assert torch.equal(read_all(places, _pictures(photos))["train"].pixels, whole)
    (warning,) = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert warning.startswith("decoded pictures are not kept: ")
    assert decodings == [20, 20]


# As a part of the data module


@pytest.fixture
def create(photos, tmp_path) -> Callable[..., ImageData]:
    def make(**options) -> ImageData:
        options = {"root": str(photos), "image_size": 56, "batch_size": 4, **options}
        return load_data("folder", data_dir=tmp_path, **{"num_workers": 0, **options})

    return make


def _evaluated(data: ImageData) -> torch.Tensor:
    return torch.cat([images for images, _ in batches(data, "val") + batches(data, "test")])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_evaluation_sees_the_pixels_of_the_files(create, interpolation):
    """56 / 0.875 is 64: eight pixels to cut off, as 32 for 224."""
    plain = create(interpolation=interpolation)
    cached = create(interpolation=interpolation, cache=True)
    assert cached.pipeline.augment.cache_size == 64
    assert torch.equal(_evaluated(cached), _evaluated(plain))
    assert [labels.tolist() for _, labels in batches(cached, "test")] == [
        labels.tolist() for _, labels in batches(plain, "test")
    ]


def test_evaluation_may_lie_a_pixel_beside(create):
    """54 of 61: what is cut off is odd."""
    plain, cached = _evaluated(create(image_size=54)), _evaluated(create(image_size=54, cache=True))
    for one, other in zip(plain, cached, strict=True):
        shifts = [
            (one[:, 1:-1, 1:-1] - other[:, 1 + dy : 53 + dy, 1 + dx : 53 + dx]).abs().max()
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        assert min(shifts) == 0


def test_evaluation_from_larger_squares_is_close(create):
    plain, cached = _evaluated(create()), _evaluated(create(cache=True, cache_size=80))
    assert not torch.equal(plain, cached)
    assert (plain - cached).abs().mean() < 0.15 * (plain - plain.flip(0)).abs().mean()


def test_epochs_are_repeatable_and_differ(create):
    data = create(cache=True, augment={"color_jitter": 0.4})
    first = batches(data)
    assert [tuple(images.shape) for images, _ in first] == [(4, 3, 56, 56)] * 3
    assert first[0][0].is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(7)
    again = batches(create(cache=True, augment={"color_jitter": 0.4}))
    other = batches(data, epoch=1), batches(create(cache=True, seed=1))
    for i, (images, labels) in enumerate(first):
        assert torch.equal(images, again[i][0])
        assert torch.equal(labels, again[i][1])
        assert not any(torch.equal(images, others[i][0]) for others in other)


def test_labels_are_those_of_the_pictures(create, photos):
    """Whole pictures, not mirrored: each is one of its class."""
    crop = {"scale": [1, 1], "ratio": [1, 1], "flip": False}
    data = create(cache=True, cache_size=56, augment=crop)
    pixels = data.pipeline.cache.pixels.permute(0, 3, 1, 2)
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.jpg"))
    for images, labels in batches(data):
        restored = ((images * std + mean) * 255).round()
        for picture, label in zip(restored, labels.tolist(), strict=True):
            (where,) = [i for i, own in enumerate(pixels) if (own - picture).abs().max() < 2]
            assert names[where][0] == "ab"[label]


def test_small_pictures_are_decoded_in_the_first_run_alone(create, decodings):
    first, second = (create(image_size=24, in_memory=True, seed=seed) for seed in (0, 1))
    assert decodings == [20]
    assert (first.mean, first.fingerprint) == (second.mean, second.fingerprint)
    for split, images in first.splits.items():
        assert torch.equal(images.pixels, second.splits[split].pixels)


@pytest.mark.parametrize("options", [{"in_memory": True}, {"cache": True}])
def test_map_is_not_kept_among_the_classes(photos, decodings, options):
    for _ in range(2):
        data = load_data("folder", data_dir=photos, root=str(photos), image_size=24, **options)
        assert data.class_names == ["a", "b"]
    assert decodings == [20]


def test_path_is_described(create):
    plain, cached = create().describe(), create(cache=True).describe()
    assert (plain["read_from"], cached["read_from"]) == ("files", "cache")
    assert cached["augment"] == {
        "cache_size": 64,
        "image_size": 56,
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": True,
        "auto_augment": None,
        "color_jitter": None,
        "erase": None,
    }
    for key in ("augment", "read_from"):
        del plain[key], cached[key]
    assert plain == cached


def test_a_background_has_a_map_of_its_own(create, decodings, tmp_path):
    """White is what no colour means."""
    for background in (None, "white", "#fff", "black", None, "#000000"):
        create(cache=True, background=background)
    assert decodings == [20, 20]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_splits_share_a_map_and_subsets_do_not(create, decodings, tmp_path):
    create(cache=True)
    create(cache=True, split_seed=1, test_fraction=0.4, seed=3, augment={"flip": False})
    assert decodings == [20]
    create(cache=True, subset={"images_per_class": 3})
    assert len(decodings) == 2
    create(cache=True)
    assert len(decodings) == 2
    assert len(list((tmp_path / "cache").glob("folder-64-bicubic-*.npy"))) == 2


def test_small_pictures_are_cached_if_asked(create):
    data = create(image_size=None, cache=True)
    assert (data.image_size, data.pipeline.augment.cache_size) == (224, 256)


def test_alternate_flip_of_crops(create):
    crop = {"scale": [1, 1], "ratio": [1, 1], "flip": "alternate"}
    data = create(cache=True, augment=crop, batch_size=12)
    images = [{}, {}, {}]
    for epoch in range(3):
        ((batch, _),) = batches(data, epoch=epoch)
        order = data.train_dataloader().batch_sampler
        order.sampler.set_epoch(epoch)
        images[epoch] = dict(zip(order.sampler.order().indices.tolist(), batch, strict=False))
    for i, image in images[0].items():
        if i in images[1]:
            torch.testing.assert_close(images[1][i], image.flip(2), atol=1e-4, rtol=0)
        if i in images[2]:
            assert torch.equal(images[2][i], image)


def test_much_larger_squares_are_warned_of(create, caplog):
    create(cache=True, cache_size=113)
    assert "data.cache_size=113 is more than twice data.image_size=56" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": True, "in_memory": True}, "data.cache and data.in_memory exclude each other"),
        ({"cache": True, "cache_size": 60, "interpolation": "lanczos"}, "set data.cache_size=64"),
        ({"cache": True, "augment": {"auto_augment": "3a"}}, "GaussianBlurRand is for pictures"),
        (
            {"cache": True, "augment": {"interpolation": "random"}},
            "interpolation has no effect on pictures in a cache",
        ),
        ({"cache": True, "augment": {"cutout": 4}}, "cutout has no effect on pictures in a cache"),
        ({"augment": {"flip": "alternate"}}, "flip=alternate needs data.in_memory=true or"),
    ],
)
def test_impossible_options(create, decodings, options, message):
    with pytest.raises(UserError, match=message) as caught:
        create(**options)
    assert "\n" not in str(caught.value)
    assert not decodings
