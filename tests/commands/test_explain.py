"""``dwsep explain``: its tables agree with the counts, and fit a terminal."""

import pytest
import torch

from dwsep_zoo import count, create_model, list_convs
from dwsep_zoo.cli import main


@pytest.fixture
def explained(capsys, monkeypatch):
    """The output for the words of a command line, in a terminal of so many columns."""

    def run(*words, width=200):
        monkeypatch.setattr("dwsep_zoo.terminal.PIPE_WIDTH", width)
        main(["explain", *words])
        return capsys.readouterr().out

    return run


def test_the_ratio_of_one_convolution(explained):
    output = explained("in=64", "out=512")
    assert "1/512 + 1/9 = 521/4608 = 0.1131" in output
    assert f"{(9 * 64 * 512) / (9 * 64 + 64 * 512):.2f}x fewer" in output


def test_a_model_layer_by_layer(explained):
    output = explained("model=mobilenet_v1")
    assert "stages.3.5.conv.pointwise" in output
    assert "568,740,352" in output  # the paper's 569 M
    assert "94.9%" in output  # Table 2: pointwise layers have 94.86 % of the multiply-adds
    assert "29,294,088 parameters (6.92x) and 4,867,293,184 MACs (8.56x)" in output
    unit = "stages.1.0.conv 3*3*64 + 64*128 = 8,768            56x56 27,496,448      0.1189"
    assert unit in output


@pytest.mark.parametrize("conv", list_convs())
@pytest.mark.parametrize("model", ["xception", "mobilenet_v3_small"])
def test_a_model_fits_into_100_columns(model, conv, explained):
    output = explained(f"model={model}", f"conv={conv}", width=100)
    assert max(map(len, output.splitlines())) <= 100
    # A line that is cut ends so.
    assert "\N{HORIZONTAL ELLIPSIS}" not in output


def test_the_options_of_a_conv_type_are_named(explained):
    output = explained("model=mobilenet_v2", "conv={name: grouped, group_size: 4}")
    assert "conv=grouped, group_size 4, width 1" in output
    assert "3*3*4*32 + 32*16 = 1,664" in output


def test_functions_add_up(explained):
    output = explained("model=mobilenet_v3_small", "conv=mixed")
    rows = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip().replace(",", "") for cell in row] for row in rows]
    with torch.device("meta"):
        cost = count(create_model("mobilenet_v3_small", conv="mixed"), (3, 224, 224))
    assert sum(int(row[2]) for row in cells) == cost.params
    assert sum(int(row[4] or 0) for row in cells) == cost.macs
    gates = [layer for layer in cost.layers if ".gate." in layer.name]
    (gate_row,) = [row for row in cells if row[0] == "squeeze-excite"]
    assert int(gate_row[2]) == sum(layer.params for layer in gates)
