"""The settings of a run: the composed configuration, parsed once.

The values, defaults included, are those of ``configs/``; a key that YAML does not set is an error
here. Names of models, conv types, optimizers and data sets are looked up where they are defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.data_settings import DataSettings
from dwsep_zoo.schema.numbers import (
    Alpha,
    Amount,
    Devices,
    Limit,
    Natural,
    NotBool,
    Option,
    Portion,
    Range,
    Rate,
    Seed,
    Share,
    Side,
    Whole,
    Width,
)
from dwsep_zoo.schema.parse import Group, parse
from dwsep_zoo.schema.texts import Address, FolderName, Place, Text


class Named(Group):
    """A name, common keys, and the options of what has that name, which checks them itself."""

    name: str = Field(description="which one")
    options: Mapping[str, Option] = Field(description="its own options; null: its default")

    @model_validator(mode="before")
    @classmethod
    def _collect(cls, values: object) -> object:
        if not isinstance(values, Mapping) or "options" in values:
            return values
        common = {key: value for key, value in values.items() if key in cls.model_fields}
        own = {key: value for key, value in values.items() if key not in cls.model_fields}
        return {**common, "options": own}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        options = values.pop("options")
        return {**values, **options}


class ConvSettings(Named):
    """The conv type and its options, see :mod:`dwsep_zoo.nn.conv`."""


class ModelSettings(Named):
    """The network; ``options`` are those of one family, such as ``depth_mult``."""

    pretrained: bool | Text | None = Field(
        description="weights to begin with: true (the best known), a name, a file or a run folder"
    )
    width_mult: Width = Field(description="factor on every width")
    output_stride: Annotated[Literal["auto", 1, 2, 4, 8, 16, 32], NotBool] = Field(
        description="32 is the paper's; auto: the largest that leaves a last map of 2 x 2 pixels"
    )
    drop_rate: Share | None = Field(description="dropout before the classifier; null: the paper's")
    drop_path_rate: Share | None = Field(description="stochastic depth; null: the paper's")
    padding: Literal["symmetric", "same"] | None = Field(
        description="same: TensorFlow's; null: the model's"
    )
    act: Text | None = Field(description="another main activation; null: the paper's")
    bn_eps: Portion | None = Field(description="epsilon of the norms; null: the model's")
    bn_momentum: Portion | None = Field(description="weight of the newest batch; null: the model's")


class Recipe(Group):
    """How a network is trained, the same for every row of a comparison."""

    epochs: Natural = Field(description="passes over the training images")
    optimizer: Text = Field(description="sgd, muon, or any optimizer of timm")
    lr: Rate = Field(description="peak learning rate, for the whole batch")
    lr_batch: Natural | None = Field(description="images of a step that lr is for; null: of any")
    classifier_lr: Rate | None = Field(description="peak of the classifier; null: lr")
    momentum: Share = Field(description="of sgd, Nesterov's, and of others that have one")
    betas: tuple[Share, Share] | None = Field(description="of Adam and its kind; null: its own")
    eps: Rate | None = Field(description="epsilon of Adam, RMSprop and their kind; null: its own")
    muon_lr: Rate = Field(description="muon: peak of convolutions that mix channels")
    muon_momentum: Share = Field(description="muon: their momentum")
    weight_decay: Amount = Field(description="of weights")
    decay_norm_and_bias: bool = Field(description="decay norms and biases as well")
    decay_depthwise: bool = Field(description="decay depthwise filters as well")
    warmup_fraction: Share = Field(description="part of all steps with a rising rate")
    schedule: Literal["cosine", "constant", "exponential"] = Field(description="after warm-up")
    decay_rate: Portion | None = Field(description="exponential: factor on the rate")
    decay_epochs: Rate | None = Field(description="exponential: epochs for each such factor")
    staircase: bool = Field(description="exponential: the whole factor at once, not gradually")
    min_lr: Amount = Field(
        description="rate at the end of the cosine; other peaks end at the same part"
    )
    label_smoothing: Share = Field(description="probability given to all other classes")
    mixup: Alpha | None = Field(
        description="blend each image with another; alpha of the shares; null: none"
    )
    cutmix: Alpha | None = Field(
        description="paste a part of another image; alpha of the areas; null: none"
    )
    class_weights: Literal["balanced"] | None = Field(
        description="balanced: an image counts n / (k n_c); null: every image counts 1"
    )
    model_ema_decay: Share | None = Field(description="moving average of the weights; null: none")
    model_ema_warmup: bool = Field(description="a shorter average at first")
    initial_size: Side | None = Field(description="first side of training images, which grows")
    full_size_from: Portion = Field(description="part of the training before the full size")
    norm_statistics: Literal["precise", "running"] = Field(
        description="of batch norms in evaluation; precise: computed anew for its weights"
    )
    eval_flip: bool = Field(description="average the outputs of each image and its mirror image")
    eval_shift: bool = Field(description="average those of the image moved by a pixel as well")
    simulated_int8: Literal["per_channel", "per_tensor"] | None = Field(
        description="round weights and activations in training; scale of the weights; null: float"
    )
    freeze: tuple[Text, ...] | None = Field(description="parts never trained, [stem, stages.0*]")
    freeze_epochs: Whole | None = Field(description="epochs that train the classifier alone")
    layer_decay: Portion | None = Field(description="rate of a part / that of the next; null: 1")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.schedule == "exponential" and None in (self.decay_rate, self.decay_epochs):
            raise UserError(
                "recipe.schedule=exponential needs recipe.decay_rate and recipe.decay_epochs, such "
                "as 0.98 and 1: the rate is 0.98 times as high after each epoch"
            )
        return self


class DistillSettings(Group):
    """A teacher: its outputs are targets besides the labels."""

    teacher: Text | None = Field(
        description="a run, checkpoint, exported file, published name, or timm:NAME; null: none"
    )
    kind: Literal["kd", "js"] = Field(
        description="divergence from its outputs, kd: Kullback-Leibler, js: Jensen-Shannon"
    )
    temperature: Rate = Field(description="divisor of the outputs before the softmax")
    weight: Portion = Field(description="the teacher's part of the loss; the labels have the rest")
    features: Amount = Field(description="weight of the distance of feature maps; 0: none")


class TrainerSettings(Group):
    """Lightning's Trainer, as far as it is supported here, and how steps are computed."""

    max_epochs: Natural = Field(description="passes over the training images")
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(description="kind of device")
    devices: Literal["auto"] | Devices | tuple[Whole, ...] = Field(
        description="number of devices, or a list of them"
    )
    num_nodes: Devices | None = Field(description="machines; null: 1")
    strategy: Literal["auto", "ddp"] = Field(description="ddp: one process a device")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"] = Field(
        description="auto: bf16-mixed where the hardware is fast at it, else 32-true"
    )
    accumulate_grad_batches: Natural = Field(description="batches of a step")
    gradient_clip_val: Amount | None = Field(description="null: no clipping")
    gradient_clip_algorithm: Literal["norm", "value"] | None = Field(description="null: norm")
    deterministic: bool | Literal["warn"] = Field(description="deterministic algorithms only")
    benchmark: bool | None = Field(description="let cuDNN choose by timing")
    detect_anomaly: bool | None = Field(description="find where a gradient becomes NaN")
    channels_last: bool = Field(description="memory format of the network")
    compile: bool | Literal["auto"] = Field(description="auto: where it is measured to pay")
    sync_batchnorm: bool | Literal["auto"] = Field(description="auto: with several processes")
    enable_progress_bar: bool | Literal["auto"] = Field(description="auto: on a terminal")
    profiler: Literal["simple", "advanced", "pytorch"] | None = Field(description="Lightning's")
    fast_dev_run: bool | Natural | None = Field(description="this many batches, nothing saved")
    overfit_batches: Limit | None = Field(description="train on these batches again and again")
    limit_train_batches: Limit | None = Field(description="number or part of an epoch's batches")
    limit_val_batches: Limit | None = Field(description="likewise, in validation")
    limit_test_batches: Limit | None = Field(description="likewise, in the test")
    max_steps: Natural | None = Field(description="stop after this many steps")
    max_time: Text | None = Field(description="stop after days:hours:minutes:seconds")
    check_val_every_n_epoch: Natural | None = Field(description="null: 1")

    @model_validator(mode="after")
    def _consistent(self) -> TrainerSettings:
        devices = len(self.devices) if isinstance(self.devices, tuple) else self.devices
        if self.strategy != "ddp" and (
            devices not in ("auto", 1) or self.num_nodes not in (None, 1)
        ):
            raise UserError("trainer.devices and trainer.num_nodes above 1 need trainer=ddp")
        return self


