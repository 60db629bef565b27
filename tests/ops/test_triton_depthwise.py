"""The Triton kernels against ``F.conv2d`` in float64: in Triton's interpreter, and on a GPU where
there is one (``-m gpu``). Without a GPU they are at least compiled for two of them.
"""

import itertools
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import load_kernels_again

from dwsep_zoo.ops import triton_common, triton_depthwise
from dwsep_zoo.ops.triton_common import block_of

slow = partial(pytest.param, marks=pytest.mark.slow)
ACTIVATIONS = {
    "identity": lambda t: t,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "silu": F.silu,
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request):
    if request.param == "cuda":
        return triton_depthwise
    return request.getfixturevalue("interpreted").triton_depthwise


@pytest.fixture
def device(kernels):
    return "cuda" if kernels is triton_depthwise else "cpu"


def draw(shape, size, dtype=torch.float32, device="cpu"):
    x = torch.randn(shape, device=device).to(dtype).to(memory_format=torch.channels_last)
    return x, torch.randn(shape[1], 1, size, size, device=device).to(dtype)


def oracle(x, weight, stride, padding, grad=None, prologue=None):
    """Output and gradients of x, weight (and scale and shift), in float64."""
    inputs = [t.double().requires_grad_() for t in (x, weight, *(prologue or ())[:2])]
    t = inputs[0]
    if prologue:
        scale, shift = inputs[2:]
        t = ACTIVATIONS[prologue.act](t * scale[:, None, None] + shift[:, None, None])
    y = F.conv2d(t, inputs[1], None, stride, padding, 1, x.shape[1])
    if grad is None:
        grad = torch.randn_like(y).to(x.dtype)
    return grad, (y, *torch.autograd.grad(y, inputs, grad.double()))


def assert_rounded_once(ours, exact):
    """Float32 sums, rounded to the type of the result (the interpreter cuts bfloat16 off)."""
    dtype = ours.dtype
    rounding = 0 if dtype is torch.float32 else torch.finfo(dtype).eps / 2
    if dtype is torch.bfloat16 and not ours.is_cuda:
        rounding *= 2
    bound = rounding * exact.abs() + 2e-6 * exact.abs().max()
    worst = ((ours.double() - exact).abs() / bound).max().item()
    assert worst <= 1, f"{worst:.2f} times the bound for {dtype}"


# Channels and sizes that fill no block, windows that reach past every edge or past none. Each size
# of kernel with each stride is a quick one, and the other padding a slow one.
CASES = [  # shape, kernel, stride, padding
    ((2, 17, 7, 15), 3, 1, 1),
    slow((1, 72, 5, 7), 3, 1, 0),
    slow((2, 3, 6, 11), 3, 2, 1),
    ((1, 40, 8, 5), 3, 2, 0),
    ((1, 8, 1, 1), 3, 1, 1),
    slow((1, 1, 4, 7), 5, 1, 2),
    ((1, 8, 6, 4), 5, 1, 1),
    ((1, 40, 3, 7), 5, 2, 2),
    slow((2, 3, 8, 7), 5, 2, 1),
    ((1, 17, 4, 7), 7, 1, 3),
    slow((1, 8, 7, 8), 7, 2, 3),
    ((1, 1, 9, 7), 7, 2, 0),
]


