"""``dwsep compare``: a report on all runs below some folders."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dwsep_zoo.commands.arguments import Arguments, Texts, read
from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.texts import Place, checked_place


class CompareArguments(Arguments):
    """Compare finished runs; a filter takes one value or several, as in conv=standard,grouped."""

    out: Place | None = Field(
        None, description="folder of the report; null: the sweep's, or a new one in logs/compare"
    )
    by: Texts = Field(("model",), description="order of the rows: by=model,conv")
    reference: str = Field("standard", description="conv type, or model/conv, of ratio 1")
    model: Texts | None = Field(None, description="only these models")
    conv: Texts | None = Field(None, description="only these conv types")
    width_mult: Texts | None = Field(None, description="only these widths")
    output_stride: Texts | None = Field(None, description="only these output strides")
    match: Texts | None = Field(None, description="only these budgets; match=null: only without")
    teacher: Texts | None = Field(None, description="only students of these, or kd, js; null: none")
    format: Texts | None = Field(None, description="only these exported files; null: only runs")
    seed: Texts | None = Field(None, description="only these seeds")
    data: Texts | None = Field(None, description="only these data sets")
    tags: Texts | None = Field(None, description="only runs with one of these tags")


def run(arguments: list[str]) -> None:
    paths, options = read("compare", arguments, CompareArguments, words="FOLDER ...")
    if not paths:
        raise UserError("compare: name the folders of the runs, for example: dwsep compare logs")
    from dwsep_zoo.report import Options, compare
    from dwsep_zoo.report.table import FIELDS

    given = [name for name in FIELDS if name in options.model_fields_set]
    where = {name: getattr(options, name) or ("null",) for name in given}
    compare(
        [Path(checked_place("folder", path)) for path in paths],
        Path(options.out) if options.out else None,
        options=Options(by=options.by, reference=options.reference, where=where),
    )
