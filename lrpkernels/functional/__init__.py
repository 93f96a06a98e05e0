"""The relevance operations as differentiable functions, with backward passes derived by hand: one file per family of ops.

Each is an ``autograd.Function`` around one kernel or one vendor convolution. They can be differentiated once (a second derivative
raises), which is what training through a heatmap needs: the heatmap itself is a forward operation here.
"""

from .affine import affine, affine_known, batch_norm_scale, sum_zplus
from .attention import attention_pull, attention_weights, softmax_pull
from .conv import (
    ConvWeight,
    conv_apply,
    conv_box,
    conv_pull,
    conv_pull_by_sign,
    conv_pull_sum,
    conv_weight,
    conv_weight_gradient,
)
from .dense import dense_pull, dense_weight_gradient
from .geometry import ConvGeometry, Weights
from .heatmap import HeatmapScores, has_heatmap_kernels, heatmap_scores, kept_ranks
from .late import Late, late_weight
from .layout import is_capturing, per_channel, select_by_sign, times, wide
from .pointwise import Scaled, epsilon_scale, over_value, ratio
from .pool import average_pool_transpose, average_pull, max_pool, max_pool_winner, scatter_winner
from .sample_norm import sample_norm
from .shapes import uncat, unselect
from .stabilizer import Stabilizer
from .weight_parts import NEGATIVE, POSITIVE, WHOLE, Part, positive_weight

__all__ = [
    "NEGATIVE",
    "POSITIVE",
    "WHOLE",
    "ConvGeometry",
    "ConvWeight",
    "HeatmapScores",
    "Late",
    "Part",
    "Scaled",
    "Stabilizer",
    "Weights",
    "affine",
    "affine_known",
    "attention_pull",
    "attention_weights",
    "average_pool_transpose",
    "average_pull",
    "batch_norm_scale",
    "conv_apply",
    "conv_box",
    "conv_pull",
    "conv_pull_by_sign",
    "conv_pull_sum",
    "conv_weight",
    "conv_weight_gradient",
    "dense_pull",
    "dense_weight_gradient",
    "epsilon_scale",
    "has_heatmap_kernels",
    "heatmap_scores",
    "is_capturing",
    "kept_ranks",
    "late_weight",
    "max_pool",
    "max_pool_winner",
    "over_value",
    "per_channel",
    "positive_weight",
    "ratio",
    "sample_norm",
    "scatter_winner",
    "select_by_sign",
    "softmax_pull",
    "sum_zplus",
    "times",
    "uncat",
    "unselect",
    "wide",
]
