"""The submission is the same whatever job, site default or launcher surrounds it."""

from __future__ import annotations

import pytest

from pipeline.training.slurm.submission import Resources, prepare
from pipeline.training.slurm.surroundings import ignored_wishes, submission_environment

OWN = {"PATH": "/bin", "HOME": "/home/me", "AWS_PROFILE": "mine", "OMP_NUM_THREADS": "4", "SLURM_CONF": "/etc/slurm.conf"}
SURROUNDINGS = {
    "salloc": {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "100", "SLURM_NTASKS": "2", "SALLOC_PARTITION": "cpu"},
    "an interactive srun": {"SLURM_JOB_ID": "7", "SLURM_CPU_BIND": "mask", "SRUN_CPUS_PER_TASK": "2", "PMI_SIZE": "2", "PMIX_RANK": "0"},
    "a notebook job with GPUs": {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "3", "SLURMD_NODENAME": "n0"},
    "an element of an array": {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2"},
    "a site that exports nothing": {"SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE"},
    "defaults of the other commands": {"SQUEUE_STATES": "RUNNING", "SCANCEL_STATE": "PENDING", "SCONTROL_ALL": "1"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MPI_LOCALNRANKS": "2"},
    "accelerate launch": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "n0", "TORCHELASTIC_RUN_ID": "none"},
}


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_what_surrounds_a_submission_does_not_reach_the_job(around: str) -> None:
    assert submission_environment(OWN | SURROUNDINGS[around]) == OWN


def test_the_choice_of_cluster_account_and_partition_reaches_slurm_and_so_does_a_choice_of_gpus_outside_of_a_job() -> None:
    chosen = {"SLURM_CLUSTERS": "big", "SLURM_JWT": "token", "SBATCH_ACCOUNT": "me", "SBATCH_PARTITION": "gpu", "CUDA_VISIBLE_DEVICES": "3"}
    assert submission_environment(OWN | chosen) == OWN | chosen


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"SBATCH_SIGNAL": "B:TERM@5", "SBATCH_ARRAY_INX": "0-3"}, ["SBATCH_ARRAY_INX", "SBATCH_SIGNAL"]),
        ({"SBATCH_ACCOUNT": "me", "SBATCH_MEM_PER_NODE": "0"}, ["SBATCH_MEM_PER_NODE"]),
        ({"SBATCH_EXPORT": "NONE", "SBATCH_MEM_BIND": "local", "SBATCH_MEM_BIND_TYPE": "local", "SBATCH_QOS": "low"}, []),
    ],
)
def test_options_of_sbatch_in_the_environment_that_are_not_followed_are_named(environment: dict[str, str], names: list[str]) -> None:
    assert ignored_wishes(OWN | environment) == names


def test_the_export_is_explicit_and_can_be_chosen() -> None:
    settings = ["--data.shards", "/data/set"]
    assert "--export=ALL" in prepare(Resources(), settings).command
    chosen = prepare(Resources(options=[("export", "NONE")]), settings).command
    assert [word for word in chosen if word.startswith("--export")] == ["--export=NONE"]
