"""Policies of augmentation: those of batches against Pillow's, timm's and torchvision's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from data_helpers import batches, load_data
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from dwsep_zoo.data.distort import Op, distort
from dwsep_zoo.data.effects import draw_boxes, erase
from dwsep_zoo.data.policies import TORCHVISIONS, check_policy, picture_policy, table
from dwsep_zoo.data.policy_tables import SCALE
from dwsep_zoo.errors import UserError

FILL = (120, 110, 100)
BILINEAR = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
PILLOWS = {
    Op.IDENTITY: lambda image, s: image,
    Op.SHEAR_X: lambda image, s: timm.shear_x(image, s, **BILINEAR),
    Op.SHEAR_Y: lambda image, s: timm.shear_y(image, s, **BILINEAR),
    Op.TRANSLATE_X: lambda image, s: timm.translate_x_abs(image, s, **BILINEAR),
    Op.TRANSLATE_Y: lambda image, s: timm.translate_y_abs(image, s, **BILINEAR),
    Op.ROTATE: lambda image, s: timm.rotate(image, s, **BILINEAR),
    Op.BRIGHTNESS: timm.brightness,
    Op.CONTRAST: timm.contrast,
    Op.POSTERIZE: lambda image, s: timm.posterize(image, int(s)),
    Op.SOLARIZE: timm.solarize,
    Op.SOLARIZE_ADD: lambda image, s: timm.solarize_add(image, int(s)),
    Op.INVERT: lambda image, s: timm.invert(image),
    Op.AUTO_CONTRAST: lambda image, s: timm.auto_contrast(image),
    Op.EQUALIZE: lambda image, s: timm.equalize(image),
    Op.COLOR: timm.color,
    Op.SHARPNESS: timm.sharpness,
}
STRENGTHS = {
    **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), (-0.99, -0.27, 0.0, 0.1, 0.3)),
    **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), (-40.0, -9.6, 3.0, 0.0, 12.5)),
    Op.ROTATE: (-135.0, -20.0, 0.0, 3.5, 30.0),
    **dict.fromkeys(
        (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS), (0.0, 0.1, 0.75, 1.0, 1.9)
    ),
    Op.POSTERIZE: (1.0, 2.0, 4.0, 7.0, 8.0),
    Op.SOLARIZE: (0.0, 25.5, 128.0, 255.0, 256.0),
    Op.SOLARIZE_ADD: (0.0, 20.0, 64.0, 110.0, 127.0),
}


def _photos(side: int = 24) -> torch.Tensor:
    """Smooth, noisy, dark and flat images, as photographs are and as they are not."""
    x = torch.linspace(0, 1, side)
    smooth = torch.stack([x[:, None] * x, x[:, None].expand(side, side), 1 - x[:, None] * x * 0.5])
    noise = torch.rand(3, side, side)
    dark = 0.2 + 0.3 * noise * smooth
    two = (noise > 0.5).float() * 0.4 + 0.3
    images = torch.stack([smooth, noise, dark, two, torch.full_like(noise, 0.4)])
    return (images * 255).byte()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_operations_are_pillows(op, whole):
    """Within one grey value, apart from pixels at the edge of what is moved in."""
    images = _photos().repeat_interleave(5, 0)
    strengths = torch.tensor(STRENGTHS.get(op, (0.0,) * 5)).repeat(5)
    result = distort(images, torch.full((25,), int(op)), strengths, FILL, whole=whole)
    assert result.dtype == torch.uint8
    for image, strength, got in zip(images, strengths.tolist(), result, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(PILLOWS[op](picture, strength)).astype(int).transpose(2, 0, 1)
        apart = np.abs(got.numpy().astype(int) - expected).max(0) > 1
        assert apart.mean() <= (0.01 if op == Op.ROTATE else 0), strength


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_batch_do_not_meet(channels):
    """Each with its own operation, as if it were alone; both ways to compute it agree."""
    images = torch.randint(0, 256, (len(Op) * 5, channels, 9, 9), dtype=torch.uint8)
    ops = torch.arange(len(Op)).repeat_interleave(5)
    strengths = torch.tensor([s for op in Op for s in STRENGTHS.get(op, (0.0,) * 5)])
    fill = FILL[:channels]
    batch = distort(images, ops, strengths, fill, whole=False)
    assert torch.equal(batch, distort(images, ops, strengths, fill, whole=True))
    one = [slice(i, i + 1) for i in range(len(images))]
    alone = [distort(images[i], ops[i], strengths[i], fill, whole=False) for i in one]
    assert torch.equal(batch, torch.cat(alone))
    assert not torch.equal(batch, images)


def test_shears_and_turns_are_torchvisions():
    """The other library's signs are those of the other direction."""
    image = _photos()[:1]
    picture = TF.to_pil_image(image[0])
    options = {"interpolation": InterpolationMode.BILINEAR, "fill": list(FILL)}
    plain = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **options}
    angle = float(np.degrees(np.arctan(0.3)))
    for op, strength, expected in (
        (Op.ROTATE, 30.0, TF.rotate(picture, 30.0, **options)),
        (Op.TRANSLATE_X, -7.0, TF.affine(picture, **{**plain, "translate": [7, 0]})),
        (Op.SHEAR_X, 0.3, TF.affine(picture, **{**plain, "shear": [angle, 0.0]}, center=[0, 0])),
    ):
        got = distort(image, torch.tensor([int(op)]), torch.tensor([strength]), FILL, whole=False)
        apart = np.abs(got[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)) > 2
        assert apart.mean() < 0.03, op


