"""TensorBoard besides the curves: HPARAMS of a run, and the comparison."""

from __future__ import annotations

import io
import math
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwsep_zoo.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SUFFIX, IN_TURNS, PICTURES = ".comparison", ".turns", ".pictures"
SHOWN = 4  # hyperparameters with a column; more would push the results out of a page's width
# Custom scalars: charts by title, each with the regular expression of its tags.
LAYOUT = {
    title: {
        name: f"^{split}/{metric}$"
        for name, split in (("validation", "val"), ("training", "train"))
    }
    for title, metric in (("accuracy", "acc"), ("loss", "loss"))
}
_KINDS = {
    bool: ("bool_value", "DATA_TYPE_BOOL"),
    int: ("number_value", "DATA_TYPE_FLOAT64"),
    float: ("number_value", "DATA_TYPE_FLOAT64"),
    str: ("string_value", "DATA_TYPE_STRING"),
}


def write_hparams(
    writer: SummaryWriter,
    hparams: Mapping[str, bool | int | float | str],
    metrics: Mapping[str, float | None],
    *,
    trial: str = "",
    finished: bool = False,
    step: int | None = None,
) -> None:
    """Fill HPARAMS in the run of ``writer`` itself.

    ``SummaryWriter.add_hparams`` makes a second run (pytorch#32651), whose metrics are apart from
    the curves. Call this at the start, so that the run is listed while it trains, and at the end
    with the final values. TensorBoard takes the columns from the first run that it finds: use the
    same names in all runs.

    Args:
        writer: writes the events of the run.
        hparams: names and values; the first four are columns, the others are only recorded.
        metrics: values by tag, see ``hparams_metrics``; ``None`` or NaN: not measured yet. A column
            shows the last scalar of its tag, whoever wrote it.
        trial: name of the run in the page, which also sorts by it; empty: its path. Runs of one
            name become one.
        finished: end the session.
        step: place of the values in the scalar charts.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    def add(tag: str, **content: Any) -> None:
        data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        value = Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)
        writer._get_file_writer().add_summary(Summary(value=[value]))

    start = plugin_data_pb2.SessionStartInfo(group_name=trial)
    infos = []
    for place, (name, value) in enumerate(hparams.items()):
        field, kind = _KINDS[type(value)]
        setattr(start.hparams[name], field, value)
        if place < SHOWN:
            infos.append(api_pb2.HParamInfo(name=name, type=kind))
    columns = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in metrics]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=columns)
    add(metadata.EXPERIMENT_TAG, experiment=experiment)
    add(metadata.SESSION_START_INFO_TAG, session_start_info=start)
    if finished:
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
        add(metadata.SESSION_END_INFO_TAG, session_end_info=end)
    for name, number in metrics.items():
        if number is not None and math.isfinite(number):
            writer.add_scalar(name, number, step)
    writer.flush()


def write_comparison(folder: Path, text: str, pictures: Mapping[str, bytes]) -> None:
    """Write one events file into ``folder``, in place of the one of an earlier comparison.

    It also lays out CUSTOM SCALARS: the curves of all runs that TensorBoard finds, accuracy and
    loss, in common charts.

    Args:
        folder: becomes, or already is, a run of TensorBoard.
        text: markdown.
        pictures: PNG files by name.
    """
    values = [_text("comparison/table/text_summary", "text", text.encode(), one=True)]
    values += [_image(f"comparison/{name}", picture) for name, picture in pictures.items()]
    values.append(_text("custom_scalars__config__", "custom_scalars", _layout()))
    _replace(folder, SUFFIX, values)


def write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write PNG files by name, in place of the earlier ones, into a run's folder."""
    _replace(folder, PICTURES, [_image(f"run/{name}", png) for name, png in pictures.items()])


def write_scalars(folder: Path, values: Mapping[str, float]) -> None:
    """Write values that take the places of earlier ones in HPARAMS, in a file of their own."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    summaries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    _replace(folder, IN_TURNS, summaries)


def _replace(folder: Path, suffix: str, values: Iterable[Any]) -> None:
    """Write an events file as a whole, then remove the earlier ones of its kind.

    TensorBoard's own writer has a thread, from which the error of a full disk would not come back.

    Raises:
        OSError: which names the file.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    content = io.BytesIO()
    records = RecordWriter(content)
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for value in values:
        event = Event(wall_time=now, summary=Summary(value=[value]))
        records.write(event.SerializeToString())
    folder.mkdir(parents=True, exist_ok=True)
    # Also a part that a killed process left, which TensorBoard would read.
    earlier = list(folder.glob(f"events.out.tfevents.*{suffix}*"))
    # TensorBoard reads files in the order of their names. Its own have the process here, a number,
    # so the z puts this one behind those of the same second.
    origin = f"{socket.gethostname()}.z{time.time_ns()}"
    name = f"events.out.tfevents.{int(now)}.{origin}{suffix}"
    atomic_write(folder / name, content.getvalue())
    for file in earlier:
        file.unlink()


def _image(tag: str, png: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=tag, image=image)


def _text(tag: str, plugin: str, content: bytes, *, one: bool = False) -> Any:
    """A summary of text; ``one``: in a list of one, as TensorBoard's TEXT wants it."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)] if one else [])
    tensor = TensorProto(dtype="DT_STRING", string_val=[content], tensor_shape=shape)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def _layout() -> bytes:
    from tensorboard.plugins.custom_scalar import layout_pb2

    def chart(title: str, tag: str) -> Any:
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[tag]))

    categories = [
        layout_pb2.Category(title=title, chart=[chart(*pair) for pair in charts.items()])
        for title, charts in LAYOUT.items()
    ]
    content: bytes = layout_pb2.Layout(category=categories).SerializeToString()
    return content
