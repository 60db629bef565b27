"""TEMPORARY bridge until the data package lands."""
from __future__ import annotations
import hashlib
from typing import Any
import lightning as L
import torch
import torch.nn.functional as F
from dwsep_zoo.errors import choose

class _Loader:
    def __init__(self, x, y, bs, seed, train):
        self.x, self.y, self.bs, self.seed, self.train, self.epoch, self.start = x, y, bs, seed, train, 0, 0
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return len(self.y) // self.bs if self.train else -(-len(self.y) // self.bs)
    def state_dict(self): return {"batch": self.batch}
    def load_state_dict(self, state): self.start = state["batch"]
    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed * 1000003 + self.epoch)
        order = torch.randperm(len(self.y), generator=g) if self.train else torch.arange(len(self.y))
        start, self.start = self.start, 0
        for b in range(start, len(self)):
            self.batch = b + 1
            i = order[b * self.bs:(b + 1) * self.bs]
            yield self.x[i].float().div(255).sub(0.5).div(0.5), self.y[i]

class ImageData(L.LightningDataModule):
    def __init__(self, seed, batch_size=64):
        super().__init__()
        self.seed, self.batch_size = seed, batch_size
        self.name, self.num_classes, self.in_chans, self.image_size = "digits", 10, 1, 32
        self.class_names = [str(i) for i in range(10)]
    def setup(self, stage=None):
        from sklearn.datasets import load_digits
        d = load_digits()
        x = F.interpolate(torch.tensor(d.images)[:, None].float() / 16 * 255, size=32, mode="bilinear").round().byte()
        y = torch.tensor(d.target)
        p = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        self.splits = {"train": p[:1257], "val": p[1257:1437], "test": p[1437:]}
        self.x, self.y = x, y
    def _l(self, s): i = self.splits[s]; return _Loader(self.x[i], self.y[i], self.batch_size, self.seed, s == "train")
    def train_dataloader(self): return self._l("train")
    def val_dataloader(self): return self._l("val")
    def test_dataloader(self): return self._l("test")
    def describe(self):
        return {"name": "digits", "num_classes": 10, "class_names": self.class_names, "in_chans": 1, "image_size": 32, "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0,
                "splits": {k: len(v) for k, v in self.splits.items()}, "fingerprint": hashlib.sha256(b"x").hexdigest(), "subset": None, "augment": {}}

def create_data(name, *, seed, data_dir, **options: Any):
    choose(name, ["digits"], "data")
    return ImageData(seed, **options)
