from __future__ import annotations

import hashlib
import io
import logging
import random
import tarfile
from pathlib import Path

import pytest

from dwsep_zoo.data.download import extract, fetch
from dwsep_zoo.errors import UserError

CONTENT = random.Random(0).randbytes(1_000_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
OTHER = CONTENT[:-1] + b"x"


def test_download_is_moved_into_place_and_used_again(server, tmp_path):
    server.files["/a"] = CONTENT
    path = fetch([f"{server.url}/a"], tmp_path / "new" / "a", MD5)
    assert path.read_bytes() == CONTENT
    assert not Path(f"{path}.part").exists()
    fetch([f"{server.url}/a"], path, MD5)
    assert len(server.requests) == 1


def test_cut_connection_is_resumed(server, tmp_path):
    server.files["/a"] = CONTENT
    server.cut_after = [300_000, 500_000]
    assert fetch([f"{server.url}/a"], tmp_path / "a", MD5).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=300000-", "bytes=800000-"]


def test_part_of_an_earlier_call_is_resumed_from_another_mirror(server, tmp_path):
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes(CONTENT[:1234])
    urls = [f"{server.url}/missing", f"{server.url}/a"]
    assert fetch(urls, tmp_path / "a", MD5).read_bytes() == CONTENT
    assert server.requests == [("/missing", "bytes=1234-"), ("/a", "bytes=1234-")]


def test_server_without_ranges_starts_again(server, tmp_path):
    server.files["/a"] = CONTENT
    server.ranges = False
    (tmp_path / "a.part").write_bytes(CONTENT[:1234])
    assert fetch([f"{server.url}/a"], tmp_path / "a", MD5).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"something else", OTHER, CONTENT, CONTENT + b"more"])
def test_whatever_was_left_the_result_is_right(server, tmp_path, left):
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes(left)
    assert fetch([f"{server.url}/a"], tmp_path / "a", MD5).read_bytes() == CONTENT


def test_damaged_archive_is_downloaded_again(server, tmp_path, caplog):
    server.files["/a"] = CONTENT
    (tmp_path / "a").write_bytes(CONTENT[:1234])
    assert fetch([f"{server.url}/a"], tmp_path / "a", MD5).read_bytes() == CONTENT
    assert "wrong checksum" in caplog.text


def test_wrong_checksum_and_cut_mirrors_are_passed_over(server, tmp_path):
    server.files = {"/wrong": OTHER, "/cut": CONTENT, "/right": CONTENT}
    urls = [f"{server.url}/{name}" for name in ("wrong", "missing", "right")]
    assert fetch(urls, tmp_path / "a", MD5).read_bytes() == CONTENT


def test_all_that_was_tried_stands_in_one_line(server, tmp_path):
    server.files = {"/wrong": OTHER}
    dead = "http://127.0.0.1:9/x"
    with pytest.raises(UserError) as caught:
        fetch([f"{server.url}/wrong", f"{server.url}/missing", dead], tmp_path / "a", MD5)
    message = str(caught.value)
    assert "\n" not in message
    for text in ("/wrong (wrong checksum)", "/missing (HTTP 404)", dead, "refused"):
        assert text in message
    assert "data.url=" in message
    assert "data.root=" in message
    assert not (tmp_path / "a").exists()


def test_connection_that_brings_nothing_ends(server, tmp_path):
    server.files["/a"] = CONTENT
    server.cut_after = [100, 0, 0, 0]
    with pytest.raises(UserError, match="cut"):
        fetch([f"{server.url}/a"], tmp_path / "a", MD5)
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("as_url", [True, False])
def test_local_file(tmp_path, as_url):
    (tmp_path / "here").write_bytes(CONTENT)
    source = (tmp_path / "here").as_uri() if as_url else str(tmp_path / "here")
    assert fetch([source], tmp_path / "a", MD5).read_bytes() == CONTENT


def test_missing_local_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        fetch([str(tmp_path / "nowhere")], tmp_path / "a", MD5)


def test_progress_in_a_log_is_a_few_lines(server, tmp_path, caplog):
    server.files["/a"] = CONTENT
    with caplog.at_level(logging.INFO, "dwsep_zoo"):
        fetch([f"{server.url}/a"], tmp_path / "a", MD5)
    assert 2 <= len(caplog.messages) <= 5
    assert caplog.messages[-1].endswith("100 %")


def _archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


def test_extract(tmp_path):
    (tmp_path / ".unpacking-inner.killed").mkdir()
    (tmp_path / ".unpacking-inner-160.of-another").mkdir()
    extract(_archive(tmp_path / "a.tgz", ["inner/x", "inner/y"]), "inner", tmp_path)
    assert sorted(p.name for p in (tmp_path / "inner").iterdir()) == ["x", "y"]
    assert [p.name for p in tmp_path.glob(".unpacking*")] == [".unpacking-inner-160.of-another"]


@pytest.mark.parametrize("names", [["inner/x", "../outside"], ["other/x"], []])
def test_extract_leaves_nothing_half_done(tmp_path, names):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(UserError, match="cannot unpack"):
        extract(_archive(tmp_path / "a.tgz", names), "inner", root)
    assert not list(root.iterdir())
    assert not (tmp_path / "outside").exists()


def test_extract_of_a_damaged_archive(tmp_path):
    archive = _archive(tmp_path / "a.tgz", ["inner/x"])
    archive.write_bytes(archive.read_bytes()[:-20])
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(UserError, match="cannot unpack"):
        extract(archive, "inner", root)
    assert not list(root.iterdir())
