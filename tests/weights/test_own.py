"""The project's own weights: complete, loadable by every name, as accurate as their cards say."""

import io
import json
import math
import os
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from dwsep_zoo import UserError, create_model, load, open_artefact
from dwsep_zoo.files import sha256_of
from dwsep_zoo.schema.record import read_record
from dwsep_zoo.weights.catalog import OWN, available, own_name, own_networks, own_sets

NETWORKS = [(dataset, name) for dataset in own_sets() for name in own_networks(dataset)]
MOST_BYTES = 32 * 10**6  # of all of them
CHECKED = 200  # pictures of each class


@pytest.mark.parametrize(("dataset", "name"), NETWORKS)
def test_every_name_leads_to_the_same_network(dataset, name):
    folder = OWN / dataset / name
    record = read_record(folder / "result.json")
    assert own_name(record.model, record.conv) == name
    assert dataset in available(record.model)
    first = load(f"{name}.{dataset}")
    others = load(folder), create_model(record.model, conv=record.conv, pretrained=dataset).eval()
    x = torch.randn(2, *record.input_size)
    with torch.no_grad():
        for other in others:
            torch.testing.assert_close(other(x), first(x), rtol=0, atol=0)
    assert open_artefact(f"{name}.{dataset}").class_names == record.data.class_names


@pytest.mark.parametrize(("dataset", "name"), NETWORKS)
def test_the_card_and_the_record_are_of_this_file(dataset, name):
    folder = OWN / dataset / name
    record, card = read_record(folder / "result.json"), (folder / "README.md").read_text()
    assert re.search(r"SHA-256 (\w+)", card)[1] == sha256_of(folder / "model.safetensors")
    assert f"{record.metrics['test/acc']:.2%}" in card
    assert f"{record.params:,} parameters" in card
    assert record.status == "finished"
    assert not re.search(r"/(home|root|tmp|work)/", json.dumps(record.plain()))


def test_together_they_are_small():
    assert sum(path.stat().st_size for path in OWN.rglob("*") if path.is_file()) <= MOST_BYTES


@pytest.mark.parametrize(("dataset", "name"), NETWORKS[:1])
def test_a_network_that_was_not_trained_is_refused_with_the_choices(dataset, name):
    with pytest.raises(UserError, match=rf"mobilenet_v1-blueprint.*{name}"):
        create_model("mobilenet_v1", conv="blueprint", pretrained=dataset)
    with pytest.raises(UserError, match=r"has width .*; use width_mult"):
        create_model("mobilenet_v1", width_mult=0.3, pretrained=dataset)


def pictures(archive):
    """Classes and the first test pictures of each in the shared archive of CIFAR-10 as JPEG."""
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            if member.isfile() and "test" in parts and len(found.get(parts[-2], ())) < CHECKED:
                content = files.extractfile(member).read()
                found.setdefault(parts[-2], []).append(Image.open(io.BytesIO(content)))
    return found


@pytest.mark.slow
@pytest.mark.skipif("DWSEP_DATA" not in os.environ, reason="needs pictures of CIFAR-10")
def test_the_recorded_accuracy_is_that_of_the_pictures():
    """DWSEP_DATA: a folder with cifar10-jpeg.tar.xz."""
    found = pictures(Path(os.environ["DWSEP_DATA"], "cifar10-jpeg.tar.xz"))
    assert len(found) == 10
    for name in own_networks("cifar10"):
        artefact = open_artefact(f"{name}.cifar10")
        right = total = 0
        for label, images in found.items():
            predictions = artefact.predict(images, top_k=1, batch_size=100)
            right += sum(one.classes[0] == label for one in predictions)
            total += len(images)
        recorded = read_record(OWN / "cifar10" / name / "result.json").metrics["test/acc"]
        deviation = math.sqrt(recorded * (1 - recorded) / total)
        assert abs(right / total - recorded) < 4 * deviation
