"""Every command: its help, and one line for what cannot be read."""

import pytest

from dwsep_zoo.cli import COMMANDS, main
from dwsep_zoo.commands.compare import CompareArguments
from dwsep_zoo.report.table import FIELDS


def refusal(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert not output.out
    return output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "unknown command 'lst'; did you mean 'list'?"),
        (["list", "width_mult=nan"], "width_mult must be a number; got 'nan'"),
        (["list", "width_mult=.nan"], "width_mult must be a finite number; got nan"),
        (["list", "width_mult=1e5"], "width_mult must be at most 32"),
        (["list", "width_mult=[1]"], "width_mult must be a number; got [1]"),
        (["list", "conv=x"], "unknown conv 'x'"),
        (["list", "resnet"], "no model matches 'resnet'"),
        (["compare", "RUN", "out=[a]"], "out must be text; got ['a']"),
        (["compare", "RUN", "model={"], "model={ cannot be read"),
        (["compare", "RUN", "model=!!python/object/apply:os.system [ls]"], "cannot be read"),
        (["explain", "in=!!python/name:os.system"], "in=!!python/name:os.system cannot be read"),
        (["explain", "in=&a [*a]"], "cannot be read"),
        (["explain", "in=2020-13-45"], "cannot be read"),
        (["explain", "in=true"], "in must be a whole number; got True"),
        (["explain", "in=0"], "in must be at least 1; got 0"),
        (["explain", "kernel=4"], "kernel must be odd"),
        (["explain", "outs=3"], "unknown key 'outs'; did you mean 'out'?"),
        (["explain", "3", "kernel=5"], "explain: cannot read '3'"),
        (["explain", "kernl"], "cannot read 'kernl'; options are given as key=value: kernel=..."),
        (["explain", "--modl", "x"], "unknown option '--modl'"),
        (["explain", "model=mobilenet_v1", "size=16"], "smaller than the output stride 32"),
        (["explain", "model=mobilenet_v1", "in_chans=1.5"], "in_chans must be a whole number"),
        (["profile", "model=xception", "width_mult=32"], "of memory"),
        (["doctor", "now"], "doctor: cannot read 'now'"),
        (["export-weights", "RUN"], "for example: dwsep export-weights"),
    ],
    ids=" ".join,
)
def test_bad_input_ends_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(words, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_help_names_the_options_of_the_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: dwsep {command if command != 'bench' else 'profile'} ")
    assert "=" in output or command == "doctor"


def test_every_filter_of_a_report_is_an_option():
    assert set(FIELDS) <= set(CompareArguments.model_fields)