class CallbackSettings(Group):
    """What happens at the ends of epochs."""

    early_stopping: Natural | None = Field(description="stop after this many epochs without gain")
    save_every_n_epochs: Natural = Field(description="how often last.ckpt is written")


class ProfileSettings(Group):
    """What is measured when a run ends."""

    runtimes: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(description="what runs it")
    batch_sizes: Annotated[tuple[Natural, ...], Field(min_length=1)] = Field(description="images")
    precisions: Annotated[tuple[Literal["fp32", "bf16"], ...], Field(min_length=1)] = Field(
        description="of inference"
    )
    roofline: bool = Field(description="time, bytes and limit of every layer")
    patience: Amount = Field(description="seconds to wait for steady latencies on a busy machine")


class LoggerSettings(Group):
    """Curves and pictures besides ``metrics.csv``, and a tracker of experiments."""

    tensorboard: bool = Field(description="TensorBoard events in the run's folder")
    pictures: bool = Field(description="pictures of what was learned, drawn when a run ends")
    tracker: Literal["mlflow", "wandb", "trackio"] | None = Field(
        description="a tracker of experiments, which gets curves, settings, results and pictures"
    )
    project: Text | None = Field(description="the tracker's project; null: task_name")
    uri: Address | None = Field(description="address of the tracker's server; null: its default")


