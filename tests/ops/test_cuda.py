"""The choice among kernels on a GPU, without one: ways and clock are the test's."""

import os
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
import torch

from dwsep_zoo.ops import cpu, cuda
from dwsep_zoo.ops.kept import Kept, file_name

X = torch.zeros(1, 8, 6, 6).to(memory_format=torch.channels_last)
W = torch.zeros(8, 1, 3, 3)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(cuda, "choices", {})
    monkeypatch.setattr(cuda, "kept", lambda: Kept(None))
    monkeypatch.setattr(cuda, "fallbacks", Counter())
    cuda._warn.cache_clear()


@pytest.fixture
def ways(monkeypatch):
    """Sets the ways, which give their names, and what is left out of them."""

    def use(*names, left_out=()):
        made = {name: lambda *args, name=name: name for name in names}
        monkeypatch.setattr(cuda, "FORWARD", made)
        monkeypatch.setattr(cuda, "_left_out", lambda *shape: dict(left_out))
        return made

    return use


@pytest.fixture
def seconds(monkeypatch):
    """Sets what each way takes; gives the list of what is timed."""

    def take(**times):
        timed = []
        monkeypatch.setattr(cuda, "_seconds", lambda run: timed.append(run()) or times[timed[-1]])
        return timed

    return take


def forward(size=6):
    return cuda.forward(X[..., :size], W, 1, 1)


def test_the_fastest_is_timed_once_and_kept(ways, seconds):
    ways(cuda.OWN, "native", "triton")
    timed = seconds(**{cuda.OWN: 3.0, "native": 2.0, "triton": 1.0})
    assert [forward() for _ in range(3)] == ["triton"] * 3
    assert len(timed) == 3 * cuda.TRIALS
    assert list(cuda.choices.values()) == [cuda.Choice("triton")]
    assert not cuda.fallbacks
    ways(cuda.OWN, "native", "triton", left_out={"triton": "it is Tuesday"})
    assert [forward(), forward(5), forward(5)] == ["triton", "native", "native"]
    assert cuda.fallbacks == {"forward: it is Tuesday": 2}  # every use, not every shape


def test_a_single_way_is_not_timed(ways):
    ways(cuda.OWN, "native", "triton", left_out={"native": "NCHW", "triton": "9 x 9"})
    assert [forward(), forward()] == [cuda.OWN] * 2
    assert cuda.fallbacks == {"forward: 9 x 9": 2}


def test_what_is_left_out_is_asked_once_for_a_shape(ways, seconds, monkeypatch):
    ways(cuda.OWN, "triton")
    seconds(**{cuda.OWN: 2.0, "triton": 1.0})
    forward()
    monkeypatch.setattr(cuda, "_left_out", None)
    assert forward() == "triton"


def test_nothing_is_timed_in_a_capture_or_where_results_may_not_depend_on_a_clock(
    ways, seconds, monkeypatch
):
    ways(cuda.OWN, "triton")
    timed = seconds(**{cuda.OWN: 2.0, "triton": 1.0})
    monkeypatch.setattr(cuda, "_is_capturing", lambda: True)
    assert forward() == cuda.OWN
    monkeypatch.setattr(cuda, "_is_capturing", lambda: False)
    torch.use_deterministic_algorithms(True)
    try:
        assert forward() == cuda.OWN
    finally:
        torch.use_deterministic_algorithms(False)
    assert sorted(reason.split()[1] for reason in cuda.fallbacks) == ["deterministic", "first"]
    assert not cuda.choices
    assert not timed
    assert forward() == "triton"


def test_a_kernel_that_cannot_be_built_drops_out(ways, seconds, caplog):
    made = ways(cuda.OWN, "native", "triton")
    seconds(**{cuda.OWN: 3.0, "native": 2.0, "triton": 1.0})

    def build(*args):
        raise RuntimeError("Failed to find C compiler.\nPlease ...")

    made["triton"] = build
    assert [forward(6), forward(6), forward(5)] == ["native"] * 3
    reason = "RuntimeError: Failed to find C compiler."
    assert cuda.fallbacks == {f"forward: {reason}": 3}
    assert [record.getMessage() for record in caplog.records] == [
        f"depthwise convolutions do without the triton kernel here: {reason}"
    ]


