"""Pictures and labels in a table."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator
from pathlib import Path

from dwsep_zoo.data.listing import split_of
from dwsep_zoo.data.rows import Row, labelled
from dwsep_zoo.data.source import CSV, FILES, existing_root
from dwsep_zoo.data.splits import Labelled
from dwsep_zoo.data.store import Files
from dwsep_zoo.errors import UserError, nearest
from dwsep_zoo.schema.data_settings import DataSettings

DELIMITERS = ",;\t|"
SPLIT = "split"


class Csv:
    """Rows of ``data.csv``: a path, a label and, if there is such a column, a split.

    Paths are relative to ``data.root`` or, without one, to the folder of the table. Classes are
    numbered in alphabetical order or, if all are whole numbers, by size. Other columns are ignored.
    """

    options = FILES | CSV

    def __init__(self, settings: DataSettings, data_dir: Path):
        if settings.csv is None:
            raise UserError(f"data={settings.name} needs data.csv=, the table of the pictures")
        root = existing_root(settings)
        below = root / settings.csv if root else Path(settings.csv)
        self.path = below if below.is_file() else Path(settings.csv)
        if not self.path.is_file():
            raise UserError(f"data.csv={settings.csv}: there is no such file")
        self.root = root or self.path.parent
        columns = settings.columns
        self.columns = (columns.path or "path", columns.label or "label", columns.split)

    def prepare(self) -> None:
        """There is nothing to do."""

    def load(self) -> Labelled:
        """Read the table.

        Raises:
            UserError: naming the line, for a row without path or label, a picture that comes twice,
                an unknown split, or a class without training images.
        """
        return labelled(self.path, self._pictures(), Files(self.root))

    def _pictures(self) -> Iterator[Row]:
        rows = self._rows()
        path, label, named = self.columns
        split = named or (SPLIT if SPLIT in next(iter(rows.values()), {}) else None)
        lines: dict[str, int] = {}
        for line, row in rows.items():
            where, name, own = f"{self.path}, line {line}", row[path].strip(), row[label].strip()
            if not name or not own:
                raise UserError(f"{where}: no {label if name else path}")
            name = posixpath.normpath(name)
            if name in lines:
                raise UserError(f"{where}: {name} is in line {lines[name]} too")
            lines[name] = line
            word = row[split] if split else "train"
            given = split_of(word)
            if given is None:
                raise UserError(f"{where}: {split}={word!r} must be train, val or test")
            yield Row(name, own, given, where)

    def _rows(self) -> dict[int, dict[str, str]]:
        """The rows by their line; every one has the columns."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                head = file.readline()
                file.seek(0)
                delimiter = max(DELIMITERS, key=head.count)
                table = csv.DictReader(
                    file, delimiter=delimiter, restval="", strict=True, skipinitialspace=True
                )
                columns = list(table.fieldnames or ())
                for wanted in filter(None, self.columns):
                    if wanted not in columns:
                        near = nearest(wanted, columns)
                        raise UserError(
                            f"{self.path} has no column {wanted!r}"
                            f"{f'; did you mean {near!r}?' if near else ';'} columns: "
                            f"{', '.join(columns) or 'none'}"
                        )
                rows = {}
                for row in table:
                    if any(row.get(None, ())):
                        raise UserError(
                            f"{self.path}, line {table.line_num}: more than {len(columns)} values; "
                            f"a value that contains {delimiter!r} must be in double quotes"
                        )
                    rows[table.line_num] = row
                return rows
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"cannot read {self.path}: {reason}") from error
