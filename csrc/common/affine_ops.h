// Host side of the ops of layers without a matrix product: batch norm standing alone, and sums under the z+ rule.
// A Backend as in pointwise_ops.h.
#pragma once
#include <tuple>

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
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(input);
    Tensor result = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout), v = to_layout(value, layout), x = to_layout(input, layout);
    const Tensor k = to_layout(slope, Layout::kContiguous);
    const OptionalTensor c = detail::to_layout(shift, Layout::kContiguous);
    Backend::affine(dtype, whole, positive, g.const_data_ptr(), v.const_data_ptr(), x.const_data_ptr(),
                    k.const_data_ptr(), detail::const_data(c), result.mutable_data_ptr(),
                    extent_of(multiplier, input, layout), epsilon, guard.stream());
    return result;
  }

  // -> (grad_multiplier, grad_value, grad_input, grad_slope, grad_shift); grad_shift is empty when shift is None
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> affine_backward(
      const Tensor& grad, const Tensor& multiplier, const Tensor& value, const Tensor& input, const Tensor& slope,
      const OptionalTensor& shift, double whole, double positive, double epsilon) {
    constexpr const char* kOp = "affine_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad", grad, multiplier);
    check(kOp, multiplier, value, input, slope, shift, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(input);
    Tensor grad_multiplier = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    Tensor grad_value = new_dense(value, sizes_of(value), layout, value.scalar_type());
    Tensor grad_input = new_dense(input, sizes_of(input), layout, input.scalar_type());
    Tensor grad_slope = new_dense(slope, sizes_of(slope), Layout::kContiguous, slope.scalar_type());
    Tensor grad_shift = new_dense(slope, sizes_of(slope), Layout::kContiguous, slope.scalar_type());
    if (multiplier.numel() == 0) {
      for (Tensor* empty : {&grad_value, &grad_input, &grad_slope, &grad_shift}) torch::stable::zero_(*empty);
      return {grad_multiplier, grad_value, grad_input, grad_slope, shift ? grad_shift : detail::no_tensor(slope)};
    }
    const Tensor t = to_layout(grad, layout), g = to_layout(multiplier, layout);
    const Tensor v = to_layout(value, layout), x = to_layout(input, layout);
    const Tensor k = to_layout(slope, Layout::kContiguous);
    const OptionalTensor c = detail::to_layout(shift, Layout::kContiguous);
    const LrpExtent extent = extent_of(multiplier, input, layout);
    Tensor workspace = new_dense(multiplier, {Backend::affine_backward_workspace(dtype, extent)}, Layout::kContiguous,
                                 ScalarType::Byte);
    Backend::affine_backward(
        dtype, whole, positive, t.const_data_ptr(), g.const_data_ptr(), v.const_data_ptr(), x.const_data_ptr(),
        k.const_data_ptr(), detail::const_data(c), grad_multiplier.mutable_data_ptr(), grad_value.mutable_data_ptr(),
        grad_input.mutable_data_ptr(), grad_slope.mutable_data_ptr(), grad_shift.mutable_data_ptr(),
        workspace.mutable_data_ptr(), extent, epsilon, guard.stream());
    return {grad_multiplier, grad_value, grad_input, grad_slope, shift ? grad_shift : detail::no_tensor(slope)};
  }

  // multiplier [T * B, ...]; a, b [B, ...] -> two of [T * B, ...]
  static std::tuple<Tensor, Tensor> sum_zplus(const Tensor& multiplier, const Tensor& a, const Tensor& b,
                                              double epsilon) {
    constexpr const char* kOp = "sum_zplus";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_summands(kOp, multiplier, a, b, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(a);
    Tensor result_a = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    Tensor result_b = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    if (multiplier.numel() == 0) return {result_a, result_b};
    const Tensor g = to_layout(multiplier, layout), x = to_layout(a, layout), y = to_layout(b, layout);
    Backend::sum_zplus(dtype, g.const_data_ptr(), x.const_data_ptr(), y.const_data_ptr(), result_a.mutable_data_ptr(),
                       result_b.mutable_data_ptr(), extent_of(multiplier, a, layout), epsilon, guard.stream());
    return {result_a, result_b};
  }

  // -> (grad_multiplier [T * B, ...], gradients of a and b [B, ...])
  static std::tuple<Tensor, Tensor, Tensor> sum_zplus_backward(const Tensor& grad_a, const Tensor& grad_b,
                                                               const Tensor& multiplier, const Tensor& a,
                                                               const Tensor& b, double epsilon) {
    constexpr const char* kOp = "sum_zplus_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad_a", grad_a, multiplier);
    check_like_multiplier(kOp, "grad_b", grad_b, multiplier);
    check_summands(kOp, multiplier, a, b, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(a);
    Tensor grad_multiplier = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    Tensor input_a = new_dense(a, sizes_of(a), layout, a.scalar_type());
    Tensor input_b = new_dense(b, sizes_of(b), layout, b.scalar_type());
    if (multiplier.numel() == 0) {
      torch::stable::zero_(input_a);
      torch::stable::zero_(input_b);
      return {grad_multiplier, input_a, input_b};
    }
    const Tensor s = to_layout(grad_a, layout), t = to_layout(grad_b, layout), g = to_layout(multiplier, layout);
    const Tensor x = to_layout(a, layout), y = to_layout(b, layout);
    Backend::sum_zplus_backward(dtype, s.const_data_ptr(), t.const_data_ptr(), g.const_data_ptr(), x.const_data_ptr(),
                                y.const_data_ptr(), grad_multiplier.mutable_data_ptr(), input_a.mutable_data_ptr(),
                                input_b.mutable_data_ptr(), extent_of(multiplier, a, layout), epsilon, guard.stream());
    return {grad_multiplier, input_a, input_b};
  }

 private:
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
