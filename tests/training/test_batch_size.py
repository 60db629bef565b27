"""data.batch_size=auto: a number within its limits, the same for a run from then on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import composed

from dwsep_zoo import UserError, create_model
from dwsep_zoo.analysis.memory import training_memory
from dwsep_zoo.schema.record import read_record
from dwsep_zoo.training import check, continued, resume_settings
from dwsep_zoo.training.batch_size import SIZES, STEPS, choose_batch_size
from dwsep_zoo.training.out_of_memory import USABLE

SHAPE = (1, 16, 16)
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def network():
    return create_model("mobilenet_v1_shallow", width_mult=0.125, in_chans=1, num_classes=4)


@pytest.mark.parametrize("fits", [SIZES[0], 128, SIZES[-1]])
def test_a_gpu_gets_the_largest_that_fits(fits, network, monkeypatch):
    need = training_memory(network, SHAPE, batch_size=fits)
    monkeypatch.setattr("dwsep_zoo.training.batch_size.memory_of", lambda _: 1.01 * need / USABLE)
    assert choose_batch_size(network, SHAPE, images=10**6, device=GPU) == fits


@pytest.mark.parametrize(("images", "most"), [(10, 10), (32 * STEPS, 32), (63 * STEPS, 32)])
def test_an_epoch_keeps_its_steps(images, most, network, monkeypatch):
    monkeypatch.setattr("dwsep_zoo.training.batch_size.memory_of", lambda _: 10**12)
    assert choose_batch_size(network, SHAPE, images=images, device=GPU) == most


def test_a_teacher_needs_room_and_time(network, monkeypatch):
    """On a GPU it lowers the number; on a CPU it computes in each step that is timed."""
    asked: list[int] = []

    class Wide:
        def memory(self, images: int) -> int:
            return 10**6 * images

        def __call__(self, images: torch.Tensor) -> None:
            asked.append(len(images))

    need = training_memory(network, SHAPE, batch_size=64) + 64 * 10**6
    monkeypatch.setattr("dwsep_zoo.training.batch_size.memory_of", lambda _: 1.01 * need / USABLE)
    assert choose_batch_size(network, SHAPE, images=10**6, device=GPU) > 64
    assert choose_batch_size(network, SHAPE, images=10**6, device=GPU, teacher=Wide()) == 64
    cpu = torch.device("cpu")
    assert choose_batch_size(network, SHAPE, images=10**6, device=cpu, teacher=Wide()) in asked


def test_nothing_fits(network, monkeypatch):
    monkeypatch.setattr("dwsep_zoo.training.batch_size.memory_of", lambda _: 1000)
    with pytest.raises(UserError, match="not even 16 images fit on this cuda"):
        choose_batch_size(network, SHAPE, images=10**6, device=GPU)


def test_a_cpu_gets_one_of_them_and_the_network_and_random_numbers_stay(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = choose_batch_size(network, SHAPE, images=10**4, device=torch.device("cpu"))
    assert torch.equal(torch.rand(1), expected)
    assert found in SIZES
    assert network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_run_records_the_number_and_resumes_with_it(run, tmp_path):
    first = run("run", "data.batch_size=auto", "trainer.max_epochs=1")
    number = first["config"]["data"]["batch_size"]
    assert number in SIZES
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"data.batch_size={number}, chosen for this machine; recipe.lr=0.1 is used" in log
    assert log.count("kernels compute") == 1
    again = run("run", f"resume={tmp_path / 'run'}", "trainer.max_epochs=2")
    assert again["config"]["data"]["batch_size"] == number
    assert again["epochs"] == 2


def test_the_same_command_goes_on_with_the_number_that_was_chosen(run, tmp_path, stopped_in):
    """``resume=auto``, and ``resume=RUN`` with the word once more."""
    folder = tmp_path / "run"
    with stopped_in(1, 1):
        run("run", "data.batch_size=auto")
    number = read_record(folder / "result.json").configured("data.batch_size")
    assert number in SIZES
    (folder / "result.json").write_text(
        (folder / "result.json").read_text().replace(f'"batch_size": {number}', '"batch_size": 24')
    )
    again = resume_settings(folder, {"data.batch_size": "auto"})
    assert again.data.batch_size == 24
    command = again.replace(resume=None, data={**again.data.plain(), "batch_size": "auto"})
    assert continued(command) == again


@pytest.mark.parametrize(
    ("overrides", "said"),
    [((), "runs of a sweep steps of different sizes"), (("trainer=ddp",), "trainer=ddp")],
)
def test_where_it_would_not_be_one_number_it_is_refused(overrides, said, tmp_path):
    folder = tmp_path / "0-run"
    if not overrides:
        (tmp_path / "multirun.yaml").touch()
    settings = composed("data.batch_size=auto", *overrides)
    settings = settings.replace(paths={**settings.paths.plain(), "output_dir": str(folder)})
    with pytest.raises(UserError, match=said):
        check(settings)
    assert not Path(folder).exists()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "all", "true"])
def test_other_words_are_refused(value):
    with pytest.raises(UserError, match=r"data\.batch_size must be"):
        composed(f"data.batch_size={value}")
