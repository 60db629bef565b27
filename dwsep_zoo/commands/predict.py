"""``dwsep predict``: what a trained network says about pictures."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, Number, read
from dwsep_zoo.errors import UserError, say
from dwsep_zoo.files import check_writable
from dwsep_zoo.schema.texts import Place

if TYPE_CHECKING:
    from dwsep_zoo.artefacts import Artefact, Prediction


class PredictArguments(Arguments):
    """Name the classes of pictures: files, folders, patterns, addresses; - is standard input."""

    top_k: Number = Field(5, description="classes to name")
    batch_size: Number = Field(32, description="pictures at a time")
    format: Literal["text", "json", "csv"] = Field(
        "text", description="of the output; --json and --csv do the same"
    )
    save: Place | None = Field(None, description="folder for the pictures with their classes")
    cam: bool = Field(False, description="save= shows where the first class was seen, too")
    private: bool = Field(False, description="ask servers of this machine and its network, too")


@dataclass
class Item:
    """A picture and its name."""

    name: str
    picture: Any  # of Pillow


def run(arguments: list[str]) -> None:
    short = {"--json": "format=json", "--csv": "format=csv", "--cam": "cam=true"}
    words = [short.get(word, word) for word in arguments if word != "-"]
    paths, options = read("predict", words, PredictArguments, words="ARTEFACT PICTURE ...")
    paths += ["-"] * ("-" in arguments)
    if len(paths) < 2:
        raise UserError("predict: for example: dwsep predict logs/train/runs/RUN picture.jpg")
    if options.cam and not options.save:
        raise UserError("cam=true needs a folder for the pictures: save=FOLDER")
    if options.save:
        check_writable("save", Path(options.save))
    from dwsep_zoo.artefacts import open_artefact

    names = list(_named(paths[1:]))
    artefact = open_artefact(paths[0])
    if options.cam and artefact.model is None:
        raise UserError(
            f"cam=true needs the network itself, a run or a checkpoint; {paths[0]} is a file of "
            f"{artefact.format}"
        )
    failed = _write(artefact, names, options, sys.stdout)
    if failed:
        sys.exit(2)


def _named(words: Sequence[str]) -> Iterator[Any]:
    """The pictures: paths, addresses, or one of standard input with its name."""
    from dwsep_zoo.artefacts.sources import STDIN, from_stdin, pictures_in

    for word in words:
        if word != STDIN:
            yield from pictures_in([word])
            continue
        given = from_stdin()
        if isinstance(given, list):
            yield from pictures_in(given)
        else:
            yield Item("standard input", given)


def _write(artefact: Artefact, names: list[Any], options: PredictArguments, out: TextIO) -> int:
    """Predict and print; returns the number of pictures that could not be read."""
    from dwsep_zoo.artefacts.sources import download, is_address
    from dwsep_zoo.data.progress import progress

    def pictures() -> Iterator[Any]:
        for name in names:
            if isinstance(name, Item):
                yield name.picture
            elif is_address(name):
                yield partial(download, name, private=options.private)
            else:
                yield name

    writer = _WRITERS[options.format](out)
    failed, number = 0, 0
    with progress(f"predicting {len(names)} pictures", len(names)) as advance:
        batches = artefact.predict_batches(
            pictures(), top_k=options.top_k, batch_size=options.batch_size
        )
        for batch, found in batches:
            for picture, one in zip(batch, found, strict=True):
                name = names[number]
                text = name.name if isinstance(name, Item) else str(name)
                number += 1
                if isinstance(one, UserError):
                    failed += 1
                    say(one)
                    continue
                writer.add(text, one)
                if options.save:
                    from dwsep_zoo.artefacts.overlay import save_annotated

                    save_annotated(artefact, picture, text, one, Path(options.save), options.cam)
            advance(len(batch))
    writer.close()
    return failed


class _Text:
    """A line for each picture."""

    def __init__(self, out: TextIO):
        self.out = out

    def add(self, name: str, found: Prediction) -> None:
        pairs = zip(found.classes, found.probabilities, strict=True)
        print(f"{name}: " + ", ".join(f"{label} {p:.1%}" for label, p in pairs), file=self.out)

    def close(self) -> None:
        self.out.flush()


class _Csv:
    """A row for each picture: its name, then a class and its probability in turns."""

    def __init__(self, out: TextIO):
        self.rows, self.begun = csv.writer(out, lineterminator="\n"), False

    def add(self, name: str, found: Prediction) -> None:
        if not self.begun:
            ranks = range(1, len(found.classes) + 1)
            self.rows.writerow(["picture", *(f"{k}{i}" for i in ranks for k in ("class", "p"))])
            self.begun = True
        pairs = zip(found.classes, found.probabilities, strict=True)
        self.rows.writerow([name, *(v for label, p in pairs for v in (label, f"{p:.6f}"))])

    def close(self) -> None:
        pass


class _Json:
    """A list of objects."""

    def __init__(self, out: TextIO):
        self.out, self.begun = out, False
        self.out.write("[")

    def add(self, name: str, found: Prediction) -> None:
        pairs = zip(found.classes, found.probabilities, strict=True)
        entry = {"picture": name, "classes": [{"class": c, "p": round(p, 6)} for c, p in pairs]}
        self.out.write((",\n " if self.begun else "\n ") + json.dumps(entry, ensure_ascii=False))
        self.begun = True

    def close(self) -> None:
        self.out.write("\n]\n")


_WRITERS: dict[str, Any] = {"text": _Text, "json": _Json, "csv": _Csv}