NAMES = ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.7", "rand-m9-mstd101", "rand-m5-tweights",
         "original-mstd0.5", "v0r"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_timms(name):
    """How often each operation is drawn, and the mean and deviation of its strengths."""
    policy = picture_policy(name, 100, "bilinear", (0.5,) * 3)
    theirs: dict[str, list[float]] = {}

    def record(op):
        def function(image, *strength, **options):
            theirs.setdefault(op.name, []).append(strength[0] if strength else 0.0)
            return image

        op.aug_fn = function

    chains = policy.policy if hasattr(policy, "policy") else [policy.ops]
    for chain in chains:
        for op in chain:
            record(op)
    random.seed(0), np.random.seed(0)
    count = 4_000
    for _ in range(count):
        policy(None)
    drawn = table(name, 100).draw(20_000, torch.Generator().manual_seed(0))
    ops, strengths = drawn[:, ::2].flatten(), drawn[:, 1::2].flatten() / SCALE
    assert (ops > 0).sum() / 20_000 == pytest.approx(
        sum(map(len, theirs.values())) / count, rel=0.05
    )
    for key, values in theirs.items():
        op = next(op for op in Op if key.upper().startswith(op.name.replace("_", "")))
        op = Op.SOLARIZE_ADD if key == "SolarizeAdd" else op
        ours = strengths[ops == op].double()
        share = len(ours) / 20_000
        assert share == pytest.approx(len(values) / count, abs=4 * (0.25 / count) ** 0.5)
        values = torch.tensor(values).double() * (100 if key.endswith("Rel") else 1)
        if len(values) > 30:
            width = values.std() + 1e-3 * values.abs().max() + 1e-9
            assert abs(ours.mean() - values.mean()) < 5 * width / len(values) ** 0.5 + 0.06 * width
            if op != Op.POSTERIZE:  # few whole numbers, of which some are rare
                assert ours.std().item() == pytest.approx(values.std().item(), rel=0.25, abs=1e-3)


@pytest.mark.parametrize(("name", "kind", "level"), [
    ("randaugment", v2.RandAugment, 9), ("trivial", v2.TrivialAugmentWide, None),
])  # fmt: skip
@pytest.mark.parametrize("side", [32, 224])
def test_tables_are_torchvisions(name, kind, level, side):
    """The strengths of every operation at every level."""
    found = table(name, side)
    theirs = kind()._AUGMENTATION_SPACE
    own = {
        Op(op): strengths
        for op, strengths in zip(found.ops.tolist(), found.strengths.double() / SCALE, strict=True)
    }
    assert len(own) == len(theirs)
    assert found.levels.unique().tolist() == [30.0 if level is None else level]
    for key, (strengths, signed) in theirs.items():
        op = next(op for op in Op if key.upper() == op.name.replace("_", ""))
        expected = strengths(31, side, side)
        expected = torch.zeros(31) if expected is None else expected.double()
        if key.startswith("Translate"):
            expected = (expected + 1e-4).int()  # 15.999999 for 16 in float32
        elif key == "Solarize":
            expected = expected * 255
        middle = 1.0 if key in ("Brightness", "Color", "Contrast", "Sharpness") else 0.0
        both = [middle + expected, middle - expected] if signed else [expected] * 2
        torch.testing.assert_close(own[op], torch.stack(both).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TORCHVISIONS[2:])
def test_searched_policies_are_torchvisions(name):
    found = table(name, 32)
    theirs = picture_policy(name, 32, "bilinear", (0.5,) * 3)._policies
    assert len(found.chains) == len(theirs) == 25
    for chain, pair in zip(found.chains.tolist(), theirs, strict=True):
        for entry, (key, chance, _) in zip(chain, pair, strict=True):
            assert Op(int(found.ops[entry])).name.replace("_", "") == key.upper()
            assert found.chances[entry] == chance


def test_erased_parts_are_of_their_share():
    boxes = draw_boxes(4_000, torch.Generator().manual_seed(0), 32, 0.25)
    top, left, height, width = boxes.T
    some = height > 0
    assert some.float().mean() == pytest.approx(0.25, abs=0.03)
    assert ((top + height <= 32) & (left + width <= 32) & (height < 32) & (width < 32)).all()
    area = (height * width)[some] / 32**2
    assert area.min() > 0.01
    assert area.max() < 0.36
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    images = erase(torch.ones(4_000, 2, 32, 32), boxes)
    assert torch.equal((images == 0).sum((2, 3)), (height * width)[:, None].expand(-1, 2))
    for image, (y, x, h, w) in zip(images[:50], boxes.tolist(), strict=False):
        assert not image[:, y : y + h, x : x + w].any()


