"""Shards on another server: the same batches, and what a server can do wrong."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from data_helpers import batches, data_settings, load_data
from PIL import Image

from dwsep_zoo.data import create_data
from dwsep_zoo.data.check import check_data
from dwsep_zoo.data.pack import pack
from dwsep_zoo.data.pictures import problems
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
    assert all(part for path, part in server.requests if path.endswith(".tar"))


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
    monkeypatch.setattr("dwsep_zoo.data.remote.WAIT_S", 0.01)
    server.failures = 11
    for (x, _), (wanted, _) in zip(batches(data, "train", 1), expected, strict=True):
        assert torch.equal(x, wanted)
    assert "503" in caplog.text


def test_a_part_of_a_file_that_is_not_there(url, server):
    remote = Remote(url)
    server.requests.clear()
    (good,) = remote.parts([Part("index.json", 1, 5)])
    assert good == server.files["/shards/index.json"][1:6]
    with pytest.raises(UserError, match=r"no\.json: there is no such file"):
        remote.parts([Part("no.json", 0, 5)])
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [503, 429, 403])
def test_a_server_that_refuses(url, server, status, monkeypatch):
    remote = Remote(url)
    monkeypatch.setattr("dwsep_zoo.data.remote.WAIT_S", 0.001)
    server.requests.clear()
    server.failures, server.status = 1_000, status
    with pytest.raises(UserError, match=str(status)):
        remote.parts([Part("index.json", 0, 5)])
    assert len(server.requests) == (1 if status == 403 else TRIES)


def test_pictures_that_a_server_does_not_send_are_not_left_out(url, tmp_path, server, monkeypatch):
    monkeypatch.setattr("dwsep_zoo.data.remote.TRIES", 1)
    data = create_data(
        data_settings("webdataset", root=url, on_error="skip"), seed=0, data_dir=tmp_path
    )
    data.prepare_data()
    data.choose()  # reads the index and the ends of the shards
    server.failures = 10**6
    with pytest.raises(UserError, match="503"):
        problems(data.load().store, [f"a/{i} ü.jpg" for i in range(0, 60, 3)])
    with pytest.raises(UserError, match="503"):
        check_data(data)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of forks beside other threads
def test_a_forked_process_leaves_its_parents_connections_alone(url, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("dwsep_zoo.data.remote.SILENCE_S", 2)
    remote, wanted = Remote(url), [Part("index.json", i, 10) for i in range(32)]
    expected = remote.parts(wanted)
    with multiprocessing.get_context("fork").Pool(1, gc.collect) as pool:
        assert pool.apply(remote.parts, (wanted,)) == expected
        assert remote.parts(wanted) == expected
    assert caplog.text == ""


def test_systems_that_open_files_read_no_more_than_is_wanted(monkeypatch):
    fsspec.filesystem("memory").pipe({"/packed/a": b"0123456789", "/packed/b": b""})
    remote = Remote("memory://packed/")
    monkeypatch.setattr("dwsep_zoo.data.remote.WAIT_S", 0.001)
    assert remote.whole("a") == b"0123456789"
    assert remote.parts([Part("a", 2, 3), Part("a", 9, 1)]) == [b"234", b"9"]
    with pytest.raises(UserError, match="0 bytes of 1"):
        remote.parts([Part("b", 0, 1)])


def _without_ranges(server):
    server.ranges = False
    return "whole files instead of parts"


def _without_shard(server):
    del server.files["/shards/train-000000.tar"]
    return "train-000000.tar: there is no such file"


def _without_index(server):
    del server.files["/shards/index.json"]
    return "index.json: there is no such file"


def _cut_off(server):
    server.files["/shards/train-000000.tar"] = server.files["/shards/train-000000.tar"][:-100]
    return "train-000000.tar: 416"


def _other_table(server):
    server.files["/shards/index.npz"] += b"x"
    return "index.npz is damaged"


def _no_index(server):
    server.files["/shards/index.json"] = b"<html>"
    return "index.json is damaged"


SPOILED = [_without_ranges, _without_shard, _without_index, _cut_off, _other_table, _no_index]


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_wrong_is_said_before_training_and_can_be_mended(url, tmp_path, server, spoil):
    files = dict(server.files)
    message = spoil(server)
    with pytest.raises(UserError, match=message) as error:
        _remote(url, tmp_path)
    assert "\n" not in str(error.value)
    server.files, server.ranges = files, True
    _remote(url, tmp_path)


def test_a_server_that_compresses_texts(url, tmp_path, server):
    server.compresses = True
    _remote(url, tmp_path)


def test_changed_bytes_are_found(url, tmp_path, server):
    data = _remote(url, tmp_path)
    for name, content in server.files.items():
        if name.endswith(".tar"):
            server.files[name] = content.replace(b"JFIF", b"JFXX")
    with pytest.raises(UserError, match="checksum"):
        batches(data, "train", 1)


@pytest.mark.parametrize(
    "root",
    [
        *("http://127.0.0.1:9/x", "nothing://a/b", "s3://a/b", "http://", "http://[x/y"),
        *("https://me:secret@example.org/x", "https://secret@example.org/x", "ftp://a:secret@b/c"),
        *("https://example.org/x?token=secret", "simplecache::https://me:secret@example.org/x"),
    ],
)
def test_a_place_that_cannot_be_used(root, tmp_path, monkeypatch):
    monkeypatch.setattr("dwsep_zoo.data.remote.TRIES", 1)
    with pytest.raises(UserError) as error:
        _remote(root, tmp_path)
    assert "\n" not in str(error.value)
    assert "token=" not in str(error.value)


def test_folders_are_of_this_machine(url, tmp_path):
    with pytest.raises(UserError, match="webdataset"):
        load_data("folder", root=url, **OPTIONS)
