"""The public FasterISNet code (github.com/PedroRASB/FasterISNet): its trained weights in models and runs of isnet, its classes' names.

``weights``: what its checkpoints hold, loaded into a classifier or a run. ``flex``: ``ISNetFlex`` and ``CompoundLoss`` for code that calls
them. ``training`` (extra ``lightning``): ``ISNetFlexLgt`` and ``ISNetLgt`` by their constructors' arguments.
"""

from .flex import CompoundLoss, ISNetFlex
from .weights import add_transition_relus, convert_state_dict, load_weights, read_checkpoint, save_run

__all__ = [
    "CompoundLoss",
    "ISNetFlex",
    "add_transition_relus",
    "convert_state_dict",
    "load_weights",
    "read_checkpoint",
    "save_run",
]
