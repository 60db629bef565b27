"""Policies of timm and torchvision as tables, from which the images of a batch draw."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dwsep_zoo.data.distort import Op
from dwsep_zoo.data.loader import seeded

SCALE = 2**20
"""Strengths are whole numbers of this part; all draws are, see :mod:`dwsep_zoo.data.augment`."""
STEPS = 20
"""Strengths that are kept for each level of timm's, which are numbers from 0 to 10."""
VARIANTS = ("Increasing", "Original", "Rel")
"""Ends of timm's names: the same operation with other strengths."""


class Unbatched(ValueError):
    """An operation that batches lack, by its name."""


class TimmsOp(Protocol):
    """An operation in a policy of timm; levels are from 0 to 10, or to a higher maximum."""

    name: str
    prob: float
    magnitude: float
    magnitude_max: int | None
    hparams: Mapping[str, object]
    level_fn: Callable[[float, Mapping[str, object]], tuple[float]] | None


class Entry(NamedTuple):
    """An operation in a policy.

    Attributes:
        chance: that it takes place.
        level: place of its usual strength.
        strengths: by level, first those of one direction and then those of the other.
    """

    op: Op
    chance: float
    level: float
    strengths: Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class Table:
    """A policy: an image draws chains of operations, and for each whether and how much.

    Attributes:
        weights: (R,) of the chains.
        chains: (R, length) int64, the entries of each.
        picks: chains that an image draws.
        repeat: whether it may draw one twice.
        ops: (E,) int64, of the entries.
        chances: (E,) float64.
        levels: (E,) float64.
        spread: deviation of the level that is used; infinite: equally from 0 to the level.
        strengths: (E, 2, levels) int64, in parts of ``SCALE``.
    """

    weights: Tensor
    chains: Tensor
    picks: int
    repeat: bool
    ops: Tensor
    chances: Tensor
    levels: Tensor
    spread: float
    strengths: Tensor

    def draw(self, count: int, g: torch.Generator) -> Tensor:
        """(count, 2 k) int64: k operations, each followed by its strength."""
        weights = self.weights.expand(count, -1)
        chosen = torch.multinomial(weights, self.picks, self.repeat, generator=g)
        entry = self.chains[chosen].flatten(1)
        happens, place = torch.rand((2, *entry.shape), dtype=torch.float64, generator=g)
        direction = torch.randint(2, entry.shape, generator=g)
        level = self.levels[entry]
        if math.isinf(self.spread):
            level = (place * (level + 1)).floor()
        elif self.spread:
            noise = torch.randn(entry.shape, dtype=torch.float64, generator=g)
            level = (level + self.spread * noise).round()
        level = level.clamp(0, self.strengths.shape[2] - 1).long()
        op = self.ops[entry] * (happens < self.chances[entry])
        return torch.stack([op, self.strengths[entry, direction, level]], -1).flatten(1)


def timms_table(policy: object, side: int) -> Table:
    """The table of a policy of timm, which knows its operations and their strengths.

    Args:
        policy: timm's ``RandAugment`` or ``AutoAugment``.
        side: of the images, in pixels.

    Raises:
        Unbatched: for an operation that batches lack.
    """
    if hasattr(policy, "policy"):
        chains, picks, weights = policy.policy, 1, None
    elif hasattr(policy, "ops") and hasattr(policy, "num_layers"):
        chains, picks = [[op] for op in policy.ops], policy.num_layers
        weights = getattr(policy, "choice_weights", None)
    else:
        raise Unbatched("augmix")
    with seeded(0):
        entries = [[_timms_entry(op, side) for op in chain] for chain in chains]
    spread = chains[0][0].magnitude_std * STEPS
    return _table(entries, picks=picks, weights=weights, spread=spread)


def torchvisions_table(name: str, searched: str | None, side: int) -> Table:
    """The table of a policy of torchvision; ``searched``: on which data, if it is AutoAugment."""
    if searched:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        found = AutoAugment(AutoAugmentPolicy(searched)).policies
        usual = _strengths(10, side)
        usual[Op.INVERT] = usual[Op.EQUALIZE]  # likewise without a strength
        return _table(
            [[Entry(_op(n), p, level or 0, usual[_op(n)]) for n, p, level in c] for c in found]
        )
    if name == "trivial":
        wide = _strengths(31, side, shear=0.99, shift=32.0, turn=135.0, factor=0.99, bits=6)
        return _table([[Entry(op, 1.0, 30, s)] for op, s in wide.items()], spread=math.inf)
    usual = _strengths(31, side)
    return _table([[Entry(op, 1.0, 9, s)] for op, s in usual.items()], picks=2)


