// Host side of the pointwise ops, the same for every backend: checks, layout, allocation, early return for empty
// tensors. A Backend has one function per launcher of the op family, a device Guard, and kDtypes, the storage dtypes
// that it computes.
#pragma once
#include "dispatch.h"

namespace lrpkernels {

template <typename Backend>
struct PointwiseOps {
  static LrpEpsilon epsilon_of(double epsilon, const OptionalTensor& epsilons, const Tensor& value) {
    if (!epsilons) return {epsilon, nullptr, 1};
    return {epsilon, data(*epsilons).address, value.numel() / value.size(0)};
  }

  // multiplier, addend [T * B, C, ...]; output [B, C, ...]; scale [C]; epsilons [B], in place of epsilon ->
  // [T * B, C, ...]
  static Tensor epsilon_scale(const Tensor& multiplier, const OptionalTensor& addend, const OptionalTensor& output,
                              const OptionalTensor& scale, double epsilon, const OptionalTensor& epsilons) {
    constexpr const char* kOp = "epsilon_scale";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_epsilon_scale(kOp, multiplier, addend, output, scale, epsilon);
    const Tensor& value = output ? *output : multiplier;
    check_epsilons(kOp, epsilons, value);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(value);
    Tensor result = new_like(multiplier, layout);
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout);
    const OptionalTensor g2 = to_layout(addend, layout), u = to_layout(output, layout);
    const OptionalTensor k = to_layout(scale, Layout::kContiguous), e = to_layout(epsilons, Layout::kContiguous);
    Backend::epsilon_scale(dtype, data(g), data(g2), data(u), data(k), out(result),
                           extent_of(multiplier, value, layout), epsilon_of(epsilon, e, value), guard.stream());
    return result;
  }

  // -> (grad_multiplier [T * B, C, ...], grad_output [B, C, ...] or [0], grad_scale [C] or [0])
  static ThreeTensors epsilon_scale_backward(const Tensor& grad, const Tensor& multiplier, const OptionalTensor& addend,
                                             const OptionalTensor& output, const OptionalTensor& scale, double epsilon,
                                             bool need_scale, const OptionalTensor& epsilons) {
    constexpr const char* kOp = "epsilon_scale_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad", grad, multiplier);
    check_epsilon_scale(kOp, multiplier, addend, output, scale, epsilon);
    if (need_scale && !scale) fail(kOp, ": need_scale must be False when scale is None, got True");
    const Tensor& value = output ? *output : multiplier;
    check_epsilons(kOp, epsilons, value);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(value);
    Tensor grad_multiplier = new_like(multiplier, layout);
    Tensor grad_output = output ? new_like(*output, layout) : no_tensor(multiplier);
    Tensor grad_scale = need_scale ? new_like(*scale, Layout::kContiguous) : no_tensor(multiplier);
    if (multiplier.numel() == 0) {
      zero(grad_output, grad_scale);
      return {grad_multiplier, grad_output, grad_scale};
    }
    const Tensor t = to_layout(grad, layout), g = to_layout(multiplier, layout);
    const OptionalTensor g2 = to_layout(addend, layout), u = to_layout(output, layout);
    const OptionalTensor k = to_layout(scale, Layout::kContiguous), e = to_layout(epsilons, Layout::kContiguous);
    const LrpExtent extent = extent_of(multiplier, value, layout);
    const int64_t scratch = need_scale ? Backend::epsilon_scale_backward_workspace(dtype, extent) : 0;
    const Tensor workspace = new_bytes(multiplier, scratch);
    Backend::epsilon_scale_backward(dtype, data(t), data(g), data(g2), data(u), data(k), out(grad_multiplier),
                                    output ? out(grad_output) : Out{nullptr},
                                    need_scale ? out(grad_scale) : Out{nullptr}, out(workspace), extent,
                                    epsilon_of(epsilon, e, value), guard.stream());
    return {grad_multiplier, grad_output, grad_scale};
  }

  // multiplier [T * B, ...]; value, denominator [B, ...] -> [T * B, ...]
  static Tensor ratio(const Tensor& multiplier, const Tensor& value, const Tensor& denominator, double epsilon,
                      const OptionalTensor& epsilons) {
    constexpr const char* kOp = "ratio";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_ratio(kOp, multiplier, value, denominator, epsilon);
    check_epsilons(kOp, epsilons, denominator);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(denominator);
    Tensor result = new_like(multiplier, layout);
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout), v = to_layout(value, layout), d = to_layout(denominator, layout);
    const OptionalTensor e = to_layout(epsilons, Layout::kContiguous);
    Backend::ratio(dtype, data(g), data(v), data(d), out(result), extent_of(multiplier, denominator, layout),
                   epsilon_of(epsilon, e, denominator), guard.stream());
    return result;
  }

  // -> (grad_multiplier [T * B, ...], grad_value [B, ...], grad_denominator [B, ...])
  static ThreeTensors ratio_backward(const Tensor& grad, const Tensor& multiplier, const Tensor& value,
                                     const Tensor& denominator, double epsilon, const OptionalTensor& epsilons) {
    constexpr const char* kOp = "ratio_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad", grad, multiplier);
    check_ratio(kOp, multiplier, value, denominator, epsilon);
    check_epsilons(kOp, epsilons, denominator);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(denominator);
    Tensor grad_multiplier = new_like(multiplier, layout);
    Tensor grad_value = new_like(value, layout);
    Tensor grad_denominator = new_like(value, layout);
    if (multiplier.numel() == 0) {
      zero(grad_value, grad_denominator);
      return {grad_multiplier, grad_value, grad_denominator};
    }
    const Tensor t = to_layout(grad, layout), g = to_layout(multiplier, layout);
    const Tensor v = to_layout(value, layout), d = to_layout(denominator, layout);
    const OptionalTensor e = to_layout(epsilons, Layout::kContiguous);
    Backend::ratio_backward(dtype, data(t), data(g), data(v), data(d), out(grad_multiplier), out(grad_value),
                            out(grad_denominator), extent_of(multiplier, denominator, layout),
                            epsilon_of(epsilon, e, denominator), guard.stream());
    return {grad_multiplier, grad_value, grad_denominator};
  }
};

}  // namespace lrpkernels
