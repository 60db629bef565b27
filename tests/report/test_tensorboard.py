"""Events are read back with TensorBoard's own code."""

from __future__ import annotations

import errno
import json
from io import BytesIO

import pytest
from PIL import Image
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from torch.utils.tensorboard import SummaryWriter

from dwsep_zoo import files
from dwsep_zoo.report.tensorboard import write_comparison, write_hparams, write_scalars

pytestmark = pytest.mark.bounds

HPARAMS = {
    "model": "xception",
    "conv": "standard",
    "seed": 3,
    "width_mult": 0.25,
    "ema": True,
    "lr": 0.1,
}
START = {"test/acc": float("nan"), "perf/macs": 5.0, "perf/train_s": None}
END = {"test/acc": 0.9, "perf/macs": 5.0, "perf/train_s": 7.0}


class Page:
    """What the HPARAMS page asks the server for."""

    def __init__(self, logs):
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(logs))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(logs))
        self.backend = Context(TBContext(data_provider=provider))

    def groups(self):
        request = api_pb2.ListSessionGroupsRequest(
            start_index=0,
            slice_size=100,
            include_metrics=True,
            allowed_statuses=api_pb2.Status.values(),
        )
        request_context = context.RequestContext()
        handler = list_session_groups.Handler(request_context, self.backend, "", request)
        return {group.name: group for group in handler.run().session_groups}

    def experiment(self):
        request = api_pb2.GetExperimentRequest(include_metrics=True)
        handler = get_experiment.Handler(context.RequestContext(), self.backend, "", request)
        return handler.run()


def values(group):
    return {metric.name.tag: metric.value for metric in group.metric_values}


def test_hparams_while_running_and_at_the_end(tmp_path):
    writers = {name: SummaryWriter(str(tmp_path / name)) for name in ("done", "training")}
    for writer in writers.values():
        write_hparams(writer, HPARAMS, START)
    writers["training"].add_scalar("test/acc", 0.4, 1)
    write_hparams(writers["done"], HPARAMS, END, finished=True, step=10)
    for writer in writers.values():
        writer.close()

    page = Page(tmp_path)
    groups = page.groups()
    assert set(groups) == {"done", "training"}  # no second run for the metrics
    assert values(groups["done"]) == pytest.approx(END)
    assert values(groups["training"]) == pytest.approx({"test/acc": 0.4, "perf/macs": 5.0})
    status = {name: group.sessions[0].status for name, group in groups.items()}
    assert status == {"done": api_pb2.STATUS_SUCCESS, "training": api_pb2.STATUS_UNKNOWN}
    hparams = groups["done"].hparams
    assert hparams["model"].string_value == "xception"
    assert hparams["width_mult"].number_value == 0.25
    assert hparams["ema"].bool_value is True


def test_trials_have_names_by_which_the_page_sorts_them(tmp_path):
    for number in (2, 10):
        with SummaryWriter(str(tmp_path / f"train/{number}")) as writer:
            write_hparams(writer, HPARAMS, END, trial=f"xception s{number:02}")
    assert list(Page(tmp_path).groups()) == ["xception s02", "xception s10"]


def test_later_values_take_the_places_of_earlier_ones(tmp_path):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        write_hparams(writer, HPARAMS, END, finished=True, step=10)
    for value in (3.0, 4.0):
        write_scalars(tmp_path / "run", {"perf/train_s": value})
        (group,) = Page(tmp_path).groups().values()
        assert values(group) == pytest.approx(END | {"perf/train_s": value})
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_the_first_four_hparams_are_columns(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        write_hparams(writer, {"z": 1, "y": 2, "x": 3, "w": 4, "v": 5, "a": 6, "b": 7}, START)
    experiment = Page(tmp_path).experiment()
    assert {info.name for info in experiment.hparam_infos} == {"w", "x", "y", "z"}
    assert [info.name.tag for info in experiment.metric_infos] == list(START)


def test_final_values_are_points_of_the_runs_own_curves(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("test/acc", 0.2, 1)
        write_hparams(writer, HPARAMS, END, finished=True, step=10)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("test/acc")] == [
        (1, 0.2),
        (10, 0.9),
    ]


def test_comparison_is_text_and_picture_in_one_file(tmp_path):
    png = BytesIO()
    Image.new("RGBA", (6, 4)).save(png, "PNG")
    picture = png.getvalue()
    (tmp_path / "events.out.tfevents.1.training").touch()  # somebody else's
    write_comparison(tmp_path, "old", {"comparison": picture})
    write_comparison(tmp_path, "| a |", {"comparison": picture, "roofline": picture})
    (file,) = tmp_path.glob("*.comparison")
    assert (tmp_path / "events.out.tfevents.1.training").exists()
    events = EventAccumulator(str(file)).Reload()
    (text,) = events.Tensors("comparison/table/text_summary")
    assert text.tensor_proto.string_val == [b"| a |"]
    assert events.Tags()["images"] == ["comparison/comparison", "comparison/roofline"]
    (image,) = events.Images("comparison/roofline")
    assert (image.height, image.width) == (4, 6)


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    write_scalars(tmp_path, {"a": 1.0})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write_scalars(tmp_path, {"a": 2.0})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")
def test_custom_scalars_show_the_curves_of_all_runs_in_common_charts(tmp_path):
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

    for run in ("a", "b"):
        with SummaryWriter(str(tmp_path / run)) as writer:
            for tag in ("train/loss", "train/loss_step", "train/acc", "val/loss", "val/acc"):
                writer.add_scalar(tag, 0.5, 1)
    write_comparison(tmp_path / "sweep", "", {})
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    page = TBContext(data_provider=provider, multiplexer=multiplexer, plugin_name_to_instance={})
    page.plugin_name_to_instance["scalars"] = ScalarsPlugin(page)
    plugin = CustomScalarsPlugin(page)
    request = context.RequestContext()
    layout = json.loads(plugin.layout_impl(request, ""))
    charts = {
        (category["title"], chart["title"]): chart["multiline"]["tag"]
        for category in layout["category"]
        for chart in category["chart"]
    }
    found = {
        title: [
            list(plugin.scalars_impl(request, run, tag, "")["tag_to_events"]) for run in ("a", "b")
        ]
        for title, (tag,) in charts.items()
    }
    assert found == {
        ("accuracy", "validation"): [["val/acc"]] * 2,
        ("accuracy", "training"): [["train/acc"]] * 2,
        ("loss", "validation"): [["val/loss"]] * 2,
        ("loss", "training"): [["train/loss"]] * 2,
    }