class PathSettings(Group):
    """Folders."""

    data_dir: Place = Field(description="data sets, downloaded once")
    log_dir: Place = Field(description="all runs")
    output_dir: Place = Field(description="this run")


class SearchSettings(Group):
    """Tuning the recipe of each variant before it is trained."""

    trials: Natural = Field(description="trainings of a search")
    epochs: Natural | None = Field(description="of a trial; null: as many as the run has")
    seed: Seed = Field(description="of trials and sampler")
    lr: Range | None = Field(
        description="lowest, highest; null: around the recipe's by a factor of 10"
    )
    weight_decay: Range | None = Field(description="likewise")


class Settings(Group):
    """All settings of one run."""

    task_name: FolderName = Field(description="folder of the runs below paths.log_dir")
    seed: Seed = Field(description="initial weights, batch order, augmentation, dropout")
    match: Literal["params", "macs", "latency"] | None = Field(
        description="solve for the width that costs what conv=<to> costs"
    )
    to: Text = Field(description="conv type whose width is model.width_mult")
    tags: tuple[str | int | float | bool, ...] = Field(description="free words for the record")
    train: bool = Field(description="train")
    test: bool = Field(description="test once, with the best checkpoint")
    ckpt_path: Place | None = Field(description="continue from this checkpoint in a new folder")
    resume: Place | None = Field(
        description="continue in the same folder: last, a run's or sweep's folder, or auto"
    )
    model: ModelSettings = Field(description="the network")
    conv: ConvSettings = Field(description="the conv type")
    data: DataSettings = Field(description="the data set")
    recipe: Recipe = Field(description="the training recipe")
    distill: DistillSettings = Field(description="the teacher")
    trainer: TrainerSettings = Field(description="the engine")
    callbacks: CallbackSettings = Field(description="ends of epochs")
    profile: ProfileSettings = Field(description="measurements at the end")
    logger: LoggerSettings = Field(description="curves and pictures")
    paths: PathSettings = Field(description="folders")
    hparams_search: SearchSettings | None = Field(description="tuning, hparams_search=optuna")

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.match and self.model.pretrained:
            raise UserError(
                f"match={self.match} changes the width, which pretrained weights fix; use one of "
                "them"
            )
        if self.trainer.strategy == "ddp":
            if self.match == "latency":
                raise UserError(
                    "match=latency cannot run with trainer=ddp: each process would measure"
                )
            if self.hparams_search:
                raise UserError(
                    "hparams_search cannot run with trainer=ddp; search on one device first"
                )
        if self.recipe.class_weights and self.data.sampler:
            raise UserError(
                "recipe.class_weights=balanced and data.sampler=balanced both make up for unequal "
                "classes; use one of them"
            )
        for key in ("lr", "weight_decay") if self.hparams_search else ():
            own = getattr(self.recipe, key)
            if getattr(self.hparams_search, key) is None and not own > 0:
                raise UserError(
                    f"hparams_search.{key}=null searches around recipe.{key}, which is {own!r}; "
                    f"set hparams_search.{key}=[lowest, highest]"
                )
        return self


def parse_settings(config: object) -> Settings:
    """Parse a composed configuration.

    Raises:
        UserError: in one line, naming the key, the value and the choices.
    """
    return parse(Settings, config)
