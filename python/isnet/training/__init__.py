"""Training: the loop, its steps and their schedule, validation, checkpoints, several processes, natural ranges of relevance."""

from isnet.training.loop import BEST_NAME, CHECKPOINT_NAME, fit

__all__ = ["BEST_NAME", "CHECKPOINT_NAME", "fit"]
