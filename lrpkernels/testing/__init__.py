"""Sample inputs and float64 references of every op, and the CUDA kernels on the CPU: shared by tests, doctor and benchmarks."""

from .accuracy import Accuracy, accuracies, error_ratio
from .emulation import emulated_cuda
from .layer_samples import CONV_OPS, POOL_OPS, REFERENCES
from .rule_samples import RULE_OPS, RULE_REFERENCES
from .samples import (
    CPU_OPS,
    LAYOUTS,
    OPS,
    POINTWISE_OPS,
    SHAPES,
    Sample,
    arithmetic_dtype,
    lay_out,
    reference,
    samples,
)
