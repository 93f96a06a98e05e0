"""Seeds of independent random streams: a function of the run's seed, the stream's name and an index."""

from __future__ import annotations

import numpy as np


def stream_seed(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit seed; other streams, and other indices of a stream, get unrelated ones."""
    entropy = [seed, *stream.encode(), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
