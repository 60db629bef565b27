"""Tables, Tiny ImageNet and CIFAR-10's other tests, from archives as small as possible."""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from data_helpers import batches, data_settings, load_data
from PIL import Image

from dwsep_zoo.artefacts.evaluate import Together
from dwsep_zoo.config import compose_settings
from dwsep_zoo.data import cifar_shifted, create_data, tiny_imagenet
from dwsep_zoo.errors import UserError
from dwsep_zoo.training.prepare import check_network_and_data


@pytest.fixture
def table(tmp_path):
    """Writes ``tmp_path/table.csv`` and the pictures that it names."""

    def write(rows: list[dict[str, str]], delimiter: str = ",", *, pictures: bool = True) -> str:
        path = tmp_path / "table.csv"
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        for row in rows if pictures else ():
            name = next(iter(row.values()))
            if name:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                Image.new("RGB", (8, 8)).save(tmp_path / name)
        return str(path)

    return write


def _rows(count: int, labels: str, **more: str) -> list[dict[str, str]]:
    names = [f"x/{i}, {label}.png" for label in labels.split() for i in range(count)]
    return [{"path": n, "label": n[:-4].split(", ")[1], **more} for n in names]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_without_splits(table, delimiter):
    data = load_data("csv", csv=table(_rows(10, "9 10 ä"), delimiter))
    assert data.class_names == ["10", "9", "ä"]
    assert {split: len(images) for split, images in data.splits.items()} == {
        "train": 21,
        "val": 3,
        "test": 6,
    }
    for images in data.splits.values():
        for name, label in zip(images.names, images.labels, strict=True):
            assert name.endswith(f" {data.class_names[label]}.png")
    assert batches(data, "test")[0][0].shape == (6, 3, 8, 8)


def test_a_table_with_splits_and_other_columns(table):
    rows = [{"file": f"x/{i}.png", "age": "1", "class": str(10 * (i % 2)), "part": p}
            for i, p in enumerate(["Training"] * 6 + ["test"] * 2 + ["valid"] * 2)]  # fmt: skip
    columns = {"path": "file", "label": "class", "split": "part"}
    data = load_data("csv", csv=table(rows), columns=columns)
    assert data.class_names == ["0", "10"]
    assert data.splits["test"].names == ["x/6.png", "x/7.png"]
    assert data.splits["val"].names == ["x/8.png", "x/9.png"]


GOOD = {"path": "x/0.png", "label": "a"}
OTHER = {"path": "x/1.png", "label": "b"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([GOOD], {}, r"has the single class 'a'"),
        ([GOOD, {**OTHER, "path": "x/0.png"}], {}, r"line 3: x/0\.png is in line 2 too"),
        ([GOOD, {**OTHER, "path": "./x//0.png"}], {}, r"line 3: x/0\.png is in line 2 too"),
        ([GOOD, {**OTHER, "label": " "}], {}, "line 3: no label"),
        ([GOOD, {**OTHER, "path": ""}], {}, "line 3: no path"),
        ([GOOD, OTHER], {"columns": {"label": "lable"}}, "no column 'lable'; did you mean 'label'"),
        ([GOOD, OTHER], {"columns": {"split": "fold"}}, "no column 'fold'"),
        ([{**GOOD, "split": "train"}, {**OTHER, "split": "7"}], {}, "line 3: split='7' must be"),
        (
            [
                {**GOOD, "split": "train"},
                {**OTHER, "split": "train"},
                {"path": "x/2.png", "label": "c", "split": "test"},
            ],
            {},
            "line 4: the class 'c' has no training images",
        ),
    ],
)
def test_bad_tables(table, rows, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data("csv", csv=table(rows), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("x.png,salmon, smoked\n", "line 2: more than 2 values; a value that contains"),
        ('x.png,"a\ny.png,b\nz.png,c\n', r"cannot read .*table\.csv: unexpected end of data"),
    ],
)
def test_tables_that_are_not_well_formed(tmp_path, rows, message):
    (tmp_path / "table.csv").write_text(f"path,label\n{rows}")
    with pytest.raises(UserError, match=message):
        load_data("csv", csv=str(tmp_path / "table.csv"))


def test_paths_from_the_root_of_the_file_system(table, tmp_path):
    rows = [{**row, "path": str(tmp_path / row["path"])} for row in _rows(10, "a b")]
    assert len(load_data("csv", csv=table(rows)).splits["train"]) == 14


