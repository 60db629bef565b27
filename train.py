"""Train a network: ``python train.py model=mobilenet_v1 conv=standard``, like ``dwsep train``."""

from dwsep_zoo.commands.train import run_train
from dwsep_zoo.signals import stopping

if __name__ == "__main__":
    with stopping():
        run_train()
