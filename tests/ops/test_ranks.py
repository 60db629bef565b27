"""Batch norms over several processes: what one process computes with the whole batch."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from dwsep_zoo import accelerate
from dwsep_zoo.acceleration import explain
from dwsep_zoo.nn.synced import separate, synchronise
from dwsep_zoo.ops import native

SIZES = {2: (5, 2), 3: (5, 1, 3)}  # images of each rank; one has no variance of its own
FUSED = {"all ranks": {0, 1, 2}, "one rank": {0}, "no rank": set()}
"""Ranks with kernels. A rank may have no compiler."""
OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"affine": False},
    {"track_running_stats": False},
]
SHAPES = [(3, 6, 5), (3,), (3, 7)]


def network():
    """All fusions of the kernels, and a norm of one value an image."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.SiLU()),
        *(nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.Hardswish()),
        *(nn.Conv2d(24, 40, 1, bias=False), nn.BatchNorm2d(40), nn.SiLU()),
        *(nn.Conv2d(40, 40, 3, 1, 1, groups=40, bias=False), nn.Conv2d(40, 16, 1, bias=False)),
        *(nn.BatchNorm2d(16), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.BatchNorm1d(16),
    )
    return net.to(memory_format=torch.channels_last)


def images(world, dtype):
    """The whole batch, whose mean differs from rank to rank, and the gradient of its output."""
    g = torch.Generator().manual_seed(1)
    count = sum(SIZES[world])
    x = torch.randn(count, 16, 8, 8, generator=g) * 3 + torch.arange(count)[:, None, None, None]
    x = x.to(memory_format=torch.channels_last)
    return x.to(dtype), torch.randn(count, 16, generator=g).to(dtype)


def step(net, x, grad):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = net(x)
    (y * grad).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {"y": y.detach(), "x": x.grad, "grads": grads, "state": net.state_dict()}


def norm_like(shape, options):
    torch.manual_seed(2)
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    norm = kind(shape[0], **options).double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    return norm


def values(world, shape):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(sum(SIZES[world]), *shape, dtype=torch.float64, generator=g) * 2 + 1000
    return x, torch.randn(x.shape, dtype=torch.float64, generator=g)


def shares(rank, world, *tensors):
    return [tensor.split(SIZES[world])[rank] for tensor in tensors]


