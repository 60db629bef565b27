"""Compiled training steps: chosen where they pay, and the same training as eager ones."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from helpers import different, last_weights

from dwsep_zoo import UserError, create_model
from dwsep_zoo.training import compile as compiling
from dwsep_zoo.training.compile import LONG_ENOUGH, choose_compile, compiled_forward

pytestmark = pytest.mark.bounds


def clock(seconds):
    return lambda: seconds


def never():
    raise AssertionError("nothing was to be measured")


def test_what_the_user_says_is_not_measured():
    assert not choose_compile(False, 1e9, never, never).compiled
    assert choose_compile(True, 0.0, never, clock(1.0)).compiled


def test_a_short_training_is_not_compiled():
    choice = choose_compile("auto", LONG_ENOUGH - 1, never, never)
    assert not choice.compiled
    assert "10 min are too short" in choice.why


@pytest.mark.parametrize(("gain", "compiled"), [(0.9, False), (1.0, False), (1.2, True)])
def test_a_long_one_is_where_that_is_faster(gain, compiled):
    choice = choose_compile("auto", LONG_ENOUGH, clock(1.0), clock(1 / gain))
    assert choice.compiled is compiled
    assert f"{gain:.2f} times" in choice.why


def test_compilation_and_the_first_steps_do_not_count():
    """The median of the others is 0.5; with one more of them it would be 1.25."""
    first = [60.0] * (1 + compiling.WARM_UP)
    seconds = iter([*first, 0.5, 0.5, 0.5, 2.0, 2.0])
    choice = choose_compile("auto", LONG_ENOUGH, clock(1.0), lambda: next(seconds))
    assert "2.00 times as fast" in choice.why


@pytest.mark.parametrize(("sizes", "compiled"), [(1, True), (2, True), (6, False)])
def test_every_size_of_images_has_to_repay_its_compilation(monkeypatch, sizes, compiled):
    """Compilation takes 100 s, and compiled steps save 300 s of 600."""
    now = iter([0.0, 100.0])
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    choice = choose_compile("auto", 600, clock(1.0), clock(0.5), sizes=sizes)
    assert choice.compiled is compiled


def test_no_memory_is_not_a_compiler_that_fails():
    def hungry():
        raise torch.OutOfMemoryError("CUDA out of memory")

    for option in ("auto", True):
        with pytest.raises(torch.OutOfMemoryError):
            choose_compile(option, LONG_ENOUGH, clock(1.0), hungry)


def broken():
    raise RuntimeError("no C++ compiler\nand a long trace")


def test_where_nothing_can_be_compiled():
    reason = "RuntimeError: no C++ compiler"
    choice = choose_compile("auto", LONG_ENOUGH, clock(1.0), broken)
    assert (choice.compiled, choice.why) == (False, f"cannot compile here: {reason}")
    with pytest.raises(UserError, match=r"trainer.compile=true: cannot compile .* compiler$"):
        choose_compile(True, LONG_ENOUGH, clock(1.0), broken)


@pytest.fixture
def traced(monkeypatch):
    """One entry for each forward pass that would be compiled; nothing is."""
    passes = []

    def compiled_forward(model, device, *, recorded):
        def forward(x):
            passes.append("compiled")
            return model.forward(x)

        return forward

    monkeypatch.setattr(compiling, "compiled_forward", compiled_forward)
    return passes


def test_measuring_leaves_no_trace(run, tmp_path, traced, monkeypatch):
    """Long enough, measured, and the end is that of a run without measuring."""
    monkeypatch.setattr(compiling, "LONG_ENOUGH", 0)
    run("auto", "trainer.compile=auto")
    assert len(traced) >= 1 + compiling.WARM_UP + compiling.ROUNDS
    run("false", "trainer.compile=false")
    ends = last_weights(tmp_path / "auto"), last_weights(tmp_path / "false")
    assert different(*ends) == []


def test_all_steps_and_only_those_of_the_training_are_compiled(run, traced):
    result = run("run", "trainer.compile=true", "trainer.max_epochs=2")
    assert result["compiled"] is True
    assert len(traced) == 1 + 2 * 4


def test_a_resumed_run_keeps_the_choice(run, tmp_path, traced, monkeypatch, stopped_in):
    compiled = compiling.Decision(True, "")
    monkeypatch.setattr(compiling, "choose_compile", lambda *args, **options: compiled)
    with stopped_in(1, 2):
        run("run", "trainer.compile=auto", "trainer.max_epochs=3")
    traced.clear()
    monkeypatch.setattr(compiling, "choose_compile", never)
    assert run("run", f"resume={tmp_path / 'run'}")["compiled"] is True
    assert len(traced) == 1 + 4  # the rest of the second epoch, and the third


def test_what_the_user_says_counts_when_a_run_is_resumed(run, tmp_path, traced, stopped_in):
    with stopped_in(1, 2):
        run("run", "trainer.compile=true", "trainer.max_epochs=3")
    traced.clear()
    resumed = run("run", "trainer.compile=false", f"resume={tmp_path / 'run'}")
    assert resumed["compiled"] is False
    assert traced == []


def test_a_deterministic_run_asks_no_clock(run, monkeypatch):
    monkeypatch.setattr(compiling, "LONG_ENOUGH", 0)
    monkeypatch.setattr(compiling, "choose_compile", never)
    try:
        assert run("run", "trainer.compile=auto", "trainer.deterministic=true")["compiled"] is False
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("resizing", "pixels", "sizes"),
    [((), 1.0, 1), (("recipe.initial_size=16",), (24**2 + 32**2) / 2 / 16**2, 2)],
)
def test_larger_images_to_come_are_in_the_estimate(run, monkeypatch, resizing, pixels, sizes):
    """Of 3 epochs with 4 steps a second each, after the first of which it is asked."""
    asked = []

    def choose(option, seconds, eager, compiled, *, sizes):
        asked.append((seconds, sizes))
        return compiling.Decision(False, "")

    now = itertools.count()
    monkeypatch.setattr(compiling, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setattr(compiling, "choose_compile", choose)
    run("run", "trainer.compile=auto", "trainer.max_epochs=3", *resizing)
    assert asked == [(pytest.approx(2 * 4 * pixels), sizes)]


def test_the_choice_stands_in_the_log(run, tmp_path):
    run("run", "trainer.compile=auto")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "training steps: eager (" in log
    assert "too short to repay compilation" in log


def test_compiled_steps_compute_what_eager_ones_do():
    """Of a block: a whole network takes the compiler half a minute."""
    network = create_model("mobilenet_v1", width_mult=0.125).double()
    part = network.stages[0]
    compiled = compiled_forward(part, torch.device("cpu"))
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    x = network.stem(images.to(memory_format=torch.channels_last)).detach()
    results = []
    for forward in (part, compiled):
        out = forward(x)
        results.append([out, *torch.autograd.grad(out.square().mean(), part.parameters())])
    for eager, found in zip(*results, strict=True):
        torch.testing.assert_close(found, eager)
