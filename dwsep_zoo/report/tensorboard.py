"""TensorBoard besides the curves: HPARAMS of a run, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SUFFIX = ".comparison"
SHOWN = 5  # columns of hyperparameters that TensorBoard's page ticks by itself
# Custom scalars: charts by title, each with the regular expressions of its tags.
LAYOUT = {
    title: {
        name: ["Multiline", [f"^{split}/{metric}$"]]
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
        hparams: names and values; TensorBoard shows the first five, the others on demand.
        metrics: values by tag, see ``hparams_metrics``; ``None`` or NaN: not measured yet. A column
            shows the last scalar of its tag, whoever wrote it.
        finished: end the session.
        step: place of the values in the scalar charts.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    def add(tag: str, **content: Any) -> None:
        data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        value = Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)
        writer._get_file_writer().add_summary(Summary(value=[value]))

    start = plugin_data_pb2.SessionStartInfo()
    infos = []
    for place, (name, value) in enumerate(hparams.items()):
        field, kind = _KINDS[type(value)]
        setattr(start.hparams[name], field, value)
        # Columns marked as differing come first; a single run cannot know which do.
        infos.append(api_pb2.HParamInfo(name=name, type=kind, differs=place < SHOWN))
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


def write_comparison(folder: Path, text: str, pictures: Mapping[str, Any]) -> None:
    """Write one events file into ``folder``, in place of the one of an earlier comparison.

    It also lays out CUSTOM SCALARS: the curves of all runs that TensorBoard finds, accuracy and
    loss, in common charts.

    Args:
        folder: becomes, or already is, a run of TensorBoard.
        text: markdown.
        pictures: arrays ``(height, width, channels)`` of bytes, by name.
    """
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(folder.glob(f"events.out.tfevents.*{SUFFIX}"))
    writer = SummaryWriter(str(folder), filename_suffix=SUFFIX)
    writer.add_text("comparison/table", text)
    for name, picture in pictures.items():
        writer.add_image(f"comparison/{name}", picture, dataformats="HWC")
    writer.add_custom_scalars(LAYOUT)
    writer.close()
    for file in earlier:
        file.unlink()
