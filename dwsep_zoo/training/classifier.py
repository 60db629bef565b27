"""The one Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dwsep_zoo.data import ImageData
from dwsep_zoo.data.loader import RawBatch
from dwsep_zoo.errors import UserError
from dwsep_zoo.models import ConvNet
from dwsep_zoo.nn.int8 import Simulated
from dwsep_zoo.schema.settings import Recipe
from dwsep_zoo.training.cuda_graphs import StepGraph
from dwsep_zoo.training.eval_views import average
from dwsep_zoo.training.metrics import ClassMean, Mean
from dwsep_zoo.training.objective import cross_entropy, main_labels
from dwsep_zoo.training.optim import (
    batch_scale,
    create_optimizer,
    create_schedule,
    recipe_groups,
    steps_of_epoch,
)
from dwsep_zoo.training.predictions import predicted
from dwsep_zoo.training.progressive import resize, training_size
from dwsep_zoo.training.teacher import Outputs, Teacher, with_maps

Batch = tuple[Tensor, Tensor]
"""Images, prepared, and labels."""


class LitClassifier(L.LightningModule):
    """Training of a network by a recipe: by the labels, and by a teacher if there is one.

    Args:
        model: ``(N, C, H, W)`` -> ``(N, num_classes)``.
        num_classes: number of classes.
        recipe: how it is trained.
        seed: determines dropout and stochastic depth, with the epoch and the batch.
        description: plain data for the checkpoint, under ``"dwsep_zoo"``.
        class_weights: ``(num_classes,)``, of the training's loss; ``None``: all count 1.
        teacher: whose outputs it learns.
    """

    loss: Tensor  # of the last training step
    class_weights: Tensor | None
    batch: RawBatch

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        recipe: Recipe,
        seed: int,
        description: dict[str, Any],
        class_weights: Tensor | None = None,
        teacher: Teacher | None = None,
    ):
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.description = description
        self.train_forward: Callable[[Tensor], Tensor] = self.forward  # or compiled
        self.graph: StepGraph | None = None  # of the training steps, on a GPU
        self.simulated: Simulated | None = None  # its forward pass in int8, which then takes place
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.teacher = teacher
        self.top_k = min(5, num_classes)
        for split in ("train", "val", "test"):
            means = {name: Mean() for name in ("loss", "acc", "acc_top5")}
            if split == "val":
                means["balanced_acc"] = ClassMean(num_classes)
            self.add_module(f"{split}_metrics", nn.ModuleDict(means))

    def forward(self, x: Tensor) -> Tensor:
        return self.simulated(x) if self.simulated else self.model(x)

    def on_fit_start(self) -> None:
        if self.teacher:
            self.teacher.to(self.device, next(self.model.parameters()).dtype)

    def on_train_epoch_start(self) -> None:
        if self.graph:
            self.graph.look()

    def on_train_batch_start(self, batch: RawBatch, batch_idx: int) -> None:
        # Every step seeds its own dropout: an interrupted run goes on as if it had not been.
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        seed = hash(key) & 0x7FFF_FFFF_FFFF_FFFF
        if self.device.type == "cpu":
            # The other writes down where it was called, for devices that nobody uses: 0.5 ms.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        self.batch = batch
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.logged = (self.global_step + 1) % every == 0 or self.trainer.is_last_batch
        if self.logged:
            rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
            # Made on the device: a copy from the CPU would wait for it.
            self.log("train/lr", torch.full((), rate, device=self.device))

    def training_step(self, batch: RawBatch, batch_idx: int) -> Tensor:
        """The loss, with everything that happens on the device before it.

        Nothing here may read a number from the device or do more than once a step what a graph of
        the step would leave out.
        """
        if self.graph and self.graph.replaying:
            return self.loss
        data: ImageData = self.trainer.datamodule  # type: ignore[attr-defined]
        images, labels, share = data.training_batch(batch)
        size = self.image_size(self.current_epoch, images.shape[-1])
        own = self._outputs(resize(images, size))
        logits = own.logits
        loss = cross_entropy(
            logits,
            labels,
            share=share,
            label_smoothing=self.recipe.label_smoothing,
            class_weights=self.class_weights,
        )
        if self.teacher:
            loss = self.teacher.blend(loss, own, self.teacher(images))
        self.loss = loss.detach()
        self._count("train", self.loss, logits, main_labels(labels, share))
        factor = self._accumulation_factor(batch_idx)
        return loss if factor == 1 else loss * factor

    def _outputs(self, images: Tensor) -> Outputs:
        if self.teacher and self.teacher.compares_maps:
            assert isinstance(self.model, ConvNet)
            logits, maps = with_maps(self.model, images)
            return Outputs(logits.float(), maps)
        return Outputs(self.train_forward(images).float())

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:  # else a graph has computed the gradients
            loss.backward(*args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's step, which calls :meth:`training_step`; as a graph if there is one."""
        step = partial(super().optimizer_step, epoch, batch_idx, optimizer)
        if self.graph is None or optimizer_closure is None:
            step(optimizer_closure)
            return
        side = self.image_size(epoch, self.trainer.datamodule.image_size)  # type: ignore[attr-defined]
        tensors = [x for x in self.batch if isinstance(x, Tensor)]
        run = partial(self.graph.run, (side, self.train_forward), tensors, tell=optimizer_closure)
        if self.graph.whole:
            run(partial(step, optimizer_closure))
            return

        def gradients() -> Tensor:
            run(optimizer_closure)
            return self.loss

        step(gradients)

    def on_train_batch_end(self, outputs: Any, batch: RawBatch, batch_idx: int) -> None:
        self._log_means("train")
        if self.logged:
            self.log("train/loss_step", self.loss)

    def _accumulation_factor(self, batch_idx: int) -> float:
        """Makes a mean of the gradients of a step that accumulates fewer than k batches.

        Lightning divides each by k, also in the last step of an epoch.
        """
        k: int = self.trainer.accumulate_grad_batches
        first = batch_idx - batch_idx % k
        return k / min(k, int(self.trainer.num_training_batches) - first)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``label``, ``predicted`` class and probabilities of each image."""
        return {"label": batch[1], **predicted(self._evaluate("test", batch))}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        groups = recipe_groups(self.model, recipe)
        trainer = self.trainer
        data: ImageData = trainer.datamodule  # type: ignore[attr-defined]
        images = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        fused = not trainer.gradient_clip_val
        scale = batch_scale(recipe, images)
        optimizer = create_optimizer(recipe, groups, scale=scale, fused=fused)
        schedule = create_schedule(
            optimizer, recipe, steps=total_steps(trainer), epoch_steps=epoch_steps(trainer)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dwsep_zoo"] = {**self.description, "recipe": self.recipe.plain()}

    def image_size(self, epoch: int, full: int) -> int:
        """Side of the training images in an epoch, from 0 on; ``full``: the side of the data."""
        return training_size(
            epoch / (self.trainer.max_epochs or 1),
            full=full,
            initial=self.recipe.initial_size,
            full_from=self.recipe.full_size_from,
        )

    def _evaluate(self, split: str, batch: Batch) -> Tensor:
        images, labels = batch
        recipe = self.recipe
        logits = average(self, images, flip=recipe.eval_flip, shift=recipe.eval_shift)
        self._count(split, cross_entropy(logits, labels), logits, labels)
        self._log_means(split)
        return logits

    def _count(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        logits, count = logits.detach(), len(labels)
        top = logits.topk(self.top_k).indices == labels[:, None]
        totals = {
            "loss": loss * count,
            "acc": (logits.argmax(1) == labels).sum(),
            "acc_top5": top.sum(),
        }
        for name, metric in self._means(split).items():
            if isinstance(metric, ClassMean):
                metric.add_images(logits.argmax(1) == labels, labels)
            else:
                metric.add(totals[name], count)

    def _log_means(self, split: str) -> None:
        for name, metric in self._means(split).items():
            if not metric.update_called:  # since the epoch began; Lightning keeps what it is told
                metric.update()
                self.log(
                    f"{split}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "acc"
                )

    def _means(self, split: str) -> dict[str, Mean]:
        return dict(self.get_submodule(f"{split}_metrics").named_children())  # type: ignore[arg-type]


def total_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole training."""
    steps = epoch_steps(trainer) * (trainer.max_epochs or 1)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def epoch_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of an epoch.

    Trainer.estimated_stepping_batches would set the loaders up before a checkpoint's state of them
    has been read, which would then be lost.
    """
    batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    return steps_of_epoch(batches, trainer.limit_train_batches, trainer.accumulate_grad_batches)


def check_network_of(saved: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Raises UserError if a checkpoint's network is another one than the run's.

    Args:
        saved: arguments of ``create_model`` in the checkpoint.
        here: those of the run.
    """
    for key in {**here, **saved}:
        if saved.get(key) != here.get(key):
            raise UserError(
                f"the checkpoint's network has {key}={saved.get(key)}, this run's has "
                f"{here.get(key)}"
            )


def check_classes_of(saved: Sequence[str], here: Sequence[str]) -> None:
    """Raises UserError if a checkpoint's classes are not those of the data, in the same order."""
    for theirs, ours in zip(saved, here, strict=False):
        if theirs != ours:
            raise UserError(f"the checkpoint has the class {theirs!r} where the data have {ours!r}")
