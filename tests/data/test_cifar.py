from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from data_helpers import data_settings, load_data
from torchvision.datasets import CIFAR10, CIFAR100

from dwsep_zoo.data import cifar as module
from dwsep_zoo.data import create_data
from dwsep_zoo.errors import UserError

PER_BATCH = 20


def _batch(labels_key: str, num_classes: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
    labels = [i % num_classes for i in range(PER_BATCH)]
    return pickle.dumps({"data": data, labels_key: labels, "batch_label": "a batch"})


@pytest.fixture(params=["cifar10", "cifar100"])
def archive(request, monkeypatch):
    """(name, archive of a set as small as possible), whose checksum is made the right one."""
    name = request.param
    files = module.FILES[name]
    num_classes = 2
    contents = {
        part: _batch(files.labels_key, num_classes, seed)
        for seed, part in enumerate(files.train + files.test)
    }
    contents[files.meta] = pickle.dumps({files.names_key: ["cat", "dog"]})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for part, content in contents.items():
            info = tarfile.TarInfo(f"{files.folder}/{part}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5(buffer.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(module.FILES, name, replace(files, md5=md5))
    return name, buffer.getvalue()


def test_download_split_and_pixels(archive, server, tmp_path):
    name, content = archive
    server.files["/x.tgz"] = content
    data = load_data(name, data_dir=tmp_path / "data", url=f"{server.url}/x.tgz")
    files = module.FILES[name]
    total = PER_BATCH * len(files.train)
    assert data.class_names == ["cat", "dog"]
    assert data.describe()["splits"] == {
        "train": total * 9 // 10,
        "val": total // 10,
        "test": PER_BATCH,
    }
    first = pickle.loads((tmp_path / "data" / files.folder / files.test[0]).read_bytes())
    stored = data.splits["test"].pixels.permute(0, 3, 1, 2).flatten(1).numpy()
    assert (stored == first["data"]).all()
    assert data.splits["test"].labels.tolist() == first[files.labels_key]

    load_data(name, data_dir=tmp_path / "data", url=f"{server.url}/x.tgz")
    assert len(server.requests) == 1


def test_mirrors_in_order(archive, server, tmp_path, monkeypatch):
    name, content = archive
    file = module.FILES[name].archive
    server.files = {f"/one/{file}": b"wrong", f"/two/{file}": content}
    mirrors = (f"{server.url}/none/{{}}", f"{server.url}/one/{{}}", f"{server.url}/two/{{}}")
    monkeypatch.setattr(module, "MIRRORS", mirrors)
    load_data(name, data_dir=tmp_path / "data")
    assert [path for path, _ in server.requests] == [f"/{x}/{file}" for x in ("none", "one", "two")]


@pytest.mark.parametrize("have", ["archive", "unpacked", "inside"])
def test_what_lies_in_root_is_used_without_network(archive, tmp_path, monkeypatch, have):
    name, content = archive
    files = module.FILES[name]
    monkeypatch.setattr(module, "MIRRORS", ())
    root = tmp_path / "elsewhere"
    root.mkdir()
    if have == "archive":
        (root / files.archive).write_bytes(content)
    else:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.extractall(root, filter="data")
    data = load_data(
        name,
        data_dir=tmp_path / "data",
        root=str(root / files.folder if have == "inside" else root),
    )
    assert data.num_classes == 2
    assert not (tmp_path / "data").exists()


def test_neither_network_nor_files(archive, tmp_path, monkeypatch):
    name, _ = archive
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/{}", "http://127.0.0.1:10/{}"))
    data = create_data(data_settings(name), seed=0, data_dir=tmp_path)
    with pytest.raises(UserError, match=r"127.0.0.1:9/.*127.0.0.1:10/.*data\.url=.*data\.root="):
        data.prepare_data()


def test_missing_root(archive, tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        load_data(archive[0], data_dir=tmp_path, root=str(tmp_path / "nowhere"))


class _Evil:
    def __reduce__(self):
        return os.system, ("false",)


def _python2(data: np.ndarray) -> bytes:
    """A pickle as the authors' Python 2 and numpy of 2009 wrote it: texts of bytes, protocol 2."""
    text = b"U" + bytes([data.nbytes]) + data.tobytes()
    return (
        b"\x80\x02}q\x01U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K" + bytes([data.shape[0]]) + b"K" + bytes([data.shape[1]]) + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + text + b"tbs."
    )


def test_pickles_of_python_2(tmp_path):
    data = np.arange(100, 220, dtype=np.uint8).reshape(4, 30)
    (tmp_path / "x").write_bytes(_python2(data))
    assert (module._unpickle(tmp_path / "x")["data"] == data).all()


@pytest.mark.parametrize(
    "content", [pickle.dumps({"data": _Evil()}), b"", b"junk", b"\x80\x02K\x01."]
)
def test_other_pickles_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="cannot read"):
        module._unpickle(tmp_path / "x")


def test_checksums_are_torchvisions():
    for name, reference in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        files = module.FILES[name]
        assert files.md5 == reference.tgz_md5
        assert files.archive == reference.filename
        assert files.folder == reference.base_folder
        assert list(files.train) == [part for part, _ in reference.train_list]
        assert list(files.test) == [part for part, _ in reference.test_list]
        assert files.meta == reference.meta["filename"]
        assert files.names_key == reference.meta["key"]
        assert module.MIRRORS[-1].format(files.archive) == reference.url
