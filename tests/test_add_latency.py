"""Times from elsewhere in a record."""

import shutil
from pathlib import Path

import pytest

from dwsep_zoo.cli import main
from dwsep_zoo.report.results import Run
from dwsep_zoo.schema.record import read_record

FINISHED = Path(__file__).parent / "runs" / "finished"
PHONE = ("device=phone", "device_name=Pixel 9", "runtime=executorch", "threads=4")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FINISHED, tmp_path / "run")


def test_a_time_is_added_and_a_second_one_replaces_it(folder, capsys):
    file = folder / "result.json"
    before = read_record(file).latency
    for p50 in (5.0, 3.25):
        main(["add-latency", str(folder), f"p50_ms={p50}", *PHONE, "runs=50"])
    assert "3.25 ms; phone Pixel 9, 4 threads, batch 1, fp32" in capsys.readouterr().out
    *others, added = read_record(file).latency
    assert tuple(others) == before
    assert (added.p50_ms, added.runs, added.threads) == (3.25, 50, 4)
    assert Run(folder, read_record(file)).record.latency_under(added.conditions) == added


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (PHONE, "p50_ms must be given"),
        (("p50_ms=3",), "device, device_name, runtime must be given"),
        (("p50_ms=0", *PHONE), "p50_ms"),
        (("p50_ms=nan", *PHONE), "p50_ms"),
        (("p50_ms=3", "p90_ms=2", *PHONE), "does not hold"),
        (("p50_ms=3", "thread=2", *PHONE), "threads"),
    ],
)
def test_wrong_words_change_nothing(folder, capsys, words, said):
    before = (folder / "result.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["add-latency", str(folder), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert (folder / "result.json").read_bytes() == before


def test_a_folder_without_a_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["add-latency", str(tmp_path), "p50_ms=3", *PHONE])
    assert "not the folder of a run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
