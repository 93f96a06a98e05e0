"""Runs ``isnet`` in processes forked from one that has imported everything, which takes longer than what tests train.

    python forked.py '[[2, "train", "folder", ...], [1, ...]]'

Each list is a number of processes, which find each other as those of torchrun do, and the words of the command; one runs after
the other. Prints, for each, ``exit:`` and the statuses.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch

from isnet import cli, runs  # noqa: F401


def command(words: list[str]) -> int:
    """The exit status of the command line."""
    sys.argv = ["isnet", *words]
    try:
        cli.main()
    except SystemExit as done:
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)
        return int(bool(done.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def forked(processes: int, words: list[str]) -> list[int]:
    """The exit statuses of the processes."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": str(True)}
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            if processes > 1:
                os.environ.update(world, RANK=str(rank), WORLD_SIZE=str(processes), TORCHELASTIC_RESTART_COUNT="0")
            status = command(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports as much again
    for processes, *words in json.loads(sys.argv[1]):
        print("exit:", *forked(processes, words), flush=True)
