from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from data_helpers import load_data
from PIL import Image
from torchvision.datasets import Imagenette as Reference

from dwsep_zoo.data import imagenette
from dwsep_zoo.errors import UserError


def _archive(name: str, folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for split, count in (("train", 4), ("val", 2)):
            for i in range(count):
                for wnid in imagenette.CLASS_NAMES[name]:
                    picture = io.BytesIO()
                    Image.new("RGB", (90, 70), (i, 0, 0)).save(picture, "png")
                    info = tarfile.TarInfo(f"{folder}/{split}/{wnid}/{i}.png")
                    info.size = len(picture.getvalue())
                    tar.addfile(info, io.BytesIO(picture.getvalue()))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["imagenette", "imagewoof"])
def test_download_once_and_test_on_its_val(server, tmp_path, monkeypatch, name):
    content = _archive(name, f"{name}2-160")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(imagenette.SIZES[name], "160", (f"{name}2-160", md5))
    server.files["/x.tgz"] = content
    for _ in range(2):
        data = load_data(name, data_dir=tmp_path, url=f"{server.url}/x.tgz")
    assert len(server.requests) == 1
    described = data.describe()
    assert described["splits"] == {"train": 30, "val": 10, "test": 20}
    assert described["class_names"][:2] == [*imagenette.CLASS_NAMES[name].values()][:2]
    assert described["image_size"] == 128
    assert all(name.startswith("val/") for name in data.splits["test"].names)


def test_archives_are_torchvisions():
    for size, (folder, md5) in imagenette.SIZES["imagenette"].items():
        key = size if size == "full" else f"{size}px"
        assert Reference._ARCHIVES[key] == (imagenette.URL.format(folder), md5)
    names = {wnid: names[0] for wnid, names in Reference._WNID_TO_CLASS.items()}
    assert names == imagenette.CLASS_NAMES["imagenette"]


def test_pictures_of_another_set_are_not_taken_for_it(server, pictures, tmp_path):
    """Not where it is downloaded, and not in a folder that is named."""
    root = pictures({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    with pytest.raises(UserError, match=r"could not download imagenette2-160\.tgz"):
        load_data("imagenette", data_dir=root, url=f"{server.url}/x.tgz")
    with pytest.raises(UserError, match="is not imagenette, which has no class 'cat'; data="):
        load_data("imagenette", root=str(root))
