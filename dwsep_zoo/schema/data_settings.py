"""The settings of a data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.numbers import (
    Amount,
    AreaRange,
    Chance,
    Fraction,
    Natural,
    NotBool,
    Pixels,
    Portion,
    Range,
    Rate,
    Seed,
    Side,
)
from dwsep_zoo.schema.parse import Group
from dwsep_zoo.schema.texts import Address, Colour, Place, Text


class SubsetSettings(Group):
    """A part of a data set, see :class:`dwsep_zoo.data.splits.Subset`."""

    num_classes: Annotated[int, Field(ge=2)] | None = Field(description="this many classes, drawn")
    classes: Annotated[tuple[str | int, ...], Field(min_length=2)] | None = Field(
        description="these classes"
    )
    images_per_class: Natural | None = Field(description="training images of each class")
    fraction: Portion | None = Field(description="part of the training images")
    seed: Seed = Field(description="of the draws")

    @model_validator(mode="after")
    def _exclusive(self) -> SubsetSettings:
        for one, other in (("num_classes", "classes"), ("images_per_class", "fraction")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(f"data.subset.{one} and data.subset.{other} exclude each other")
        return self


class AugmentSettings(Group):
    """Random changes of training images; where the images are kept decides which keys apply."""

    flip: bool | Literal["alternate"] | None = Field(
        description="mirror every other image; alternate: each image in every other epoch"
    )
    crop_padding: Pixels | None = Field(description="largest random shift in pixels")
    padding_mode: Literal["reflect", "zeros"] | None = Field(description="what is shifted in")
    cutout: Pixels | None = Field(description="side of a square that is blanked out")
    scale: AreaRange | None = Field(description="part of the area that a random crop keeps")
    ratio: Range | None = Field(description="width / height of that crop")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "random"] | None = Field(
        description="resizing of that crop; random: bilinear or bicubic; null: data.interpolation"
    )
    auto_augment: Text | None = Field(
        description="randaugment, trivial, autoaugment, or timm's, such as rand-m9-mstd0.5"
    )
    color_jitter: Amount | None = Field(description="strength of random colour changes")
    erase: Chance | None = Field(description="probability that a rectangle is blanked out")


class FolderSettings(Group):
    """Folders of the splits below ``data.root``, where their names do not tell."""

    train: Text | None = Field(description="folder of the training images; . is the root itself")
    val: Text | None = Field(description="folder of the validation images")
    test: Text | None = Field(description="folder of the test images")


class ColumnSettings(Group):
    """Columns of ``data.csv`` or ``data.hf``."""

    path: Text | None = Field(description="paths, or hf's pictures; null: path, or found by type")
    label: Text | None = Field(description="classes; null: label, or found by type")
    split: Text | None = Field(description="train, val or test; null: split, if there is one")


class DataSettings(Group):
    """The data set; ``None`` leaves a key to the set, which refuses the keys it has no use for."""

    name: str = Field(description="the data set")
    batch_size: Natural | Literal["auto"] = Field(
        description="images in a step of each process; auto: chosen when the run begins"
    )
    val_fraction: Fraction = Field(
        description="part held out to validate, of the training images or, with the test, of all"
    )
    test_fraction: Fraction | None = Field(description="part held out where no test set is given")
    split_seed: Seed = Field(description="of those choices, the same for all runs")
    subset: SubsetSettings = Field(description="train on a part")
    root: Place | None = Field(description="folder of the images or of the archive; shards: or URL")
    url: Address | None = Field(description="another place to download from")
    size: Annotated[Literal[160, 320, "full"], NotBool] | None = Field(
        description="Imagenette and Imagewoof: stored shorter side"
    )
    folders: FolderSettings = Field(description="folders of the splits")
    csv: Place | None = Field(description="table of pictures and labels; below root, or anywhere")
    hf: Text | None = Field(description="name on the Hugging Face hub, or local parquet")
    columns: ColumnSettings = Field(description="columns of data.csv or data.hf")
    corruption: Text | None = Field(description="CIFAR-10-C: one of them; null: the usual 15")
    severity: Annotated[int, Field(ge=1, le=5)] | None = Field(
        description="CIFAR-10-C: 1 ... 5; null: all"
    )
    on_error: Literal["raise", "skip"] | None = Field(
        description="unreadable pictures; null: raise; skip: leave out, list in skipped.txt"
    )
    background: Colour | None = Field(
        description="colour below transparent pictures; null: white, or as for the weights"
    )
    image_size: Side | None = Field(description="side of the images in pixels")
    sampler: Literal["balanced"] | None = Field(
        description="balanced: every class equally often in an epoch; null: every image once"
    )
    in_memory: bool | None = Field(description="decode once into memory; null: if they are small")
    num_workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        description="decoding processes; null: one a core, at most 16"
    )
    mean: tuple[float, ...] | None = Field(description="per channel, of values in 0-1")
    std: tuple[Rate, ...] | None = Field(description="likewise")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = Field(
        description="of resizing; null: bicubic, or as for the weights"
    )
    crop_pct: Portion | None = Field(
        description="part of the resized side that evaluation uses; null: 0.875, or the weights'"
    )
    cache: bool | Literal["verify"] | None = Field(
        description="decode once into a memory-mapped file; verify: and check all of it"
    )
    cache_size: Side | None = Field(description="side of its squares; null: image_size / crop_pct")
    augment: AugmentSettings = Field(description="random changes of training images")

    @property
    def images(self) -> int:
        """The batch size, where it has to be a number; raises UserError for ``auto``."""
        if self.batch_size == "auto":
            raise UserError("data.batch_size=auto is chosen when a run begins; name a number here")
        return self.batch_size

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        if (self.mean is None) != (self.std is None):
            raise UserError("data.mean and data.std are set together or not at all")
        if self.cache and self.in_memory:
            raise UserError("data.cache and data.in_memory exclude each other")
        if self.cache_size is not None and not self.cache:
            raise UserError(f"data.cache_size={self.cache_size} has no effect without data.cache")
        return self
