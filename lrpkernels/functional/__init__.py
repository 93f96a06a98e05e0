"""The relevance operations as differentiable functions, with backward passes derived by hand.

Each is an ``autograd.Function`` around one kernel or one vendor convolution. They can be differentiated once (a second derivative
raises), which is what training through a heatmap needs: the heatmap itself is a forward operation here.
"""

from .conv import ConvGeometry, conv_epsilon, conv_known, conv_transpose, has_fused_kernels
from .maps import linear_adjoint, scatter_winner, uncat
from .pointwise import epsilon_scale, ratio
from .pool import average_pool_transpose, max_pool_winner

__all__ = [
    "ConvGeometry",
    "average_pool_transpose",
    "conv_epsilon",
    "conv_known",
    "conv_transpose",
    "epsilon_scale",
    "has_fused_kernels",
    "linear_adjoint",
    "max_pool_winner",
    "ratio",
    "scatter_winner",
    "uncat",
]
