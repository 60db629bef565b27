import pytest

from dwsep_zoo.schema import process


@pytest.mark.parametrize(
    ("allowed", "processes", "slurm", "each"),
    [
        (8, 1, {}, 8),
        (8, 3, {}, 2),
        (2, 4, {}, 1),
        (4, 2, {"SLURM_PROCID": "1", "SLURM_CPUS_PER_TASK": "4"}, 4),  # bound to its own cores
        (8, 2, {"SLURM_PROCID": "1", "SLURM_CPUS_PER_TASK": "4"}, 4),  # not bound
        (1, 2, {"SLURM_PROCID": "1", "SLURM_CPUS_PER_TASK": "4"}, 1),  # srun did not inherit them
        (8, 2, {"SLURM_PROCID": "1"}, 4),
    ],
)
def test_cores_of_each_process(monkeypatch, allowed, processes, slurm, each):
    monkeypatch.setattr(process, "cores", lambda: list(range(allowed)))
    for name in ("SLURM_PROCID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert process.cores_each(processes) == each