@pytest.mark.parametrize(("shape", "size", "stride", "padding"), CASES)
def test_equals_conv2d(kernels, device, shape, size, stride, padding):
    x, weight = draw(shape, size, device=device)
    grad, exact = oracle(x, weight, stride, padding)
    assert kernels.covered(x, weight, stride, padding) is None

    y = kernels.forward(x, weight, stride, padding)
    gradients = kernels.backward(grad, x, weight, stride, padding)

    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradients.x.is_contiguous(memory_format=torch.channels_last)
    for ours, want in zip((y, *gradients[:2]), exact, strict=True):
        assert ours.shape == want.shape
        assert_rounded_once(ours, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stride", [1, 2])
def test_half_precision_is_rounded_once(kernels, device, dtype, stride):
    x, weight = draw((1, 24, 6, 7), 3, dtype, device)
    grad, exact = oracle(x, weight, stride, 1)
    y = kernels.forward(x, weight, stride, 1)
    gradients = kernels.backward(grad, x, weight, stride, 1)
    for ours, want in zip((y, *gradients[:2]), exact, strict=True):
        assert ours.dtype is dtype
        assert_rounded_once(ours, want)


def test_a_float32_weight_stays_float32(kernels, device):
    x, weight = draw((1, 8, 5, 6), 3, torch.bfloat16, device)
    weight = weight.float() + 1e-4  # not a bfloat16
    grad, (y, _, grad_weight) = oracle(x, weight, 1, 1)
    assert_rounded_once(kernels.forward(x, weight, 1, 1), y)
    ours = kernels.backward(grad, x, weight, 1, 1, (False, True)).weight
    assert ours.dtype is torch.float32
    assert_rounded_once(ours, grad_weight)


def draw_prologue(kernels, chans, act, device):
    scale, shift = 3 * torch.randn(2, chans, device=device)  # reaches all pieces of the activations
    return kernels.Prologue(scale, shift, act)


@pytest.mark.parametrize(("act", "stride"), [*zip(ACTIVATIONS, (2, 1, 2, 1, 2), strict=True)])
def test_prologue(kernels, device, act, stride):
    shape, size, padding = (2, 5, 4, 7), 3, 1
    x, weight = draw(shape, size, device=device)
    prologue = draw_prologue(kernels, 5, act, device)
    grad, exact = oracle(x, weight, stride, padding, prologue=prologue)
    y = kernels.forward(x, weight, stride, padding, prologue)
    gradients = kernels.backward(grad, x, weight, stride, padding, prologue=prologue)
    for ours, want in zip((y, *gradients), exact, strict=True):
        assert_rounded_once(ours, want)


def test_prologue_names(kernels, device):
    assert set(kernels.ACTIVATIONS) == set(ACTIVATIONS)
    x, weight = draw((1, 5, 4, 4), 3, device=device)
    with pytest.raises(ValueError, match=r"'gelu'; choices: identity, relu"):
        kernels.forward(x, weight, 1, 1, draw_prologue(kernels, 5, "gelu", device))


def test_batch_norm_backward_follows_from_the_sums(kernels, device):
    """Scale and shift from the batch's own statistics, differentiated through."""
    x, weight = draw((2, 4, 5, 4), 3, device=device)
    gamma, beta = torch.randn(2, 4, device=device)

    def scale_and_shift(x):
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scale = gamma.to(x.dtype) * (var + 1e-5).rsqrt()
        return scale, beta.to(x.dtype) - mean * scale

    x64 = x.double().requires_grad_()
    normed = F.batch_norm(x64, None, None, gamma.double(), beta.double(), True, 0, 1e-5)
    y = F.conv2d(F.relu(normed), weight.double(), None, 1, 1, 1, 4)
    grad = torch.randn_like(y).float()
    want = torch.autograd.grad(y, x64, grad.double())[0]

    leaf = x.clone().requires_grad_()
    scale, shift = scale_and_shift(leaf)
    ours = kernels.backward(grad, x, weight, 1, 1, prologue=kernels.Prologue(scale, shift, "relu"))
    through = torch.autograd.grad((scale, shift), leaf, (ours.scale, ours.shift))[0]
    torch.testing.assert_close((ours.x + through).double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_stays_nan(kernels, device, act):
    x, weight = draw((1, 3, 4, 4), 3, device=device)
    x[0, 1, 0, 0] = torch.nan
    y = kernels.forward(x, weight, 1, 1, draw_prologue(kernels, 3, act, device))
    assert y[0, 1, :2, :2].isnan().all()
    assert y.isnan().sum() == 4


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_needed(kernels, device, mask, prologue):
    x, weight = draw((1, 5, 4, 6), 3, device=device)
    grad = torch.randn_like(x)
    prologue = draw_prologue(kernels, 5, "relu", device) if prologue else None
    every = kernels.backward(grad, x, weight, 1, 1, prologue=prologue)
    some = kernels.backward(grad, x, weight, 1, 1, mask, prologue)
    need_x, need_weight = mask
    for ours, same, need in zip(some, every, (need_x, need_weight, need_x, need_x), strict=True):
        if need and same is not None:
            assert torch.equal(ours, same)
        else:
            assert ours is None


def test_a_gradient_of_any_layout(kernels, device):
    x, weight = draw((1, 5, 4, 6), 3, device=device)
    like_mean = torch.full((), 0.1, device=device).expand(x.shape)
    _, exact = oracle(x, weight, 1, 1, like_mean)
    assert_rounded_once(kernels.backward(like_mean, x, weight, 1, 1).x, exact[1])


@pytest.mark.parametrize("programs", [1, 2, 2048])
def test_same_bits_on_every_run(kernels, device, programs, monkeypatch):
    """Whether a program walks over all tiles or each tile has its own."""
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    x, weight = draw((3, 17, 4, 7), 3, device=device)
    grad, exact = oracle(x, weight, 1, 1)
    first, second = (kernels.backward(grad, x, weight, 1, 1) for _ in range(2))
    for a, b, want in zip(first[:2], second[:2], exact[1:], strict=True):
        assert torch.equal(a, b)
        assert_rounded_once(a, want)


def test_tiles_change_no_bit_of_the_output_and_the_input_gradient(kernels, device):
    x, weight = draw((1, 17, 5, 6), 3, device=device)
    grad = torch.randn_like(x)
    tiles = [kernels.Tile(1, 2, 16, 1, 2), kernels.Tile(4, 8, 32, 2)]
    outputs = [kernels.forward(x, weight, 1, 1, tile=tile) for tile in tiles]
    grads = [kernels.backward(grad, x, weight, 1, 1, tile=tile).x for tile in tiles]
    assert torch.equal(*outputs)
    assert torch.equal(*grads)


@pytest.mark.parametrize("programs", [1, 255, 257, 1000])
def test_partial_sums(kernels, device, programs):
    """Of 9 taps and of scale and shift, for 17 channels."""
    partial = torch.randn(programs, 11, 17, device=device)
    grad_weight = torch.empty(17, 1, 3, 3, device=device)
    grad_prologue = torch.empty(2, 17, device=device)
    kernels._sum_kernel[(11, 2)](
        partial,
        grad_weight,
        grad_prologue,
        programs,
        17,
        TAPS=9,
        SUMS=2,
        PROGRAMS=kernels.SUM_PROGRAMS,
        CHANS=kernels.SUM_CHANS,
        enable_fp_fusion=True,
    )
    exact = partial.double().sum(0)
    assert_rounded_once(grad_weight.flatten(1).t(), exact[:9])
    assert_rounded_once(grad_prologue, exact[9:])


def in_place_of(t):
    """On the GPU, with the same strides, which ``cuda()`` may change."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda").copy_(t)


X = torch.zeros(1, 8, 6, 6).to(memory_format=torch.channels_last)
W = torch.zeros(8, 1, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((X.double(), W, 1, 1), "float64"),
        ((X, W.double(), 1, 1), "float64"),
        ((X.contiguous(), W, 1, 1), "not channels_last"),
        ((X, torch.zeros(16, 1, 3, 3), 1, 1), "not one filter for each of 8 channels"),
        ((X, torch.zeros(8, 2, 3, 3), 1, 1), "not one filter for each of 8 channels"),
        ((X, torch.zeros(8, 1, 1, 1), 1, 0), "kernel of 1 x 1"),
        ((X, torch.zeros(8, 1, 3, 5), 1, 1), "kernel of 3 x 5"),
        ((X, W, 3, 1), "stride 3"),
        ((X, W, 1, 2), "padding 2"),
        ((X[0], W, 1, 1), "3 and weight of 4 dimensions"),
        ((X[:0], W, 1, 1), "empty output"),
        ((X[..., :4], W, 1, 0), "not channels_last"),
        ((X, torch.zeros(8, 1, 7, 7), 1, 0), "empty output"),
        ((X, W.to("meta"), 1, 1), "weight on meta"),
    ],
)
def test_what_is_not_covered_is_said(kernels, device, arguments, reason):
    if device == "cuda":
        x, weight = (in_place_of(t) if t.device.type == "cpu" else t for t in arguments[:2])
        arguments = (x, weight, *arguments[2:])
    assert reason in kernels.covered(*arguments)


def test_images_of_too_many_values_are_not_covered(kernels, device, monkeypatch):
    x, weight = draw((1, 8, 6, 6), 3, device=device)
    monkeypatch.setattr(kernels, "LONGEST_IMAGE", 8 * 6 * 6)
    assert "images of 2**31 values" in kernels.covered(x, weight, 1, 1)


def test_without_triton_the_module_imports_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    module = load_kernels_again(monkeypatch).triton_depthwise
    assert module.unavailable() == "Triton is not installed"
    assert module.covered(X, W, 1, 1) == "Triton is not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_that_cannot_be_compiled_cover_nothing(monkeypatch):
    """Here as there is no GPU after all."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    triton_common._failure.cache_clear()
    try:
        assert re.match("Triton cannot compile its kernels: .+", triton_common.unavailable())
    finally:
        triton_common._failure.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_covered():
    pytest.importorskip("triton")
    assert triton_depthwise.covered(X, W, 1, 1) == "there is no CUDA device"


@pytest.mark.parametrize(
    ("length", "least", "most", "block"),
    [
        (112, 1, 16, 16),
        (14, 1, 16, 16),
        (7, 1, 16, 8),
        (1, 1, 8, 1),
        (144, 16, 64, 32),
        (3, 16, 64, 16),
    ],
)
def test_blocks_leave_little_idle(length, least, most, block):
    assert block_of(length, least, most) == block


# --- compiled, not run ---


def compile_for(capability, kernel, constants, warps, dtype="bf16"):
    """The compiled kernel, and bytes of registers that went to memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    halves = {"x", "y", "grad", "grad_x"}
    floats = {"weight", "scale", "shift", "partial", "grad_weight", "grad_prologue"}
    types = dict.fromkeys(halves, f"*{dtype}") | dict.fromkeys(floats, "*fp32")
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    return compiled


def constants_of(size, stride, act, tile):
    return {
        **({} if act else {"scale": None, "shift": None}),
        "SIZE": size,
        "STRIDE": stride,
        "PADDING": size // 2,
        "ACT": act,
        "VECTOR": 16,
        "ROWS": tile.rows,
        "STRIPS": tile.strips,
        "CHANS": tile.chans,
    }


def stack_bytes(compiled, tmp_path):
    """Local memory of a thread, which registers that do not fit spill to."""
    from triton import knobs

    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", tmp_path / "kernel.cubin"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", text).group(1))


SPECIALISATIONS = [
    pytest.param(
        capability,
        size,
        stride,
        act,
        marks=() if (capability, size, act) == (90, 3, None) else pytest.mark.slow,
    )
    for capability, size, stride, act in [
        *itertools.product((80, 90), (3, 5, 7), (1, 2), (None,)),
        *itertools.product((90,), (3, 5), (1, 2), ACTIVATIONS),
    ]
]


@pytest.mark.parametrize(("capability", "size", "stride", "act"), SPECIALISATIONS)
def test_compiles_to_wide_loads_without_spills(
    capability, size, stride, act, tmp_path, monkeypatch
):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    tile = triton_depthwise.forward_tile(128, 64, 56, 56, size, stride)
    constants = constants_of(size, stride, act, tile)
    compiled = compile_for(capability, triton_depthwise._forward_kernel, constants, tile.warps)
    assert re.search(r"ld\.global\S*\.v[24]\.b32", compiled.asm["ptx"])
    assert "fma.rn.f32" in compiled.asm["ptx"]
    assert "cvt.rn.bf16" in compiled.asm["ptx"]
    few = 32 if act else 0  # a prologue may spill eight registers, which does no harm
    assert stack_bytes(compiled, tmp_path) <= few

    tile = triton_depthwise.backward_tile(128, 64, 56, 56, size, stride)
    constants = constants_of(size, stride, act, tile) | {"NEED_X": True, "NEED_WEIGHT": True}
    compiled = compile_for(capability, triton_depthwise._backward_kernel, constants, tile.warps)
    assert "atom" not in compiled.asm["ptx"]
    assert stack_bytes(compiled, tmp_path) <= few


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("mask", [(True, False), (False, True)])
def test_compiles_for_other_types_and_masks(dtype, mask, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    tile = triton_depthwise.backward_tile(128, 24, 7, 7, 3, 2)
    constants = constants_of(3, 2, "silu", tile)
    constants |= {"VECTOR": 8, "NEED_X": mask[0], "NEED_WEIGHT": mask[1]}
    kernel = triton_depthwise._backward_kernel
    if not mask[0]:
        constants["grad_x"] = None
    assert compile_for(80, kernel, constants, tile.warps, dtype).asm["cubin"]
    sums = {"TAPS": 9, "SUMS": 2, "PROGRAMS": 256, "CHANS": 16}
    assert compile_for(80, triton_depthwise._sum_kernel, sums, 8).asm["cubin"]
