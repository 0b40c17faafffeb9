"""The environment that SLURM's commands are called with: the caller's, without the variables of a job, site default or launcher around it.

`sbatch` hands the whole environment on, and SLURM sets a variable of the new job only where the job has what the variable counts. A shell
inside an allocation (salloc, an interactive srun, a notebook) would therefore give the new job its own memory, GPUs or array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_KEPT = re.compile(
    "SLURM_(CONF|CONF_SERVER|CLUSTERS|JWT|SACK_KEY|SACK_JWKS|DEBUG_FLAGS|TIME_FORMAT)"  # which cluster, and how to talk to it
    "|SBATCH_(ACCOUNT|CLUSTERS|CONSTRAINT|PARTITION|QOS|RESERVATION|TIMELIMIT|WCKEY)"  # where a job runs, for how long, and who pays
)
_OF_SLURM = ("SLURM_", "SLURMD_", "SALLOC_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SCONTROL_")
_OF_LAUNCHERS = re.compile(
    "(PMI|PMI2|PMIX|OMPI|PRTE|MV2|HYDRA|TORCHELASTIC)_.*|MPI_LOCAL(RANKID|NRANKS)"
    "|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_ADDR|MASTER_PORT"
)
_OF_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
_ANSWERED = re.compile("SBATCH_(EXPORT|JOB_NAME|OUTPUT|((CPU|MEM)_BIND.*))")


def submission_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment to call SLURM's commands with: variables that choose the cluster, the account, the partition and the like stay, other
    variables of SLURM and of launchers go. Inside a job its choice of GPUs goes, too.

    Args:
        environment: environment of the caller.
    """
    inside = "SLURM_JOB_ID" in environment
    return {
        name: value
        for name, value in environment.items()
        if _KEPT.fullmatch(name) or not (name.startswith(_OF_SLURM) or _OF_LAUNCHERS.fullmatch(name) or (inside and name in _OF_GPUS))
    }


def ignored_wishes(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables by which the caller or the site gives options to `sbatch` that are not followed.

    SLURM itself sets some (SBATCH_MEM_BIND), and this program's own options take the place of others (SBATCH_EXPORT); these are left out.

    Args:
        environment: environment of the caller.
    """
    wishes = [name for name in environment if name.startswith("SBATCH_")]
    return sorted(name for name in wishes if not (_KEPT.fullmatch(name) or _ANSWERED.fullmatch(name)))
