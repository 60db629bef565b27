"""``dwsep profile``: its tables, and what it says of wrong input before it measures anything."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dwsep_zoo import UserError
from dwsep_zoo.analysis import runtimes as runtimes_module
from dwsep_zoo.analysis.cost import measure_cost
from dwsep_zoo.analysis.latency import COMPARE_TURNS
from dwsep_zoo.analysis.runtimes import RUNTIMES, Workload
from dwsep_zoo.cli import main
from dwsep_zoo.commands.profile import ProfileArguments, plan_variants
from dwsep_zoo.commands.profile_tables import cost_table, latency_table
from dwsep_zoo.schema.parse import parse

SMALL = {
    **{"model": "mobilenet_v1_shallow", "runtimes": "eager"},
    **{"width_mult": 0.25, "size": 32, "num_classes": 10},
}
INSTALL = 'pip install "dwsep-zoo[runtimes]"'


@pytest.fixture
def eager_only(monkeypatch):
    """A machine on which nothing but PyTorch is installed."""
    absent = {name: None if name == "eager" else INSTALL for name in RUNTIMES}
    monkeypatch.setattr(runtimes_module, "available_runtimes", lambda: absent)


def plan(**options):
    return plan_variants(parse(ProfileArguments, {"model": "mobilenet_v1", **options}))


def measured(variants, **options):
    sizes = variants.networks, variants.input_size, variants.workloads
    return measure_cost(*sizes, min_run_time=0.01, **options)


def text(part, width=120):
    console = Console(width=width, file=io.StringIO())
    console.print(part)
    return console.file.getvalue()


def test_costs():
    lines = text(cost_table(plan(runtimes="eager"))).splitlines()
    (params,) = [line for line in lines if "parameters" in line]
    assert re.search(r"29,294,088 .* 4,231,976 \(0\.14x\)", params)
    (macs,) = [line for line in lines if "MACs (M)" in line]
    assert re.search(r"4,867\.3 .* 568\.7 \(0\.12x\)", macs)
    assert any("memory, training, batch 1 (MB)" in line for line in lines)


def test_a_batch_that_cannot_be_trained():
    output = text(cost_table(plan(batch_size="1,2", **SMALL)))
    one, two = [line for line in output.splitlines() if "training, batch" in line]
    assert one.count("cannot be trained") == 2
    assert re.search(r"\d \(\d\.\d\dx\)", two)


def test_latencies_of_every_condition():
    variants = plan(
        conv="depthwise_separable,standard",
        batch_size="1,2",
        precision=["fp32", "bf16"],
        threads=1,
        **SMALL,
    )
    said = []
    output = text(
        latency_table(variants, measured(variants, say=said.append, least_turns=COMPARE_TURNS))
    )
    assert said == [f"eager {p}, batch {b}" for p in ("fp32", "bf16") for b in (1, 2)]
    assert all(heading in output for heading in said)
    assert output.count("reference") == 4
    assert len(re.findall(r"\d+\.\d\d +│ +\[\d+\.\d\d, +\d+\.\d\d\]", output)) == 8
    assert (
        len(re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\] │ (slower|faster|no diff)", output))
        + len(re.findall(r"\d\.\d\d +│ unclear", output))
        == 4
    )
    assert "1 thread; eager channels_last" in output


def test_the_reference_is_the_standard_network_or_the_first():
    both = plan(conv="blueprint,standard", **SMALL)
    assert both.reference == "standard"
    none = plan(conv="blueprint,grouped", **SMALL)
    assert none.reference == "blueprint"


@pytest.mark.usefixtures("eager_only")
@pytest.mark.parametrize(("runtimes", "absent"), [(None, 3), ("all", 5)])
def test_absent_runtimes_are_named(runtimes, absent):
    variants = plan(**{**SMALL, "runtimes": runtimes})
    assert [str(w) for w in variants.workloads] == ["eager fp32, batch 1"]
    assert len(variants.notes) == absent
    output = text(latency_table(variants, measured(variants)))
    assert f"openvino is absent; install it with: {INSTALL}" in output


def test_pairs_that_do_not_exist_are_named(monkeypatch):
    monkeypatch.setattr(runtimes_module, "available_runtimes", dict.fromkeys(RUNTIMES).copy)
    monkeypatch.setattr(Workload, "check", no_bf16_in_onnxruntime)
    found = plan(precision="bf16", **{**SMALL, "runtimes": "eager,onnxruntime"})
    assert [str(w) for w in found.workloads] == ["eager bf16, batch 1"]
    assert found.notes == ("not measured: no bf16",)


def no_bf16_in_onnxruntime(workload):
    if (workload.runtime, workload.precision) == ("onnxruntime", "bf16"):
        raise UserError("no bf16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "profile: name a model"),
        ("mobilenet_v1", "profile: cannot read 'mobilenet_v1'"),
        ("model=mobilnet_v1", "unknown model 'mobilnet_v1'; did you mean 'mobilenet_v1'?"),
        ("model=mobilenet_v1 conv=standard,x", "unknown conv 'x'"),
        ("model=mobilenet_v1 conv=[]", "conv must be a list"),
        ("model=mobilenet_v1 batch_size=1,0", "batch_size must be a list, each at least 1; got"),
        ("model=mobilenet_v1 threads=0", "threads must be at least 1; got 0"),
        ("model=mobilenet_v1 size=8", "smaller than the output stride 32"),
        ("model=mobilenet_v1 width_mult=wide", "width_mult must be a number"),
        ("model=mobilenet_v1 in_chans=x", "in_chans must be a whole number"),
        ("model=mobilenet_v1 runtimes=eager,tflite", "unknown runtime 'tflite'"),
        ("model=mobilenet_v1 runtimes=eager,onnxruntime", f"install it with: {INSTALL}"),
        ("model=mobilenet_v1 precision=fp8", "unknown precision 'fp8'"),
        ("model=mobilenet_v1 device=tpu", "unknown device 'tpu'"),
        ("model=mobilenet_v1 roofline=maybe", "roofline must be true or false; got 'maybe'"),
        ("model=mobilenet_v1 out=x.svg", "add --roofline"),
        ("model=mobilenet_v1 --roofline out=x.pdf", "out must be an .svg file"),
        ("model=mobilenet_v1 --roofline out=nowhere/x.svg", "in a folder that exists"),
        ("model=mobilenet_v1 --verbose", "unknown option '--verbose'"),
    ],
)
def test_messages(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    find = importlib_find_spec_without("onnxruntime")
    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(SystemExit) as stop:
        main(["profile", *words.split()])
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out
    assert not list(tmp_path.iterdir())


def importlib_find_spec_without(absent):
    from importlib.util import find_spec

    return lambda name, package=None: None if name == absent else find_spec(name, package)


def test_the_command(capsys):
    words = "model=mobilenet_v1_shallow runtimes=eager width_mult=0.25 size=32 threads=1 patience=0"
    main(["profile", *words.split()])
    output = capsys.readouterr().out
    assert "one image of 3 x 32 x 32" in output
    assert "eager fp32, batch 1" in output
    assert "depthwise_separable" in output


@pytest.mark.slow
def test_the_roofline(capsys, tmp_path):
    out = tmp_path / "roofline.svg"
    words = (
        "model=mobilenet_v1 runtimes=eager width_mult=0.25 size=32 threads=1 patience=0 --roofline"
    )
    main(["profile", *words.split(), f"out={out}"])
    output = capsys.readouterr().out
    # The latency that the sentence states is that of the table.
    ratio = float(re.search(r"(\d\.\d\d) +(\[\d\.\d\d, \d\.\d\d\]|│ unclear)", output)[1])
    said = re.search(r"fewer MACs, (?:yet )?(?:(\d+\.\d+)x \w+er|about as fast): ", output)
    assert float(said[1] or 1) == pytest.approx(max(ratio, 1 / ratio), abs=0.06)
    assert f"wrote {out}" in output.replace("\n", "")
    assert "<svg" in out.read_text()
