"""Class names: which output of a network is which class of a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from dwsep_zoo.errors import UserError, nearest
from dwsep_zoo.models import ConvNet

log = logging.getLogger("dwsep_zoo")

IMAGENET_CLASSES = 1000


@cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids of ImageNet's classes in the usual order, and their words."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    ids = tuple(info.label_names())
    return ids, tuple(info.index_to_description(i) for i in range(len(ids)))


def outputs_of(given: Sequence[str], names: Sequence[str], what: str) -> list[int]:
    """The output of a network for each class of a data set.

    Names are compared as they are, then without upper and lower case. WordNet ids are matched with
    the outputs of any network of ImageNet's 1,000 classes.

    Args:
        given: classes of the data, in order.
        names: classes of the network, in order.
        what: the network, for messages.

    Raises:
        UserError: naming the first class that the network does not have.
    """
    candidates = [list(names), [name.casefold() for name in names]]
    if len(names) == IMAGENET_CLASSES:
        candidates.append(list(imagenet_classes()[0]))
    for known in candidates:
        wanted = [name.casefold() for name in given] if known is candidates[1] else given
        places = {name: place for place, name in enumerate(known)}
        clear = len(places) == len(known) and len(set(wanted)) == len(wanted)
        if clear and all(name in places for name in wanted):
            return [places[name] for name in wanted]
    folded = {name.casefold() for name in names}
    first = next((name for name in given if name.casefold() not in folded), given[0])
    near = nearest(first, names)
    hint = f"; did you mean {near!r}?" if near else ""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise UserError(f"{what}: has no class {first!r} of the data{hint}; its classes: {shown}")


def fit_classifier(
    model: ConvNet, given: Sequence[str], names: Sequence[str], what: str, *, training: bool
) -> None:
    """Let the outputs of a loaded classifier mean the classes of a data set, in their order.

    Nothing is done where the classes of the weights are unknown or of another number.

    Args:
        model: with a classifier for as many classes as ``given``.
        given: classes of the data.
        names: classes that the weights were trained for.
        what: the weights, for messages.
        training: a classifier of other classes is emptied instead of refused.

    Raises:
        UserError: naming a class that the weights do not know.
    """
    if len(names) != len(given) or list(names) == list(given):
        return
    classifier = model.classifier
    assert isinstance(classifier, nn.Linear)
    try:
        order = outputs_of(given, names, what)
    except UserError:
        if not training:
            raise
        log.info("%s: its classifier is left out, as its classes are not those of the data", what)
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        return
    if order != list(range(len(order))):
        log.info("%s: its outputs are put into the order of the data's classes", what)
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.copy_(parameter[order])
