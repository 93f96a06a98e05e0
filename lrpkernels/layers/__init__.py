"""What each PyTorch function means in a recording, one file per family. Importing this package fills the table of records."""

from . import (
    activation,
    arithmetic,
    attention,
    batch_norm,
    embedding,
    linear,
    pooling,
    products,
    replayed,
    sample_norms,
    shapes,
)
from .block import Block, can_merge
