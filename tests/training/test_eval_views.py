"""The views of an image whose outputs are averaged."""

import pytest
import torch
from helpers import recipe

from dwsep_zoo.training.eval_views import average, describe_views, views

NAMES = [
    ({"flip": False, "shift": False}, 1, ""),
    ({"flip": True, "shift": False}, 2, "each image and the same mirrored averaged"),
    ({"flip": False, "shift": True}, 3, "moved by a pixel to two sides averaged"),
    ({"flip": True, "shift": True}, 6, "moved by a pixel to two sides and mirrored averaged"),
]


@pytest.mark.parametrize(("which", "count", "words"), NAMES)
def test_the_mean_of_their_outputs(which, count, words):
    images = torch.randn(2, 3, 5, 6).to(memory_format=torch.channels_last)
    shown = views(images, **which)
    assert len(shown) == count
    assert shown[0] is images
    different = {tuple(view.flatten().tolist()) for view in shown}
    assert len(different) == count
    for view in shown:  # the inner pixels are all there, somewhere
        for moved in (images[0, 0, 1:-1, 1:-1], images[0, 0, 1:-1, 1:-1].flip(-1)):
            windows = view[0, 0].unfold(0, moved.shape[0], 1).unfold(1, moved.shape[1], 1)
            if (windows == moved).all(-1).all(-1).any():
                break
        else:
            raise AssertionError("another image")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(90, 4)).bfloat16()
    got = average(lambda x: model(x.bfloat16()), images, **which)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, sum(model(v.bfloat16()).float() for v in shown) / count)
    assert describe_views(recipe(**{f"eval_{k}": v for k, v in which.items()})).endswith(words)
