"""The relevance operations as differentiable functions, with backward passes derived by hand.

Each is an ``autograd.Function`` around one kernel or one vendor convolution. They can be differentiated once (a second derivative
raises), which is what training through a heatmap needs: the heatmap itself is a forward operation here.
"""

from . import _cpu_rule_ops  # noqa: F401  (registers the CPU ops of the heatmap loss)
from ._conv_routes import has_fused_conv, has_fused_kernels
from ._vendor import ConvGeometry, Weights
from .affine_maps import affine, affine_known, batch_norm_scale, has_affine_kernels, sum_zplus
from .conv import conv_epsilon, conv_map, conv_transpose
from .conv_parts import conv_box, conv_part, conv_share
from .heatmap_sums import HeatmapScores, heatmap_scores, kept_ranks
from .maps import linear_adjoint, scatter_winner, uncat
from .pointwise import epsilon_scale, ratio
from .pool import average_pool_transpose, max_pool_winner
from .shared_weight import SharedWeight, linear_transpose, shared_conv, shared_linear, sharing_pays
from .weight_parts import positive_weight

__all__ = [
    "ConvGeometry",
    "HeatmapScores",
    "SharedWeight",
    "Weights",
    "affine",
    "affine_known",
    "average_pool_transpose",
    "batch_norm_scale",
    "conv_box",
    "conv_epsilon",
    "conv_map",
    "conv_part",
    "conv_share",
    "conv_transpose",
    "epsilon_scale",
    "has_affine_kernels",
    "has_fused_conv",
    "has_fused_kernels",
    "heatmap_scores",
    "kept_ranks",
    "linear_adjoint",
    "linear_transpose",
    "max_pool_winner",
    "positive_weight",
    "ratio",
    "scatter_winner",
    "shared_conv",
    "shared_linear",
    "sharing_pays",
    "sum_zplus",
    "uncat",
]
