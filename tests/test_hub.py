"""The zoo in timm's registry, in the form of the Hugging Face hub, and for torch.hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from helpers import REPRESENTATIVES, calibrate
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from dwsep_zoo import UserError, create_model, hub, list_models, open_artefact
from dwsep_zoo.hub import from_pretrained, push_to_hub, save_pretrained

pytestmark = pytest.mark.bounds

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"width_mult": 0.125, "output_stride": 8}


def trained(name: str = "mobilenet_v2", in_chans: int = 3, **options: object) -> nn.Module:
    """A network whose every tensor differs from a new one's."""
    model = create_model(name, num_classes=5, in_chans=in_chans, **{**SMALL, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)
    return calibrate(model, torch.randn(4, in_chans, 32, 32))


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert list(a.state_dict()) == list(theirs)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in a.state_dict().items())
    assert [str(m) for m in a.modules()] == [str(m) for m in b.modules()]


def test_every_model_is_registered_once(recwarn: pytest.WarningsRecorder) -> None:
    hub.register_timm()
    assert sorted(timm.list_models("dwsep_*")) == sorted(f"dwsep_{name}" for name in list_models())
    assert not recwarn.list
    assert all(callable(getattr(hub, name)) for name in hub.__all__)


@pytest.mark.parametrize("name", list_models())
def test_timm_builds_it_with_our_options(name: str) -> None:
    options = {"num_classes": 10, "in_chans": 1, "drop_rate": 0.3, "conv": "standard", **SMALL}
    with torch.device("meta"):
        ours = create_model(name, **options)
        theirs = timm.create_model(f"dwsep_{name}", pretrained=False, **options)
    assert str(theirs) == str(ours)
    assert theirs.pretrained_cfg == {**ours.pretrained_cfg, "architecture": f"dwsep_{name}"}
    registered = timm.get_pretrained_cfg(f"dwsep_{name}")
    with torch.device("meta"):
        paper = create_model(name).pretrained_cfg
    assert {key: getattr(registered, key) for key in paper} == paper


@pytest.mark.parametrize("name", list_models())
def test_timm_makes_a_pyramid_of_it(name: str) -> None:
    model = timm.create_model(f"dwsep_{name}", features_only=True, in_chans=2, **SMALL).eval()
    info = model.feature_info
    assert info.reduction() == [1, 2, 4, 8]
    with torch.no_grad():
        maps = model(torch.randn(1, 2, 32, 32))
    assert [y.shape[1] for y in maps] == info.channels()
    lost = 4 if name == "xception" else 0  # its stem is not padded
    for y, reduction in zip(maps, info.reduction(), strict=True):
        assert 32 / reduction - lost <= y.shape[2] <= 32 / reduction
    assert not any(key.startswith("model.classifier") for key, _ in model.named_parameters())


def test_timm_takes_some_of_the_pyramid() -> None:
    options = {"features_only": True, **SMALL}
    for out_indices, reductions in (((1, 3), [2, 8]), ([-2], [4]), (2, [4, 8])):
        model = timm.create_model("dwsep_xception", out_indices=out_indices, **options)
        assert model.feature_info.reduction() == reductions
        assert len(model(torch.randn(2, 3, 32, 32))) == len(reductions)
        assert resolve_model_data_config(model)["input_size"] == (3, 299, 299)


def test_timm_gives_unpooled_features() -> None:
    model = timm.create_model("dwsep_mobilenet_v3_small", num_classes=0, global_pool="", **SMALL)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), model.forward_features(x))


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(UserError, match="unknown option of mobilenet_v1 'img_size'"):
        timm.create_model("dwsep_mobilenet_v1", img_size=64)


def test_timm_loads_checkpoints(tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    options = {"num_classes": 5, **SMALL}
    assert_equal(timm.create_model("dwsep_mobilenet_v2", checkpoint_path=path, **options), model)
    other = timm.create_model("dwsep_mobilenet_v2", **options)
    timm.models.load_checkpoint(other, str(path))
    assert_equal(other, model)


def test_timm_loads_a_file_named_in_the_configuration(tmp_path: Path) -> None:
    model = trained()
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    loaded = timm.create_model(
        "dwsep_mobilenet_v2",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "crop_pct": 0.9},
        num_classes=5,
        **SMALL,
    )
    assert_equal(loaded, model)
    assert resolve_model_data_config(loaded)["crop_pct"] == 0.9


