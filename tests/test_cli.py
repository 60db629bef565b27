"""The commands as a user types them: output, one-line messages, exit codes."""

import csv
import os
import signal
import sys
from functools import partial

import pytest

from dwsep_zoo.analysis.cost import measure_cost
from dwsep_zoo.cli import main
from dwsep_zoo.commands.train import run_train
from dwsep_zoo.signals import END


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lst", "unknown command 'lst'; did you mean 'list'?"),
        ("train model=mobilnet_v1", "unknown model 'mobilnet_v1'; did you mean 'mobilenet_v1'?"),
        ("train modle=x", "unknown key 'modle'; did you mean 'model'?"),
        ("train resume=nowhere", "resume=nowhere: not the folder of a run"),
        ("train -m resume=last", "resume= goes on with one run or, with its folder alone, a sweep"),
        ("train resume=last paths.log_dir=nowhere", "resume=last: there is no run below nowhere"),
        ("compare", "compare: name the folders of the runs"),
        ("compare nowhere", "nowhere"),
    ],
)
def test_messages(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", ["", "--help"])
def test_usage(words, capsys):
    main(words.split())
    assert "dwsep compare logs" in capsys.readouterr().out


def test_list_and_explain(capsys):
    main(["list", "mobilenet*", "conv=standard"])
    assert "29,294,088" in capsys.readouterr().out
    main(["explain", "in=3", "out=3", "kernel=3"])
    output = capsys.readouterr().out
    for number in ("81", "27", "36", "54"):
        assert f" {number} " in output
    main(["explain", "model=mobilenet_v1", "size=128"])
    assert "186,400,768" in capsys.readouterr().out  # the paper's 186 M at 128 pixels


def test_a_sweep_goes_on_after_a_failure_and_ends_with_the_comparison(
    own_logging, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    quick = partial(measure_cost, min_run_time=0.02)
    monkeypatch.setattr("dwsep_zoo.training.profile.measure_cost", quick)
    words = [
        *("-m", "conv=standard,depthwise_separable"),
        *("model.width_mult=0.125", "trainer.max_epochs=1", "+trainer.limit_train_batches=4"),
        *("profile.patience=0", "profile.roofline=false", "recipe.norm_statistics=running"),
        *("model=mobilenet_v1_shallow", "logger.pictures=false"),
        *("recipe.lr=0.1,1e30", "recipe.schedule=constant", "recipe.warmup_fraction=0"),
    ]
    with pytest.raises(SystemExit) as stop:
        run_train(words)
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.err.count("a smaller recipe.lr usually helps") == 2
    (sweep,) = tmp_path.glob("logs/train/multiruns/*")
    with (sweep / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["conv"] for row in rows] == ["standard", "depthwise_separable"]
    assert float(rows[1]["macs_ratio"]) < 0.5
    text = (sweep / "comparison.md").read_text()
    assert text.count("a smaller recipe.lr usually helps") == 2
    assert (sweep / "comparison.png").exists()
    assert list(sweep.glob("events.out.tfevents*"))
    assert len(list(sweep.glob("*-mobilenet_v1_shallow-*-s0"))) == 4


@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored by the parent"])
@pytest.mark.parametrize("number", [signal.SIGINT, *END], ids=lambda number: number.name)
def test_signals_end_a_command_with_one_line(monkeypatch, capsys, number, ignored):
    monkeypatch.setattr(
        "dwsep_zoo.commands.list.run", lambda arguments: os.kill(os.getpid(), number)
    )
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, *END)}
    if ignored and number == signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as end:
            main(["list"])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
