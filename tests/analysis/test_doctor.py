"""Both ways of every detour give the same, and verdicts follow from what was measured."""

import pytest
import torch

from dwsep_zoo.analysis import doctor
from dwsep_zoo.analysis.doctor import Detour, detours, examine
from dwsep_zoo.cli import main


def test_both_ways_give_the_gradient(monkeypatch):
    monkeypatch.setattr(doctor, "SHAPE", (2, 128, 28, 28))  # fewer images than are timed
    for detour in detours():
        largest = detour.exact.abs().max()
        tolerance = 1e-5 if "fp32" in detour.name else 2e-2
        for way in (detour.own, detour.ours):
            assert (way().double() - detour.exact).abs().max() < tolerance * largest, detour.name


@pytest.mark.parametrize(
    ("times", "error", "verdict"),
    [
        ((1.0, 5.0), 0.0, "needed"),
        ((1.0, 1.0), 0.0, "no longer needed here"),
        ((1.0, 0.5), 0.0, "no longer needed here"),
        ((1.0, 5.0), 0.1, "WRONG: please report this"),
    ],
)
def test_the_verdict_follows_from_time_and_error(times, error, verdict):
    exact = torch.ones(3, dtype=torch.float64)
    detour = Detour("a gradient", own=exact.clone, ours=lambda: exact + error, exact=exact)
    by_way = dict(zip((detour.ours, detour.own), times, strict=True))
    finding = examine(detour, timer=lambda way: by_way[way] * 1e-3, min_run_time=0.1)
    assert finding.verdict == verdict
    assert finding.gain.ratio == pytest.approx(times[1] / times[0])


def test_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "SHAPE", (1, 16, 8, 8))
    monkeypatch.setattr(doctor, "examine", lambda detour: examine(detour, min_run_time=0.01))
    main(["doctor"])
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "weight gradient, 5 x 5, stride 1, fp32" in out


def test_bench_is_a_profile_of_every_runtime(monkeypatch):
    seen = []
    monkeypatch.setattr("dwsep_zoo.commands.profile.run", seen.append)
    main(["bench", "model=mobilenet_v1", "batch_size=8"])
    assert seen == [["runtimes=all", "batch_size=1,32", "model=mobilenet_v1", "batch_size=8"]]