def test_timm_asks_for_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(name: str, pretrained: object, **options: object) -> nn.Module:
        asked.append(pretrained)
        return create_model(name, **options)

    monkeypatch.setattr(hub, "create_model", noted)
    timm.create_model("dwsep_mobilenet_v2", pretrained=True, **SMALL)
    timm.create_model("dwsep_mobilenet_v2.IMAGENET1K_V1", pretrained=True, **SMALL)
    timm.create_model("dwsep_mobilenet_v2.IMAGENET1K_V1", pretrained=False, **SMALL)
    # timm's train.py resolves the configuration itself
    resolved = timm.models.resolve_pretrained_cfg("dwsep_mobilenet_v2")
    timm.create_model("dwsep_mobilenet_v2", True, pretrained_cfg=resolved, **SMALL)
    assert asked == [True, "IMAGENET1K_V1", False, True]


def test_timm_prepares_images() -> None:
    model = timm.create_model("dwsep_xception", **SMALL)
    config = resolve_model_data_config(model)
    image = Image.new("RGB", (400, 350), (124, 116, 104))
    x = create_transform(**config, is_training=False)(image)
    assert x.shape == (3, 299, 299)
    assert x.abs().max() < 0.02  # ImageNet's mean, to within half a grey level


def test_timms_training_loop_drives_it() -> None:
    model = timm.create_model("dwsep_xception", num_classes=4, drop_rate=0.0, **SMALL)
    optimizer = create_optimizer_v2(model, "adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.9)
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert scale[id(model.classifier.weight)] == 1
    assert scale[id(model.stages[-1][-1].norm.weight)] == pytest.approx(0.9)
    blocks = sum(len(stage) for stage in model.stages)
    assert scale[id(model.stem[0].conv.weight)] == pytest.approx(0.9 ** (blocks + 1))
    unit = model.stages[1][0].body[0].conv
    assert [decay[id(p)] for p in (unit.depthwise.weight, unit.pointwise.weight)] == [0, 0.05]

    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=8, warmup_epochs=2, min_lr=1e-4)
    ema = ModelEmaV3(model, decay=0.5)
    criterion = LabelSmoothingCrossEntropy(0.1)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    losses = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model, step=epoch)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    averaged = ema.module.stem[0].conv.weight
    assert not torch.equal(averaged, model.stem[0].conv.weight)
    assert ema.module.feature_info == model.feature_info


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_what_is_saved_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    conv = {"name": "mixed", "kernel_sizes": [3, 5]}
    options = {"conv": conv, "padding": "same", "bn_eps": 2e-3, "act": "silu", "drop_rate": 0.4}
    model = trained(name, in_chans=1, **options)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (1, 28, 28),
        "mean": (0.13,),
        "std": (0.31,),
        "interpolation": "bilinear",
    }
    folder = tmp_path / "new" / "folder"
    save_pretrained(model, folder, class_names=list("abcde"))
    assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    x = torch.randn(2, 1, 32, 32)
    for loaded in (
        from_pretrained(folder),
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    ):
        assert_equal(loaded, model)
        assert torch.equal(loaded(x), model(x))
        cfg = {"architecture": f"dwsep_{name}", **model.pretrained_cfg}
        assert {key: loaded.pretrained_cfg[key] for key in cfg} == cfg
        assert resolve_model_data_config(loaded)["mean"] == (0.13,)
        assert list(loaded.pretrained_cfg["label_names"]) == list("abcde")
    assert from_pretrained(folder).class_names == list("abcde")
    fresh = timm.create_model(f"local-dir:{folder}").eval()
    assert str(fresh) == str(model)
    assert not torch.equal(fresh(x), model(x))


def test_the_colour_below_transparent_pictures_comes_back(tmp_path: Path) -> None:
    """Timm's description of a network has no place for it, and takes no key that it lacks."""
    model = trained()
    model.default_cfg = {**model.default_cfg, "background": "#204060"}
    save_pretrained(model, tmp_path)
    assert from_pretrained(tmp_path).default_cfg["background"] == "#204060"
    assert open_artefact(tmp_path).about.background == "#204060"
    assert_equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), model)