def work_on_a_gpu(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for shape in SHAPES:
        norm = norm_like(shape, {}).to("cuda", torch.float32)
        synchronise([norm])
        own = [t.to("cuda", torch.float32) for t in shares(rank, 2, *values(2, shape))]
        torch.save(step(norm, *own), folder / f"{len(shape)}-{rank}.pt")
    dist.barrier()


def work(rank, folder):
    """What a rank computes: with three processes, then with two, of which one leaves the other."""
    torch.set_num_threads(1)
    for world in (3, 2):
        if rank >= world:
            return
        store = f"file://{folder}/store{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        found = {}
        for name, ranks in FUSED.items():
            net = network()
            synchronise(net.modules())
            x, grad = shares(rank, world, *images(world, torch.float32))
            if rank in ranks:
                accelerate(net)
                found[name, "fused"] = explain(net, x).fused
            else:
                for _ in range(3 if ranks else 0):
                    with torch.no_grad():  # explain() computes the network, too
                        copy.deepcopy(net)(x)
            found[name] = step(net, x, grad)
        for i, options in enumerate(OPTIONS):
            for shape in SHAPES:
                norm = norm_like(shape, options)
                synchronise([norm])
                found[i, shape] = step(norm, *shares(rank, world, *values(world, shape)))
        torch.save(found, folder / f"{world}-{rank}.pt")
        dist.barrier()
        if world == 3:
            dist.destroy_process_group()
    if rank == 0:
        net = accelerate(net)
        try:
            for _ in range(1000):
                step(net, x, grad)
        except RuntimeError as error:
            (folder / "error").write_text(str(error))
        os._exit(0)  # Gloo's threads can abort a process that ends with a broken group


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    native.native()  # compiled once
    torch.multiprocessing.spawn(work, (folder,), nprocs=3)
    results = {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in SIZES
    }
    return {**results, "error": (folder / "error").read_text()}


def compare(ranks, whole, world, **tolerance):
    for name in ("y", "x"):
        mine = torch.cat([rank[name] for rank in ranks])
        torch.testing.assert_close(mine, whole[name], check_dtype=False, msg=name, **tolerance)
    for name, grad in whole["grads"].items():
        mine = sum(rank["grads"][name] for rank in ranks)
        torch.testing.assert_close(mine, grad, check_dtype=False, msg=name, **tolerance)
    for rank in ranks:
        assert rank["state"].keys() == whole["state"].keys()
        for name, value in whole["state"].items():
            mine = rank["state"][name]
            torch.testing.assert_close(mine, value, check_dtype=False, msg=name, **tolerance)


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("world", SIZES)
def test_ranks_compute_what_one_process_computes(found, world, fused):
    if native.native().library is None and FUSED[fused]:
        pytest.skip(native.native().why)
    whole = step(network().double(), *images(world, torch.float64))
    compare([rank[fused] for rank in found[world]], whole, world, rtol=1e-4, atol=2e-5)
    both = ("1", "2", "3", "4", "5")  # norm, depthwise convolution, norm
    for rank in FUSED[fused] & {*range(world)}:
        fusions = found[world][rank][fused, "fused"]
        assert (both in fusions) == (SIZES[world][rank] > 1)
        assert {"1", "4", "7", "11"} <= {name for names in fusions for name in names}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", range(len(OPTIONS)))
@pytest.mark.parametrize("world", SIZES)
def test_a_norm_of_pytorch_operators(found, world, options, shape):
    whole = step(norm_like(shape, OPTIONS[options]), *values(world, shape))
    compare([rank[options, shape] for rank in found[world]], whole, world, rtol=1e-8, atol=1e-8)


@pytest.mark.gpu
def test_ranks_on_a_gpu(tmp_path):
    torch.multiprocessing.spawn(work_on_a_gpu, (tmp_path,), nprocs=2)
    for shape in SHAPES:
        files = [tmp_path / f"{len(shape)}-{rank}.pt" for rank in range(2)]
        ranks = [torch.load(file, map_location="cpu") for file in files]
        whole = step(norm_like(shape, {}), *values(2, shape))
        compare(ranks, whole, 2, rtol=1e-3, atol=1e-3)


def test_the_loss_of_a_rank_is_an_error(found):
    assert "peer" in found["error"]


@pytest.fixture(params=["no group", "one rank"])
def alone(request, tmp_path):
    if request.param == "no group":
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("options", OPTIONS)
def test_one_process_computes_what_it_did(alone, options):
    x, grad = values(2, (24, 4, 4))
    for dtype in (torch.float32, torch.float64):
        norms = [norm_like((24, 4, 4), options).to(dtype) for _ in range(2)]
        synchronise([norms[1]])
        before, after = (step(norm, x.to(dtype), grad.to(dtype)) for norm in norms)
        assert torch.equal(before["y"], after["y"])
        assert torch.equal(before["x"], after["x"])
        for kind in ("grads", "state"):
            assert all(torch.equal(t, after[kind][name]) for name, t in before[kind].items())
        assert torch.equal(norms[0].eval()(x.to(dtype)), norms[1].eval()(x.to(dtype)))


def test_kernels_of_one_process_compute_what_they_did(alone):
    nets = [accelerate(network()) for _ in range(2)]
    synchronise(nets[1].modules())
    before, after = (step(net, *images(2, torch.float32)) for net in nets)
    assert torch.equal(before["x"], after["x"])
    assert all(torch.equal(t, after["state"][name]) for name, t in before["state"].items())


def test_a_converted_network_is_the_same():
    net = network()
    net[1].register_forward_hook(lambda *_: None)
    kinds, attributes = ([f(m) for m in net.modules()] for f in (type, lambda m: dict(vars(m))))
    changed = synchronise(net.modules())
    assert [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == changed
    assert all(isinstance(copy.deepcopy(norm), type(norm).__mro__[2]) for norm in changed)
    assert synchronise(net.modules()) == []
    assert separate(net.modules()) == changed
    assert [type(m) for m in net.modules()] == kinds
    assert [vars(m) for m in net.modules()] == attributes
