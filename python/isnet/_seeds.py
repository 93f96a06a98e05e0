"""Seeds of independent random streams: a function of the run's seed, the stream's name and an index."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def stream_seed(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit seed; other streams, and other indices of a stream, get unrelated ones."""
    entropy = [seed, *stream.encode(), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of PyTorch (on the CPU), NumPy and Python in the block; afterwards they are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
