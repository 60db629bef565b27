"""The memory of networks, counted from the tensors that live at the same time.

Nothing is computed: tensors without contents pass through the network, so the numbers are exact and
the same on every machine, for any batch size. An allocator's rounding, the working memory of single
kernels and, in training, the optimizer's state come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # no public module has these
from torch.utils._pytree import tree_leaves

from dwsep_zoo.analysis.count import image_shape, in_mode
from dwsep_zoo.errors import UserError


def inference_memory(
    model: nn.Module, input_size: Sequence[int] | None = None, *, batch_size: int = 1
) -> int:
    """Bytes at the peak of eager float32 inference: weights, input, and the activations alive.

    Args:
        model: takes ``(N, C, H, W)``; it stays as it is.
        input_size: ``(C, H, W)``; ``None``: the network's own.
        batch_size: N.
    """
    return _peak(model, image_shape(model, input_size), batch_size, training=False)


def training_memory(
    model: nn.Module, input_size: Sequence[int] | None = None, *, batch_size: int = 1
) -> int:
    """Bytes at the peak of a float32 training step, forward and backward of the cross-entropy.

    These are weights, input, labels, the activations kept for the backward pass, and gradients.

    Args:
        model: takes ``(N, C, H, W)`` and returns ``(N, classes)``; it stays as it is.
        input_size: ``(C, H, W)``; ``None``: the network's own.
        batch_size: N.

    Raises:
        UserError: if a norm has a single number per channel to take its statistics from.
    """
    shape = image_shape(model, input_size)
    try:
        return _peak(model, shape, batch_size, training=True)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"a batch of {batch_size} of {' x '.join(map(str, shape))} cannot be trained: its "
            "last feature map has one pixel, and a norm needs more than one value per channel"
        ) from error


def state_dict_bytes(model: nn.Module) -> int:
    """Size of a network's weights and statistics on disk."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _peak(model: nn.Module, shape: tuple[int, int, int], batch_size: int, training: bool) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import, and not public

    with (
        in_mode(model, training=training),
        FakeTensorMode() as fake,
        _LiveTensors() as live,
        torch.set_grad_enabled(training),
    ):
        state: dict[str, Tensor] = {
            name: fake.from_tensor(tensor)
            for named in (model.named_parameters(), model.named_buffers())
            for name, tensor in named
        }
        live.add(state.values())
        device = next(iter(state.values())).device
        x = torch.empty(batch_size, *shape, device=device)
        output = torch.func.functional_call(model, state, (x,))
        if training:
            labels = torch.empty(batch_size, dtype=torch.int64, device=device)
            F.cross_entropy(output, labels).backward()
        return live.peak


class _LiveTensors(TorchDispatchMode):
    """Adds up the bytes of the storages that operators return, as long as these live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self.seen:
                self.seen.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.bytes)

    def _free(self, size: int) -> None:
        self.bytes -= size
