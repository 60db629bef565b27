"""Train a network: ``python train.py model=mobilenet_v1 conv=standard``, like ``dwsep train``."""

from dwsep_zoo.commands.train import run_train

if __name__ == "__main__":
    run_train()
