"""Shards on another server: the same batches, and what a server can do wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import batches, data_settings, load_data
from PIL import Image

from dwsep_zoo.data import create_data
from dwsep_zoo.data.check import check_data
from dwsep_zoo.data.pack import pack
from dwsep_zoo.data.remote import TRIES, Part, Remote
from dwsep_zoo.errors import UserError

OPTIONS = {"image_size": 24, "batch_size": 8, "num_workers": 0, "in_memory": False}


@pytest.fixture
def packed(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "pictures" / "abc"[i % 3] / f"{i} ü.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
    settings = data_settings("folder", root=str(tmp_path / "pictures"))
    pack(create_data(settings, seed=0, data_dir=tmp_path / "data"), tmp_path / "packed", 30_000)
    return tmp_path / "packed"


@pytest.fixture
def url(packed, server) -> str:
    server.files.update({f"/shards/{path.name}": path.read_bytes() for path in packed.iterdir()})
    return f"{server.url}/shards"


def _remote(url: str, tmp_path: Path, **changes):
    return load_data("webdataset", root=url, data_dir=tmp_path / "data", **{**OPTIONS, **changes})


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_of_a_server_train_as_those_of_a_folder_do(url, packed, tmp_path, server, workers):
    one = load_data("webdataset", root=str(packed), **OPTIONS)
    other = _remote(url + "/", tmp_path, num_workers=workers)
    assert other.describe() == one.describe()
    for split in ("train", "val", "test"):
        for (x, y), (x_remote, y_remote) in zip(
            batches(one, split, 2), batches(other, split, 2), strict=True
        ):
            assert torch.equal(x, x_remote)
            assert torch.equal(y, y_remote)
    whole = [path for path, part in server.requests if part is None and path.endswith(".tar")]
    assert len(whole) == len(set(whole))  # their lengths, asked for once


def test_the_index_is_copied_once(url, packed, tmp_path, server):
    _remote(url, tmp_path)
    server.requests.clear()
    _remote(url, tmp_path)
    paths = [path for path, _ in server.requests]
    assert "/shards/index.json" in paths
    assert "/shards/index.npz" not in paths


@pytest.mark.parametrize("options", [{"cache": True}, {"in_memory": True}, {"on_error": "skip"}])
def test_other_ways_to_read(url, packed, tmp_path, options):
    one = load_data("webdataset", root=str(packed), **{**OPTIONS, **options})
    other = _remote(url, tmp_path, **options)
    assert other.fingerprint == one.fingerprint
    (x, y), (x_remote, y_remote) = batches(one, "test", 1)[0], batches(other, "test", 1)[0]
    assert torch.equal(x, x_remote)
    assert torch.equal(y, y_remote)


def test_it_is_checked_and_packed_again(url, packed, tmp_path):
    settings = data_settings("webdataset", root=url)

    def data():
        return create_data(settings, seed=0, data_dir=tmp_path / "data")

    assert not check_data(data()).unreadable
    again = pack(data(), tmp_path / "again", 30_000)
    assert again.fingerprint == json.loads((packed / "index.json").read_text())["fingerprint"]


def test_failures_are_tried_again(url, tmp_path, server, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    data = _remote(url, tmp_path)
    expected = batches(data, "train", 1)
    monkeypatch.setattr(data.pipeline.reader("train", training=True).store.remote, "wait_s", 0.01)
    server.failures = 11
    for (x, _), (wanted, _) in zip(batches(data, "train", 1), expected, strict=True):
        assert torch.equal(x, wanted)
    assert "503" in caplog.text


@pytest.mark.parametrize("lasting", [True, False])
def test_a_part_that_cannot_be_read(url, server, lasting):
    remote = Remote(url)
    remote.wait_s = 0.001
    server.requests.clear()
    if lasting:
        server.failures = 1_000
    good, bad = remote.parts(
        [Part("index.json", 1, 5), Part("index.json" * (1 + (not lasting)), 0, 5)]
    )
    assert isinstance(bad, UserError)
    assert isinstance(good, UserError) == lasting
    assert len(server.requests) == (2 * TRIES if lasting else 2)


def _without_ranges(server, url):
    server.ranges = False


def _without_shard(server, url):
    del server.files["/shards/train-000000.tar"]


def _without_index(server, url):
    del server.files["/shards/index.json"]


def _cut_off(server, url):
    server.files["/shards/train-000000.tar"] = server.files["/shards/train-000000.tar"][:-100]


def _other_table(server, url):
    server.files["/shards/index.npz"] += b"x"


@pytest.mark.parametrize(
    "spoil", [_without_ranges, _without_shard, _without_index, _cut_off, _other_table]
)
def test_what_is_wrong_is_said_before_training(url, tmp_path, server, spoil):
    spoil(server, url)
    with pytest.raises(UserError) as error:
        _remote(url, tmp_path)
    assert "\n" not in str(error.value)


def test_changed_bytes_are_found(url, tmp_path, server):
    data = _remote(url, tmp_path)
    for name, content in server.files.items():
        if name.endswith(".tar"):
            server.files[name] = content.replace(b"JFIF", b"JFXX")
    with pytest.raises(UserError, match="checksum"):
        batches(data, "train", 1)


@pytest.mark.parametrize(
    "root", ["http://127.0.0.1:9/x", "nothing://a/b", "https://me:secret@example.org/x", "s3://a/b"]
)
def test_a_place_that_is_not_there(root, tmp_path):
    with pytest.raises(UserError) as error:
        _remote(root, tmp_path)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_folders_are_of_this_machine(url, tmp_path):
    with pytest.raises(UserError, match="webdataset"):
        load_data("folder", root=url, **OPTIONS)
