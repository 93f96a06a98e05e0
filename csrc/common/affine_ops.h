// Host side of the ops of layers without a matrix product: batch norm standing alone, and sums under the z+ rule.
// A Backend as in pointwise_ops.h.
#pragma once
#include "pointwise_ops.h"

namespace lrpkernels {

template <typename Backend>
struct AffineOps {
  // multiplier [T * B, C, ...]; value, input [B, C, ...]; slope, shift [C] -> [T * B, C, ...]
  static Tensor affine(const Tensor& multiplier, const Tensor& value, const Tensor& input, const Tensor& slope,
                       const OptionalTensor& shift, double whole, double positive, double epsilon) {
    constexpr const char* kOp = "affine";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check(kOp, multiplier, value, input, slope, shift, epsilon);
    check_shares(kOp, whole, positive);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(input);
    Tensor result = new_like(multiplier, layout);
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout), v = to_layout(value, layout), x = to_layout(input, layout);
    const Tensor k = to_layout(slope, Layout::kContiguous);
    const OptionalTensor c = to_layout(shift, Layout::kContiguous);
    Backend::affine(dtype, whole, positive, data(g), data(v), data(x), data(k), data(c), out(result),
                    extent_of(multiplier, input, layout), epsilon, guard.stream());
    return result;
  }

  // -> (grad_multiplier, grad_value, grad_input, grad_slope, grad_shift); grad_shift is empty when shift is None
  static FiveTensors affine_backward(const Tensor& grad, const Tensor& multiplier, const Tensor& value,
                                     const Tensor& input, const Tensor& slope, const OptionalTensor& shift,
                                     double whole, double positive, double epsilon) {
    constexpr const char* kOp = "affine_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad", grad, multiplier);
    check(kOp, multiplier, value, input, slope, shift, epsilon);
    check_shares(kOp, whole, positive);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(input);
    Tensor grad_multiplier = new_like(multiplier, layout);
    Tensor grad_value = new_like(value, layout);
    Tensor grad_input = new_like(input, layout);
    Tensor grad_slope = new_like(slope, Layout::kContiguous);
    Tensor grad_shift = new_like(slope, Layout::kContiguous);
    if (multiplier.numel() == 0) {
      zero(grad_value, grad_input, grad_slope, grad_shift);
      return {grad_multiplier, grad_value, grad_input, grad_slope, shift ? grad_shift : no_tensor(slope)};
    }
    const Tensor t = to_layout(grad, layout), g = to_layout(multiplier, layout);
    const Tensor v = to_layout(value, layout), x = to_layout(input, layout);
    const Tensor k = to_layout(slope, Layout::kContiguous);
    const OptionalTensor c = to_layout(shift, Layout::kContiguous);
    const LrpExtent extent = extent_of(multiplier, input, layout);
    Tensor workspace = new_bytes(multiplier, Backend::affine_backward_workspace(dtype, extent));
    Backend::affine_backward(dtype, whole, positive, data(t), data(g), data(v), data(x), data(k), data(c),
                             out(grad_multiplier), out(grad_value), out(grad_input), out(grad_slope), out(grad_shift),
                             out(workspace), extent, epsilon, guard.stream());
    return {grad_multiplier, grad_value, grad_input, grad_slope, shift ? grad_shift : no_tensor(slope)};
  }

  // multiplier [T * B, ...]; a, b [B, ...] -> two of [T * B, ...]
  static TwoTensors sum_zplus(const Tensor& multiplier, const Tensor& a, const Tensor& b, double epsilon) {
    constexpr const char* kOp = "sum_zplus";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_summands(kOp, multiplier, a, b, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(a);
    Tensor result_a = new_like(multiplier, layout);
    Tensor result_b = new_like(multiplier, layout);
    if (multiplier.numel() == 0) return {result_a, result_b};
    const Tensor g = to_layout(multiplier, layout), x = to_layout(a, layout), y = to_layout(b, layout);
    Backend::sum_zplus(dtype, data(g), data(x), data(y), out(result_a), out(result_b), extent_of(multiplier, a, layout),
                       epsilon, guard.stream());
    return {result_a, result_b};
  }

  // -> (grad_multiplier [T * B, ...], gradients of a and b [B, ...])
  static ThreeTensors sum_zplus_backward(const Tensor& grad_a, const Tensor& grad_b, const Tensor& multiplier,
                                         const Tensor& a, const Tensor& b, double epsilon) {
    constexpr const char* kOp = "sum_zplus_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad_a", grad_a, multiplier);
    check_like_multiplier(kOp, "grad_b", grad_b, multiplier);
    check_summands(kOp, multiplier, a, b, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(a);
    Tensor grad_multiplier = new_like(multiplier, layout);
    Tensor input_a = new_like(a, layout);
    Tensor input_b = new_like(b, layout);
    if (multiplier.numel() == 0) {
      zero(input_a, input_b);
      return {grad_multiplier, input_a, input_b};
    }
    const Tensor s = to_layout(grad_a, layout), t = to_layout(grad_b, layout), g = to_layout(multiplier, layout);
    const Tensor x = to_layout(a, layout), y = to_layout(b, layout);
    Backend::sum_zplus_backward(dtype, data(s), data(t), data(g), data(x), data(y), out(grad_multiplier), out(input_a),
                                out(input_b), extent_of(multiplier, a, layout), epsilon, guard.stream());
    return {grad_multiplier, input_a, input_b};
  }

 private:
  static void check_shares(const char* op, double whole, double positive) {
    if (!std::isfinite(whole)) fail(op, ": whole must be finite, got ", whole);
    if (!std::isfinite(positive)) fail(op, ": positive must be finite, got ", positive);
  }

  static void check_summands(const char* op, const Tensor& multiplier, const Tensor& a, const Tensor& b,
                             double epsilon) {
    check_epsilon(op, epsilon);
    check_forward_pair(op, "a", a, "b", b, multiplier);
  }

  static void check(const char* op, const Tensor& multiplier, const Tensor& value, const Tensor& input,
                    const Tensor& slope, const OptionalTensor& shift, double epsilon) {
    check_epsilon(op, epsilon);
    check_forward_pair(op, "value", value, "input", input, multiplier);
    if (multiplier.dim() < 2)
      fail(op, ": multiplier must have shape [T * B, C, ...], got ", format_sizes(sizes_of(multiplier)));
    check_channels(op, "slope", slope, multiplier);
    if (shift) check_channels(op, "shift", *shift, multiplier);
  }
};

}  // namespace lrpkernels