def test_tables_and_pictures_that_are_missing(table, tmp_path):
    for options, message in (
        ({}, "data=csv needs data.csv="),
        ({"csv": "no.csv"}, "there is no such file"),
        ({"csv": table(_rows(9, "a b"), pictures=False)}, "x/.*: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            load_data("csv", **options)
    (tmp_path / "table.csv").write_bytes(b"path,label\nx,\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read .*table\.csv"):
        load_data("csv", csv=str(tmp_path / "table.csv"))


def test_tiny_imagenet(server, tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "jpeg")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for wnid in ("n01", "n02", "n03"):
            for i in range(10):
                name = f"train/{wnid}/images/{wnid}_{i}.JPEG"
                archive.writestr(f"{tiny_imagenet.FOLDER}/{name}", picture.getvalue())
            archive.writestr(f"{tiny_imagenet.FOLDER}/train/{wnid}/{wnid}_boxes.txt", "x\t0\t0\n")
        for i in range(3):
            name = f"{tiny_imagenet.FOLDER}/val/images/val_{i}.JPEG"
            archive.writestr(name, picture.getvalue())
        lines = "val_0.JPEG\tn03\t0\t0\nval_1.JPEG\tn01\t0\t0\nval_2.JPEG\tn02\t0\t0\n"
        archive.writestr(f"{tiny_imagenet.FOLDER}/val/val_annotations.txt", lines)
        words = "n01\tcrane, bird\nn02\tegg\nn03\tcrane\n"
        archive.writestr(f"{tiny_imagenet.FOLDER}/words.txt", words)
    md5 = hashlib.md5(file.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(tiny_imagenet, "MD5", md5)
    server.files["/x.zip"] = file.getvalue()
    for _ in range(2):
        data = load_data("tiny_imagenet", data_dir=tmp_path, url=f"{server.url}/x.zip")
    assert len(server.requests) == 1
    assert data.class_names == ["crane n01", "egg", "crane n03"]
    assert data.describe()["splits"] == {"train": 27, "val": 3, "test": 3}
    assert data.splits["test"].labels.tolist() == [2, 0, 1]
    assert (data.image_size, data.describe()["read_from"]) == (64, "memory")


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def _original(data, split="test"):
    return (data.for_display(torch.cat([x for x, _ in batches(data, split)])) * 255).round().numpy()


def test_cifar10_1(server, tmp_path, pixels):
    labels = np.arange(20, dtype=np.int32) % 10
    server.files = {"/d/cifar10.1_v6_data.npy": _npy(pixels)}
    with pytest.raises(UserError, match=r"cifar10\.1_v6_labels\.npy"):
        load_data("cifar10_1", data_dir=tmp_path, url=f"{server.url}/d")
    server.files["/d/cifar10.1_v6_labels.npy"] = _npy(labels)
    for _ in range(2):
        data = load_data("cifar10_1", data_dir=tmp_path, url=f"{server.url}/d/")
    assert len(server.requests) == 3
    assert data.splits["test"].labels.tolist() == labels.tolist()
    assert (_original(data) == pixels).all()
    (tmp_path / "cifar10_1" / "cifar10.1_v6_labels.npy").write_bytes(_npy(labels[:-1]))
    with pytest.raises(UserError, match="are not images of 32 x 32 pixels in ten classes"):
        load_data("cifar10_1", data_dir=tmp_path)


def test_cifar10_c(server, tmp_path, monkeypatch, pixels):
    monkeypatch.setattr(cifar_shifted, "IN_SEVERITY", 4)
    labels = np.tile(np.arange(4), 5)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        contents = {
            f"{name}.npy": pixels ^ number for number, name in enumerate(cifar_shifted.USUAL)
        }
        for name, array in {**contents, "labels.npy": labels}.items():
            info = tarfile.TarInfo(f"CIFAR-10-C/{name}")
            info.size = len(_npy(array))
            tar.addfile(info, io.BytesIO(_npy(array)))
    md5 = hashlib.md5(file.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar_shifted.Cifar10c, "md5", md5)
    server.files["/c.tar"] = file.getvalue()
    whole = load_data("cifar10_c", data_dir=tmp_path, url=f"{server.url}/c.tar")
    assert len(whole.splits["test"]) == 15 * 20
    part = load_data("cifar10_c", data_dir=tmp_path, corruption="fog", severity=2)
    assert part.splits["test"].names == [f"fog/2/{i}" for i in range(4)]
    assert part.splits["test"].labels.tolist() == [0, 1, 2, 3]
    assert (_original(part) == pixels[4:8] ^ cifar_shifted.USUAL.index("fog")).all()
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match="did you mean 'snow'"):
        load_data("cifar10_c", data_dir=tmp_path, corruption="snows")


@pytest.mark.parametrize("name", ["cifar10_1", "cifar10_c"])
def test_what_is_made_for_tests_is_not_trained_on(name):
    with pytest.raises(UserError, match=f"dwsep eval RUN data={name} tests a network on them"):
        check_network_and_data(compose_settings([f"data={name}"]))


def test_all_images_of_a_test_are_its_test(tmp_path, pixels):
    for name, array in zip(
        cifar_shifted.Cifar10v1.files, (pixels, np.arange(20) % 10), strict=True
    ):
        (tmp_path / name).write_bytes(_npy(array))
    settings = data_settings("cifar10_1", root=str(tmp_path))
    data = create_data(settings, seed=0, data_dir=tmp_path)
    data.source = Together(data.source)
    data.setup()
    assert (_original(data) == pixels).all()