@pytest.fixture
def new_process(monkeypatch, tmp_path):
    """Forgets the choices as a new process does; gives the file that keeps them."""

    def start():
        kept = Kept(tmp_path / "kernels.json")
        monkeypatch.setattr(cuda, "choices", {})
        monkeypatch.setattr(cuda, "kept", lambda: kept)
        return kept.path

    return start


def test_a_later_process_takes_the_choices_of_an_earlier_one(
    ways, seconds, new_process, monkeypatch, caplog
):
    caplog.set_level("INFO")
    ways(cuda.OWN, "native", "triton")
    times = {cuda.OWN: 3.0, "native": 1.0, "triton": 2.0}
    timed = seconds(**times)
    file = new_process()
    assert [forward(6), forward(5)] == ["native"] * 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(file) in line
    new_process()
    timed.clear()
    monkeypatch.setattr(cuda, "_is_capturing", lambda: True)  # nothing has to be timed
    assert [forward(6), forward(5)] == ["native"] * 2
    monkeypatch.setattr(cuda, "_is_capturing", lambda: False)
    assert (timed, len(caplog.records)) == ([], 1)
    assert forward(4) == "native"
    assert timed
    new_process()
    torch.use_deterministic_algorithms(True)
    try:
        assert forward(6) == cuda.OWN
    finally:
        torch.use_deterministic_algorithms(False)
    # A choice that could not be made among all of them is not for others, nor theirs for it.
    ways(cuda.OWN, "native", "triton", left_out={"triton": "no compiler"})
    seconds(**{**times, cuda.OWN: 0.5})
    new_process()
    assert forward(6) == forward(3) == cuda.OWN
    ways(cuda.OWN, "native", "triton")
    seconds(**times)
    new_process()
    assert [forward(6), forward(3)] == ["native"] * 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff\xfe", None])
def test_a_damaged_file_of_choices_is_written_anew(ways, seconds, new_process, content):
    ways(cuda.OWN, "triton")
    seconds(**{cuda.OWN: 2.0, "triton": 1.0})
    file = new_process()
    forward()
    whole = file.read_bytes()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    new_process()
    assert forward() == "triton"
    assert file.read_bytes() == whole


def test_choices_of_processes_at_once_are_all_kept(tmp_path):
    file = tmp_path / "kernels.json"
    one, other = Kept(file), Kept(file)
    one.add(("forward", torch.Size([1, 2])), "native")
    other.add(("forward", torch.Size([1, 3])), "triton")
    assert Kept(file).names == {**one.names, **other.names}
    unwritable = Kept(tmp_path / "absent" / "kernels.json")
    unwritable.add("key", "native")
    assert unwritable.get("key") == "native"


def test_other_machines_have_other_files():
    machine = ["H200", "driver 580", "13.0", "2.15", "3.9"]
    names = {file_name([*machine[:i], "other", *machine[i + 1 :]]) for i in range(len(machine))}
    assert len(names | {file_name(machine)}) == len(machine) + 1


def test_an_error_of_pytorchs_own_kernel_is_an_error(ways, seconds):
    ways(cuda.OWN, "triton")[cuda.OWN] = lambda *args: 1 / 0
    seconds(triton=1.0)
    with pytest.raises(ZeroDivisionError):
        forward()


