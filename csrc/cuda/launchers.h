// The C interface of every CUDA launcher. Raw pointers, sizes and a stream; the result is a cudaError_t as int (0 = success).
// Callers check shapes, dtypes, devices and layout; launchers check only grid limits. Empty tensors launch nothing.
#pragma once
#include <cstdint>

// Storage type of the tensors; arithmetic is float, or double for kFloat64.
enum LrpDtype : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Forward values hold `numel` elements; multipliers and gradients hold `targets * numel`, target-major.
// The channel of element i is (i / inner) % channels. Per-channel tensors are in the arithmetic dtype.
struct LrpExtent {
  int64_t numel;
  int64_t targets;
  int64_t channels;
  int64_t inner;
};

extern "C" {
// addend, output, scale may be null.
int lrp_epsilon_scale(LrpDtype dtype, const void* multiplier, const void* addend, const void* output, const void* scale, void* result,
                      LrpExtent extent, double epsilon, double leak, void* stream);

// Bytes of scratch memory for the two-stage channel reduction below (0 when grad_scale is null).
int64_t lrp_epsilon_scale_backward_workspace(LrpDtype dtype, LrpExtent extent);

// grad_output is null when output is; grad_scale (and workspace) may be null.
int lrp_epsilon_scale_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* addend, const void* output,
                               const void* scale, void* grad_multiplier, void* grad_output, void* grad_scale, void* workspace,
                               LrpExtent extent, double epsilon, double leak, void* stream);

int lrp_ratio(LrpDtype dtype, const void* multiplier, const void* value, const void* denominator, void* result, LrpExtent extent,
              double epsilon, void* stream);

int lrp_ratio_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* value, const void* denominator,
                       void* grad_multiplier, void* grad_value, void* grad_denominator, LrpExtent extent, double epsilon, void* stream);
}