POLICIES = ["rand-m9-mstd0.5", "original", "v0r-mstd1", *TORCHVISIONS]
PLACES = [{"num_workers": 0}, {"in_memory": True}, {"cache": True}]


@pytest.fixture
def load(pictures, tmp_path):
    root = pictures({"pictures/a": 9, "pictures/b": 9}, size=(80, 70)) / "pictures"

    def load(options, **changes):
        fixed = {"root": str(root), "image_size": 24, "batch_size": 6, "data_dir": tmp_path}
        return load_data("folder", **fixed, **options, **changes)

    return load


@pytest.mark.parametrize("place", PLACES, ids=["files", "memory", "cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_everywhere(load, place, policy):
    """The same key, the same pictures; another epoch or seed, others; all of them are finite."""
    augment = {"auto_augment": policy, "color_jitter": 0.4, "erase": 0.5}
    data = load(place, augment=augment)
    first = torch.cat([images for images, _ in batches(data)])
    assert first.shape == (12, 3, 24, 24)
    assert first.isfinite().all()
    assert torch.equal(first, torch.cat([images for images, _ in batches(data)]))
    for other in (batches(data, epoch=1), batches(load(place, seed=1, augment=augment))):
        assert not torch.equal(first, torch.cat([images for images, _ in other]))
    # Half of them lack a rectangle, which is of the mean.
    assert 0.1 < (first == 0).all(1).flatten(1).any(1).float().mean() < 0.95


def test_workers_do_not_matter(load):
    augment = {"auto_augment": "trivial", "erase": 0.5, "color_jitter": 0.3}
    alone, two = (batches(load({"num_workers": n}, augment=augment)) for n in (0, 2))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(alone, two, strict=True))


def test_colours_change_beside_a_policy(load):
    """Timm's transforms leave them out."""
    augment = {"auto_augment": "rand-m9-n1-p0.0", "scale": [1, 1], "ratio": [1, 1]}
    plain, coloured = (batches(load(PLACES[0], augment={**augment, "color_jitter": c}))
                       for c in (None, 0.4))  # fmt: skip
    assert not torch.equal(plain[0][0], coloured[0][0])


def test_lanczos_is_for_resizing_alone(load):
    """Pillow cannot turn pictures by it."""
    data = load(PLACES[0], interpolation="lanczos", augment={"auto_augment": "rand-m9-n8-p1.0"})
    assert len(batches(data)) == 2


def test_crops_have_an_interpolation_of_their_own(load):
    """Nearest neighbours alone invent no colours."""
    crop = {"scale": [0.2, 0.2], "flip": False}
    found = {}
    for kind in ("nearest", "bilinear", "bicubic", "random", None):
        data = load(PLACES[0], augment={**crop, "interpolation": kind}, interpolation="bilinear")
        found[kind] = torch.cat([images for images, _ in batches(data)])
    assert torch.equal(found[None], found["bilinear"])
    assert len(found["nearest"].unique()) < 257 * 3
    kinds = {
        kind: (found["random"] == found[kind]).flatten(1).all(1) for kind in ("bilinear", "bicubic")
    }
    assert (kinds["bilinear"] ^ kinds["bicubic"]).all()
    assert all(0 < kind.sum() < 12 for kind in kinds.values())


@pytest.mark.parametrize("name", ["best", "rand-x9", "rand-m9-tall", "rand-n0", "original-m9", ""])
@pytest.mark.parametrize("batched", [False, True])
def test_unknown_policies(name, batched):
    with pytest.raises(UserError, match=rf"^data\.augment\.auto_augment='{name}' is no policy; "):
        check_policy(name, batched=batched)


def test_no_bits_are_black():
    """Pillow refuses to keep none, which some of timm's policies ask for."""
    policy = picture_policy("rand-m0-n9-p1.0", 8, "bilinear", (0.5,) * 3)
    (op,) = [op for op in policy.ops if op.name == "Posterize"]
    assert not np.asarray(op(Image.new("RGB", (8, 8), "white"))).any()
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    zero = torch.zeros(1)
    assert not distort(white, zero + Op.POSTERIZE, zero, FILL, whole=False).any()


@pytest.mark.parametrize("name", ["3a", "augmix-m3", "rand-m9-t3a"])
def test_policies_for_pictures_alone(name):
    check_policy(name, batched=False)
    with pytest.raises(
        UserError, match=f"^data.augment.auto_augment={name}: .* from files alone; "
    ):
        check_policy(name, batched=True)


def test_a_check_draws_nothing():
    state, numpys, pythons = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        random.getstate(),
    )
    table.cache_clear()
    for name in ("rand-m9-mstd0.5", "trivial"):
        check_policy(name, batched=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpys).all()
    assert random.getstate() == pythons
