"""The processes that SLURM's ``srun`` has started, told to PyTorch as ``torchrun`` would.

Source: srun(1), "OUTPUT ENVIRONMENT VARIABLES"; torch.distributed, "Environment variable initialization".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

_FIRST_PORT, _PORTS = 15000, 20000  # of the meeting point; each job gets its own
_OF_A_STEP = {"SLURM_STEP_ID", "SLURM_STEPID", "MASTER_ADDR"}  # the last: set by the user, for srun
_LISTED = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a process that srun has started beside others.

    Nothing changes where they are set (by torchrun) and for a single task.

    Args:
        environment: Of the process.

    Raises:
        ValueError: variables that are missing or contradict each other; the text names them. Or several tasks were asked for, and this
            is the batch script itself, which runs once.
    """
    if "WORLD_SIZE" in environment or "SLURM_PROCID" not in environment:
        return
    size = _number(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    if size == 1:
        return
    if "SLURM_JOB_ID" in environment and environment["SLURM_PROCID"] == "0" and not environment.keys() & _OF_A_STEP:
        raise ValueError(
            f"SLURM_NTASKS: {size} tasks, but srun did not start this process: put srun before the command, or, for one process, "
            "unset SLURM_NTASKS and SLURM_PROCID"
        )
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    if rank >= size or local > rank:
        raise ValueError(f"SLURM_PROCID, SLURM_LOCALID: expected a process of {size}, got {rank}, {local}")
    found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local}
    environment["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _first_host(environment)
    environment["MASTER_PORT"] = environment.get("MASTER_PORT") or str(_port(environment))
    environment.update({name: str(value) for name, value in found.items()})


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(
            f"{name}: expected a number, as srun sets it, got {text!r}; start the processes with srun or torchrun"
        )
    return int(text)


def _first_host(environment: Mapping[str, str]) -> str:
    """The first host of a list such as ``node[03-05,7],login1``."""
    listed = next((environment[name] for name in _LISTED if environment.get(name)), "")
    found = re.match(r"([\w.-]+)(?:\[(\w+)[^\]]*\]([\w.-]*))?", listed)
    if found is None:
        raise ValueError(
            f"MASTER_ADDR: not set, and no host in SLURM_JOB_NODELIST ({listed!r}); name the host of process 0"
        )
    return "".join(part or "" for part in found.groups())


def _port(environment: Mapping[str, str]) -> int:
    job = environment.get("SLURM_JOB_ID", "0")
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", "0"))
    return _FIRST_PORT + (int(job if job.isdigit() else 0) + 97 * int(step if step.isdigit() else 0)) % _PORTS
