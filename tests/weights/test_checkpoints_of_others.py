"""Files as Lightning, timm, DataParallel, thop and others write them."""

import argparse
import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dwsep_zoo import UserError, create_model


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return timm.create_model("mobilenetv2_050", num_classes=7).eval()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "lightning.ckpt": lambda s: {"state_dict": prefixed("model.", s), "hyper_parameters": {"a": 1}},
    "net.ckpt": lambda s: {"state_dict": prefixed("net.", s)},
    "loss.ckpt": lambda s: {"state_dict": {**prefixed("model.", s), "loss.weight": torch.ones(7)}},
    "wrapped.ckpt": lambda s: {"state_dict": prefixed("model.module.", s)},
    "ddp.pth.tar": lambda s: {"state_dict": prefixed("module.", s), "best_acc1": torch.ones(())},
    "ddp_of_compiled.pth": lambda s: prefixed("module._orig_mod.", s),
    "compiled_ddp.pth": lambda s: prefixed("_orig_mod.module.", s),
    "keras_style.pth": lambda s: {"model_state_dict": s, "epoch": 1},
    "args.pth.tar": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, model="m")},
    "numpy.pth": lambda s: {
        "state_dict": s,
        "best": np.float64(3),
        "epoch": np.int64(4),
        "f": np.float32(1),
        "history": np.arange(3.0),
    },
    "thop.pth": lambda s: {**s, "total_ops": torch.zeros(1), "conv_stem.total_ops": torch.zeros(1)},
    "ema.pth": lambda s: {"ema": s, "model": {k: v * 2 for k, v in s.items()}},
    "net.pth": lambda s: {"net": s},
    "double.pth": lambda s: {k: v.double() for k, v in s.items()},
}


@pytest.mark.parametrize("name", FORMS)
def test_they_load(name, theirs, tmp_path):
    torch.save(FORMS[name](theirs.state_dict()), tmp_path / name)
    ours = create_model(
        "mobilenet_v2", width_mult=0.5, num_classes=7, pretrained=tmp_path / name
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    ("name", "save"), [("half.pth", torch.save), ("half.safetensors", save_file)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, name, save, prefix, theirs, tmp_path):
    state = {k: v.to(dtype) for k, v in theirs.state_dict().items()}
    save(prefixed(prefix, state), tmp_path / name)
    ours = create_model("mobilenet_v2", width_mult=0.5, num_classes=7, pretrained=tmp_path / name)
    want = theirs.classifier.weight.to(dtype).float()
    torch.testing.assert_close(ours.classifier.weight, want, rtol=0, atol=0)
    assert {t.dtype for t in ours.state_dict().values()} == {torch.float32, torch.int64}


def test_weights_without_a_classifier(theirs, tmp_path, caplog):
    state = {k: v for k, v in theirs.state_dict().items() if "classifier" not in k}
    torch.save(state, tmp_path / "backbone.pth")
    with caplog.at_level(logging.INFO, "dwsep_zoo"):
        ours = create_model(
            "mobilenet_v2", width_mult=0.5, num_classes=7, pretrained=tmp_path / "backbone.pth"
        ).eval()
    assert "has no classifier" in caplog.text
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        ours.forward_features(x), theirs.forward_features(x), rtol=1e-5, atol=1e-5
    )


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_what_could_run_code_is_refused(theirs, tmp_path):
    torch.save({"state_dict": theirs.state_dict(), "args": Payload()}, tmp_path / "a.pth.tar")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "b.pt")
    for name, words in (("a.pth.tar", "could run code"), ("b.pt", "TorchScript")):
        with pytest.raises(UserError, match=words):
            create_model("mobilenet_v2", pretrained=tmp_path / name)
