// Host side of the ops of layer, group, instance and RMS norm. A Backend as in pointwise_ops.h.
#pragma once
#include "dispatch.h"

namespace lrpkernels {

template <typename Backend>
struct SampleNormOps {
  // multiplier [T * B, ...]; input [B, ...], in rows of `row` elements that share their statistics; weight [channels]
  // -> [T * B, ...]. The channel of element i is (i / inner) % channels.
  static Tensor sample_norm(const Tensor& multiplier, const Tensor& input, const OptionalTensor& weight, int64_t row,
                            int64_t inner, bool centred, double epsilon) {
    constexpr const char* kOp = "sample_norm";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    const LrpNorm norm = checked(kOp, multiplier, input, weight, row, inner, centred, epsilon);
    const typename Backend::Guard guard(multiplier);
    Tensor result = new_like(multiplier, Layout::kContiguous);
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, Layout::kContiguous), x = to_layout(input, Layout::kContiguous);
    const OptionalTensor w = to_layout(weight, Layout::kContiguous);
    Backend::sample_norm(dtype, data(g), data(x), data(w), out(result), norm, guard.stream());
    return result;
  }

  // -> (grad_multiplier [T * B, ...], grad_input [B, ...], grad_weight [channels] or [0])
  static ThreeTensors sample_norm_backward(const Tensor& grad, const Tensor& multiplier, const Tensor& input,
                                           const OptionalTensor& weight, int64_t row, int64_t inner, bool centred,
                                           double epsilon) {
    constexpr const char* kOp = "sample_norm_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad", grad, multiplier);
    const LrpNorm norm = checked(kOp, multiplier, input, weight, row, inner, centred, epsilon);
    const typename Backend::Guard guard(multiplier);
    Tensor grad_multiplier = new_like(multiplier, Layout::kContiguous);
    Tensor grad_input = new_like(input, Layout::kContiguous);
    Tensor grad_weight = weight ? new_like(*weight, Layout::kContiguous) : no_tensor(multiplier);
    if (multiplier.numel() == 0) {
      zero(grad_input, grad_weight);
      return {grad_multiplier, grad_input, grad_weight};
    }
    const Tensor t = to_layout(grad, Layout::kContiguous), g = to_layout(multiplier, Layout::kContiguous);
    const Tensor x = to_layout(input, Layout::kContiguous);
    const OptionalTensor w = to_layout(weight, Layout::kContiguous);
    const Tensor workspace = new_bytes(multiplier, Backend::sample_norm_backward_workspace(dtype, norm, bool(weight)));
    Backend::sample_norm_backward(dtype, data(t), data(g), data(x), data(w), out(grad_multiplier), out(grad_input),
                                  weight ? out(grad_weight) : Out{nullptr}, out(workspace), norm, guard.stream());
    return {grad_multiplier, grad_input, grad_weight};
  }

 private:
  static LrpNorm checked(const char* op, const Tensor& multiplier, const Tensor& input, const OptionalTensor& weight,
                         int64_t row, int64_t inner, bool centred, double epsilon) {
    check_epsilon(op, epsilon);
    check_forward_value(op, "input", input, multiplier);
    const int64_t numel = input.numel();
    if (row < 1 || numel % row != 0) fail(op, ": row must divide the input's ", numel, " elements, got ", row);
    int64_t channels = 1;
    if (weight) {
      if (weight->dim() != 1) fail(op, ": weight must have shape [channels], got ", format_sizes(sizes_of(*weight)));
      channels = weight->numel();
      check_vector(op, "weight", *weight, multiplier, "[channels]", channels);
      // Whole planes in a row, or rows that are whole parts of the weight.
      const bool fits = inner >= 1 && channels >= 1 && (inner == 1 ? channels % row == 0 : row % inner == 0);
      if (!fits || numel % (channels * inner) != 0)
        fail(op, ": a weight of ", channels, " channels with inner = ", inner, " does not fit rows of ", row,
             " in an input of ", numel, " elements");
    }
    const int64_t targets = numel == 0 ? 1 : multiplier.numel() / numel;
    return {{numel, targets, channels, weight ? inner : row}, row, epsilon, centred};
  }
};

}  // namespace lrpkernels