def _table(
    chains: Sequence[Sequence[Entry]],
    *,
    picks: int = 1,
    weights: Sequence[float] | None = None,
    spread: float = 0.0,
) -> Table:
    longest = max(len(chain) for chain in chains)
    nothing = Entry(Op.IDENTITY, 1.0, 0, [[0.0] * len(chains[0][0].strengths[0])] * 2)
    entries = [e for chain in chains for e in [*chain, *[nothing] * (longest - len(chain))]]
    strengths = torch.tensor([entry.strengths for entry in entries], dtype=torch.float64)
    return Table(
        weights=torch.tensor([*weights] if weights is not None else [1.0] * len(chains)),
        chains=torch.arange(len(entries)).view(len(chains), longest),
        picks=picks,
        repeat=weights is None,
        ops=torch.tensor([int(entry.op) for entry in entries]),
        chances=torch.tensor([entry.chance for entry in entries], dtype=torch.float64),
        levels=torch.tensor([entry.level for entry in entries], dtype=torch.float64),
        spread=spread,
        strengths=(strengths * SCALE).round().long(),
    )


def _timms_entry(op: TimmsOp, side: int) -> Entry:
    """An operation of timm, asked for its strength at every level."""
    highest = op.magnitude_max or 10
    strengths: list[list[float]] = []
    for direction in (1, 0):  # seeds after which timm's operations keep and change their sign
        strengths.append([])
        for step in range(highest * STEPS + 1):
            random.seed(direction)
            (strength,) = op.level_fn(step / STEPS, op.hparams) if op.level_fn else (0.0,)
            if op.name.endswith("Rel"):  # to the side
                strength *= side
            elif op.name == "Desaturate":
                strength = 1 - strength
            strengths[-1].append(strength)
    return Entry(_op(op.name), op.prob, op.magnitude * STEPS, strengths)


def _strengths(
    levels: int,
    side: int,
    *,
    shear: float = 0.3,
    shift: float | None = None,
    turn: float = 30.0,
    factor: float = 0.9,
    bits: int = 4,
) -> dict[Op, Sequence[Sequence[float]]]:
    """The strengths of torchvision's operations, evenly from none to the most that is given.

    Args:
        levels: their number.
        side: of the images, in pixels.
        shear: tangent.
        shift: pixels; ``None``: 150 of 331, as in AutoAugment's images.
        turn: degrees.
        factor: added to 1 or taken from it.
        bits: that are dropped.
    """
    shift = side * 150 / 331 if shift is None else shift
    parts = [level / (levels - 1) for level in range(levels)]

    def both(most: float, middle: float = 0.0) -> Sequence[Sequence[float]]:
        return [[middle + sign * most * part for part in parts] for sign in (1, -1)]

    shifts = [[float(int(pixels)) for pixels in row] for row in both(shift)]
    none = both(0.0)
    return {
        **{Op.IDENTITY: none, Op.SHEAR_X: both(shear), Op.SHEAR_Y: both(shear)},
        **{Op.TRANSLATE_X: shifts, Op.TRANSLATE_Y: shifts, Op.ROTATE: both(turn)},
        **dict.fromkeys((Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS), both(factor, 1.0)),
        Op.POSTERIZE: [[float(round(8 - bits * part)) for part in parts]] * 2,
        Op.SOLARIZE: [[255 * (1 - part) for part in parts]] * 2,
        **{Op.AUTO_CONTRAST: none, Op.EQUALIZE: none},
    }


def _op(name: str) -> Op:
    """The operation with a name of timm or torchvision, such as ``TranslateXRel``."""
    for variant in VARIANTS:
        name = name.removesuffix(variant)
    name = "Color" if name == "Desaturate" else name
    key = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
    if key not in Op.__members__:
        raise Unbatched(name)
    return Op[key]
