"""Pictures of the data set inside a report, where their files can be reached."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePath

from dwsep_zoo.report.class_pairs import ClassPair

MOST, SIDE = 12, 112  # examples of a pair; pixels of the longer side


@dataclass(frozen=True)
class Example:
    """An image on which two networks disagree.

    Attributes:
        name: of its file, or its number in the data set.
        true, taken_for: its class, and the one that the network predicts in its first seed.
        uri: the picture, small, as a data URI; ``None``: it cannot be reached.
    """

    name: str
    true: str
    taken_for: str
    uri: str | None


def examples(pair: ClassPair) -> list[Example]:
    """Images that only the reference classifies correctly, surest mistakes first."""
    found, names = pair.predictions, pair.class_names
    if found.name is None:
        return []
    given = pair.row.record.configured("data.root")
    root = Path(given).expanduser() if isinstance(given, str) else None
    return [
        Example(
            str(found.name[place]),
            names[found.label[place]],
            names[found.predicted[place]],
            _small(root, str(found.name[place])) if root else None,
        )
        for place in pair.only_reference[:MOST].tolist()
    ]


def _small(root: Path, name: str) -> str | None:
    """A picture below the folder, encoded anew; ``None`` for whatever is no picture there."""
    from dwsep_zoo.data.decode import read_picture

    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        return None
    try:
        image = read_picture(root / name)
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=80)
    # Pillow raises errors of many kinds, and pictures are an extra.
    except Exception:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