class Gpu:
    """A host that queues kernels, and a GPU that runs them one after the other; in seconds."""

    def __init__(self):
        self.host = self.idle_from = 0.0

    def call(self, on_host, on_gpu):
        self.host += on_host
        self.idle_from = max(self.idle_from, self.host) + on_gpu

    def install(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(gpu.idle_from, gpu.host)

            def synchronize(self):
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(cuda, "perf_counter", lambda: gpu.host)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(
            torch.cuda, "_sleep", lambda cycles: gpu.call(0.0, cycles / cuda.GPU_HZ)
        )


@pytest.mark.parametrize("queued", [0.0, 1.0])
@pytest.mark.parametrize("on_host", [1e-6, 60e-6])
@pytest.mark.parametrize("on_gpu", [3e-6, 2e-3])
def test_the_clock_is_that_of_the_gpu_and_not_of_the_host(monkeypatch, on_host, on_gpu, queued):
    gpu = Gpu()
    gpu.install(monkeypatch)
    gpu.call(0.0, queued)
    assert cuda._seconds(lambda: gpu.call(on_host, on_gpu)) == pytest.approx(on_gpu, rel=1e-3)


def test_the_native_kernel_is_pytorchs_without_cudnn(monkeypatch):
    seen = []
    monkeypatch.setattr(
        cpu,
        "aten_forward",
        lambda x, *rest: seen.append((torch.backends.cudnn.enabled, x.is_contiguous())) or x,
    )
    before = torch.backends.cudnn.enabled
    y = cuda._native_forward(X, W, 1, 1)
    assert seen == [(False, True)]
    assert torch.backends.cudnn.enabled == before
    assert y.is_contiguous(memory_format=torch.channels_last)


# Triton's interpreter is chosen as its kernels are imported: in a process of its own.
PROGRAM = """
import torch, torch.nn.functional as F
from dwsep_zoo.ops import cuda

def slow_is_ours(run):
    return 0.0 if "triton" in run.func.__name__ else 1.0

cuda._seconds = slow_is_ours
torch.manual_seed(0)
for size, stride in ((3, 1), (5, 2)):
    x = torch.randn(1, 8, 6, 7).to(memory_format=torch.channels_last)
    w = torch.randn(8, 1, size, size)
    x64, w64 = (t.double().requires_grad_() for t in (x, w))
    y64 = F.conv2d(x64, w64, None, stride, size // 2, 1, 8)
    g = torch.randn_like(y64).float()
    want = torch.autograd.grad(y64, (x64, w64), g.double())
    y = cuda.forward(x, w, stride, size // 2)
    got = cuda.backward(g, x, w, stride, size // 2, (True, True))
    for ours, oracle in zip((y, *got), (y64, *want)):
        assert (ours - oracle).abs().max() < 1e-5, (size, stride)
assert {choice.way for choice in cuda.choices.values()} == {"triton"}, cuda.choices
assert len(cuda.choices) == 4
x = torch.randn(1, 8, 6, 7)
assert torch.equal(cuda.forward(x, torch.ones(8, 1, 9, 9), 1, 4),
                   F.conv2d(x, torch.ones(8, 1, 9, 9), None, 1, 4, 1, 8))
assert cuda.fallbacks == {"forward: kernel of 9 x 9": 1}, cuda.fallbacks
"""


def test_our_kernels_take_part_and_what_they_do_not_cover_is_counted():
    pytest.importorskip("triton", minversion="3.9")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_on_a_gpu(size, stride):
    from dwsep_zoo.ops import depthwise_conv2d

    x = torch.randn(4, 32, 14, 15, device="cuda").to(memory_format=torch.channels_last)
    w = torch.randn(32, 1, size, size, device="cuda", requires_grad=True)
    x.requires_grad_()
    y = depthwise_conv2d(x, w, stride, size // 2)
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, w))
    y64 = torch.nn.functional.conv2d(x64, w64, None, stride, size // 2, 1, 32)
    g = torch.randn_like(y)
    got, want = torch.autograd.grad(y, (x, w), g), torch.autograd.grad(y64, (x64, w64), g.double())
    for ours, oracle in zip((y, *got), (y64, *want), strict=True):
        assert (ours - oracle).abs().max() < 1e-2 * oracle.abs().max()