def test_timm_adapts_what_is_saved_to_other_classes_and_channels(tmp_path: Path) -> None:
    model = trained()
    save_pretrained(model, tmp_path)
    other = timm.create_model(
        f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1
    ).eval()
    assert torch.equal(other.stages[0][0].norm.weight, model.stages[0][0].norm.weight)
    gray = torch.randn(2, 1, 32, 32)
    want = model.forward_features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(other.forward_features(gray), want, rtol=1e-3, atol=1e-3)
    assert other(gray).shape == (2, 3)
    assert other.pretrained_cfg["num_classes"] == 3
    assert len(resolve_model_data_config(other)["mean"]) == 1


def test_a_new_classifier_and_channels_last_are_saved_as_they_are(tmp_path: Path) -> None:
    model = trained().to(memory_format=torch.channels_last)
    model.reset_classifier(9)
    save_pretrained(model, tmp_path)
    assert_equal(from_pretrained(tmp_path), model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == config["model_args"]["num_classes"] == 9
    assert "label_names" not in config


def test_what_cannot_come_back_is_not_saved(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with pytest.raises(UserError, match="class_names: 2 names for 5 classes"):
        save_pretrained(trained(), folder, ["cat", "dog"])
    with pytest.raises(UserError, match=r"Linear: was not built by dwsep_zoo.create_model"):
        save_pretrained(nn.Linear(2, 2), folder)
    wider = trained()
    wider.stem[0].conv = nn.Conv2d(3, 16, 3, bias=False)
    with pytest.raises(UserError, match=r"stem.0.conv.weight: was changed after"):
        save_pretrained(wider, folder)
    pruned = trained()
    pruned.prune_intermediate_layers([0])
    with pytest.raises(UserError, match="was changed after the network was built"):
        save_pretrained(pruned, folder)
    assert not folder.exists()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"architecture": "dwsep_xception"}'])
def test_a_folder_of_something_else(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"has no config.json that save_pretrained wrote"):
        from_pretrained(tmp_path)


class FakeHub:
    """Keeps in a folder what the client of the hub is given."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.said: list[object] = []

    def __call__(self, token: str | None = None) -> "FakeHub":
        self.said.append(token)
        return self

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> SimpleNamespace:
        self.said.append((repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return (self.folder / repo_id / filename).exists()

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/{commit_message}")

    def download(self, repo_id: str, filename: str = "", **options: object) -> str:
        self.said.append((repo_id, options["revision"]))
        path = self.folder / repo_id / filename
        if not path.exists():
            raise ConnectionError(f"404 for {repo_id}\nfurther lines")
        return str(path)


def test_the_way_to_the_hub_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.download)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", fake.download)
    model = trained()
    url = push_to_hub(model, "net", list("abcde"), private=True, token="t")
    assert url == "https://hub/me/net/Add model"
    assert fake.said == ["t", ("net", True, True)]
    card = tmp_path / "me" / "net" / "README.md"
    assert 'timm.create_model("hf-hub:me/net", pretrained=True)' in card.read_text()
    assert {path.name for path in card.parent.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    card.write_text("mine")
    push_to_hub(model, "net")
    assert card.read_text() == "mine"

    fake.said.clear()
    assert_equal(from_pretrained("me/net@v2"), model)
    assert fake.said == [("me/net", "v2")]
    assert_equal(timm.create_model("hf-hub:me/net", pretrained=True).eval(), model)
    with pytest.raises(UserError, match=r"me/typo: cannot be downloaded .404") as e:
        from_pretrained("me/typo")
    assert "\n" not in str(e.value)


def test_torch_hub_lists_and_loads_it_from_a_checkout(tmp_path: Path) -> None:
    """In a process that has no other way to the package, and without timm, which is slow."""
    (tmp_path / "zoo_dwsep_main").symlink_to(ROOT)
    code = f"""
import sys, torch
torch.hub.set_dir({str(tmp_path)!r})
names = torch.hub.list("zoo/dwsep:main", skip_validation=True, trust_repo=True, verbose=False)
text = torch.hub.help("zoo/dwsep:main", "xception", skip_validation=True, trust_repo=True)
model = torch.hub.load({str(ROOT)!r}, "mobilenet_v1", source="local", width_mult=0.25)
assert "timm" not in sys.modules
assert "width_mult:" in text
print(*names, model.stem[0].conv.out_channels, model.build_args["name"])
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    assert sorted(words[:-2]) == sorted(list_models())
    assert words[-2:] == ["8", "mobilenet_v1"]
