import pytest

from dwsep_zoo.schema import process

SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_CPUS_PER_TASK": "4"}


@pytest.mark.parametrize(
    ("allowed", "processes", "variables", "each"),
    [
        (8, 1, {}, 8),
        (8, 3, {}, 2),
        (2, 4, {}, 1),
        (4, 2, SRUN, 4),  # bound to its own cores
        (8, 2, SRUN, 4),  # not bound
        (1, 2, SRUN, 1),  # srun was not told of them
        (8, 2, {"SLURM_STEP_NUM_TASKS": "2"}, 4),
        (8, 2, {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_CPUS_PER_TASK": "8"}, 4),  # a script
        (8, 2, {**SRUN, "SLURM_CPUS_PER_TASK": "8", "RANK": "0"}, 4),  # torchrun
    ],
)
def test_cores_of_each_process(monkeypatch, allowed, processes, variables, each):
    monkeypatch.setattr(process, "cores", lambda: list(range(allowed)))
    for name in (*SRUN, "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process.cores_each(processes) == each
