"""What TensorBoard shows besides the curves: HPARAMS of a run, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SUFFIX = ".comparison"
Status = Literal["running", "finished", "failed", "interrupted"]


def write_hparams(
    writer: SummaryWriter,
    hparams: Mapping[str, bool | int | float | str | None],
    metrics: Mapping[str, float | None],
    *,
    status: Status = "running",
    step: int | None = None,
) -> None:
    """Fill HPARAMS in the run of ``writer`` itself.

    ``SummaryWriter.add_hparams`` makes a second run for it (pytorch#32651), whose metrics are apart
    from the curves. Call this at the start, so that the run is listed while it trains, and at the
    end with the final values. TensorBoard takes the columns from the first run that it finds: use
    the same names in all runs.

    Args:
        writer: of the run.
        hparams: names and values; ``None`` is left empty.
        metrics: columns and their values; a value that is ``None`` or not finite is not there yet.
            A column shows the last scalar of its name, whoever wrote it.
        status: anything but ``running`` ends the session.
        step: where the values stand in the scalar charts.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from torch.utils.tensorboard.summary import hparams as hparams_summaries

    experiment, start, _ = hparams_summaries(dict(hparams), dict(metrics))
    summaries = [experiment, start]
    if status != "running":
        success = api_pb2.STATUS_SUCCESS if status == "finished" else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=success),
            version=metadata.PLUGIN_DATA_VERSION,
        )
        summaries.append(_summary(metadata, end))
    file_writer = writer._get_file_writer()
    for summary in summaries:
        file_writer.add_summary(summary)
    for tag, value in metrics.items():
        if value is not None and math.isfinite(value):
            writer.add_scalar(tag, value, step)
    writer.flush()


def write_comparison(folder: Path, text: str, pictures: Sequence[Any]) -> None:
    """Write one events file into ``folder``, instead of the one of an earlier comparison.

    Args:
        folder: becomes or already is a run of TensorBoard.
        text: markdown.
        pictures: arrays ``(height, width, channels)`` of bytes.
    """
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(folder.glob(f"events.out.tfevents.*{SUFFIX}"))
    writer: Any = SummaryWriter(str(folder), filename_suffix=SUFFIX)
    writer.add_text("comparison/table", text)
    for number, picture in enumerate(pictures, 1):
        name = "comparison/figure" + (f"_{number}" if len(pictures) > 1 else "")
        writer.add_image(name, picture, dataformats="HWC")
    writer.close()
    for file in earlier:
        file.unlink()


def _summary(metadata: Any, end: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=end.SerializeToString()
    )
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=SummaryMetadata(plugin_data=plugin)
    )
    return Summary(value=[value])
