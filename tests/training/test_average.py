"""The average of the weights against torch's own."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dwsep_zoo.training.average import Average


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def started(module, optimizer, checkpoint=None, *, warmup=False):
    average = Average(0.9, warmup=warmup)
    average.setup(None, module, "fit")
    if checkpoint:
        average.on_load_checkpoint(None, module, checkpoint)
    average.on_train_start(SimpleNamespace(optimizers=[optimizer]), module)
    return average


@pytest.mark.parametrize("resumed", [False, True])
def test_it_is_torchs(resumed):
    """Except for counts of batches, which are no weights."""
    torch.manual_seed(0)
    module = Module()
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    ours = started(module, optimizer)
    for number in range(4):
        if resumed and number == 2:
            checkpoint = {"state_dict": module.state_dict()}
            ours.on_save_checkpoint(None, module, checkpoint)
            optimizer = torch.optim.SGD(module.parameters(), 0.5)
            ours = started(module, optimizer, checkpoint)
        optimizer.zero_grad()
        module.model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        theirs.update_parameters(module)
    state, expected = ours._average_model.state_dict(), theirs.state_dict()
    counts = [name for name in state if name.endswith("num_batches_tracked")]
    assert [state.pop(name).item() for name in counts] == [4]
    assert [expected.pop(name).item() for name in counts] != [4]
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_a_warm_up_is_tensorflows():
    """``min(decay, (1 + n) / (10 + n))``, as ExponentialMovingAverage with num_updates has it."""
    torch.manual_seed(0)
    module = Module()
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    ours = started(module, optimizer, warmup=True)
    expected = None
    for number in range(100):
        module.model[0].weight.grad = torch.randn(3, 4)
        optimizer.step()
        new = module.model[0].weight.detach().clone()
        decay = min(0.9, (1 + number) / (10 + number))
        expected = new if expected is None else decay * expected + (1 - decay) * new
        if number in (1, 5, 79, 99):
            torch.testing.assert_close(ours._average_model.module.model[0].weight, expected)
