"""Policies of augmentation by name, for pictures one by one and for batches.

The names are timm's, such as ``rand-m9-mstd0.5`` and ``original``, and one for each policy of
torchvision. These libraries change pictures from files themselves. For batches a policy becomes a
:class:`~dwsep_zoo.data.policy_tables.Table`, from which every image draws its own operations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain

import torch
from PIL import Image, ImageOps
from torch import Tensor

from dwsep_zoo.data.distort import distort
from dwsep_zoo.data.loader import seeded
from dwsep_zoo.data.policy_tables import SCALE, Table, Unbatched, timms_table, torchvisions_table
from dwsep_zoo.errors import UserError, nearest

SEARCHED = {
    "autoaugment": "imagenet",
    "autoaugment-cifar10": "cifar10",
    "autoaugment-svhn": "svhn",
}
"""Torchvision's policies of AutoAugment and the data on which they were searched."""
TORCHVISIONS = ("randaugment", "trivial", *SEARCHED)
"""With torchvision's own values; trivial is TrivialAugmentWide."""
TIMMS = re.compile(
    r"rand(-(m|mmax)\d{1,2}|-n[1-9]|-(p|mstd)[0-9.]+|-inc[01]|-t(weights|3aw?))*"
    r"|(original|v0)r?(-mstd[0-9.]+)?"
    r"|3a(-mstd[0-9.]+)?"
    r"|augmix(-(m|w|d)\d{1,2}|-(a|mstd)[0-9.]+|-b[01])*"
)
"""Timm itself ignores parts that it does not know."""
KNOWN = f"{', '.join(TORCHVISIONS)}, and timm's, such as rand-m9-mstd0.5, original, v0, 3a, augmix"

PictureChange = Callable[[Image.Image], Image.Image]


def check_policy(name: str, *, batched: bool) -> None:
    """Raises UserError for a policy that does not exist, or not for batches if ``batched``."""
    try:
        if name not in TORCHVISIONS and not TIMMS.fullmatch(name):
            raise ValueError("unknown")
        change = picture_policy(name, 32, "bilinear", (0.5, 0.5, 0.5))
        with seeded(0):
            change(Image.new("RGB", (32, 32)))
        if batched:
            table(name, 32).draw(1, torch.Generator())
    except Unbatched as operation:
        raise UserError(
            f"data.augment.auto_augment={name}: {operation} is for pictures that are read from "
            f"files alone; for images in memory or in a cache there are {', '.join(TORCHVISIONS)}, "
            "rand-m9-mstd0.5, original and the like"
        ) from operation
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        near = nearest(name, TORCHVISIONS)
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(
            f"data.augment.auto_augment={name!r} is no policy; {hint}there are {KNOWN}"
        ) from error


def picture_policy(
    name: str, side: int, interpolation: str, mean: Sequence[float]
) -> PictureChange:
    """Make the function of timm or torchvision that changes a picture; it draws by itself.

    Args:
        name: of the policy.
        side: of the pictures, in pixels.
        interpolation: of shears, translations and rotations. Lanczos' is for resizing alone and
            becomes bicubic.
        mean: of values in 0-1: what is moved in at the edges.
    """
    interpolation = "bicubic" if interpolation == "lanczos" else interpolation
    fill = [min(255, round(255 * value)) for value in mean]
    if name not in TORCHVISIONS:
        resample = Image.Resampling[interpolation.upper()]
        found = _timms(name, side, img_mean=tuple(fill), interpolation=resample)
        assert callable(found)
        return found
    from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

    mode = InterpolationMode(interpolation)
    if name in SEARCHED:
        return v2.AutoAugment(AutoAugmentPolicy(SEARCHED[name]), interpolation=mode, fill=fill)
    make = v2.TrivialAugmentWide if name == "trivial" else v2.RandAugment
    return make(interpolation=mode, fill=fill)


@lru_cache(maxsize=8)
def table(name: str, side: int) -> Table:
    """The policy for batches of images of ``side`` pixels."""
    if name in TORCHVISIONS:
        return torchvisions_table(name, SEARCHED.get(name), side)
    return timms_table(_timms(name, side), side)


def change_batch(images: Tensor, draws: Tensor, fill: Sequence[float]) -> Tensor:
    """Apply the drawn operations one after another.

    Args:
        images: ``(N, C, H, W)`` uint8.
        draws: ``(N, 2 k)``, of :meth:`Table.draw`.
        fill: what is moved in at the edges, 0-255 for each channel.
    """
    images = images.contiguous()  # channels are few; rows of pixels vectorise
    whole = images.device.type != "cpu"
    for ops, strengths in draws.T.unflatten(0, (-1, 2)):
        images = distort(images, ops, strengths.float() / SCALE, fill, whole=whole)
    return images


def _timms(name: str, side: int, **options: object) -> object:
    from timm.data import auto_augment as timm  # takes seconds to import

    kinds = {"rand": timm.rand_augment_transform, "augmix": timm.augment_and_mix_transform}
    make = kinds.get(name.split("-")[0], timm.auto_augment_transform)
    policy = make(name, {"translate_const": int(side * 0.45), **options})
    for op in [*chain(*policy.policy)] if hasattr(policy, "policy") else policy.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return policy


def _posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """Timm's, but black for no bits, which Pillow 13 refuses, in the middle of an epoch."""
    return ImageOps.posterize(picture, bits) if bits else Image.new(picture.mode, picture.size)
