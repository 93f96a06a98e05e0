// Host side of the pointwise ops, the same for every backend: checks, layout, allocation, early return for empty
// tensors. A Backend has one function per launcher of the op family, a device Guard, and kDtypes, the storage dtypes
// that it computes.
#pragma once
#include <tuple>

#include "dispatch.h"

namespace lrpkernels {

namespace detail {

inline const void* const_data(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

inline OptionalTensor to_layout(const OptionalTensor& tensor, Layout layout) {
  return tensor ? OptionalTensor(lrpkernels::to_layout(*tensor, layout)) : std::nullopt;
}

inline Tensor no_tensor(const Tensor& like) { return new_dense(like, {0}, Layout::kContiguous, like.scalar_type()); }

}  // namespace detail

template <typename Backend>
struct PointwiseOps {
  // multiplier, addend [T * B, C, ...]; output [B, C, ...]; scale [C] -> [T * B, C, ...]
  static Tensor epsilon_scale(const Tensor& multiplier, const OptionalTensor& addend, const OptionalTensor& output,
                              const OptionalTensor& scale, double epsilon) {
    constexpr const char* kOp = "epsilon_scale";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_epsilon_scale(kOp, multiplier, addend, output, scale, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Tensor& value = output ? *output : multiplier;
    const Layout layout = layout_of(value);
    Tensor result = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout);
    const OptionalTensor g2 = detail::to_layout(addend, layout), u = detail::to_layout(output, layout);
    const OptionalTensor k = detail::to_layout(scale, Layout::kContiguous);
    Backend::epsilon_scale(dtype, g.const_data_ptr(), detail::const_data(g2), detail::const_data(u),
                           detail::const_data(k), result.mutable_data_ptr(), extent_of(multiplier, value, layout),
                           epsilon, guard.stream());
    return result;
  }

  // -> (grad_multiplier [T * B, C, ...], grad_output [B, C, ...] or [0], grad_scale [C] or [0])
  static std::tuple<Tensor, Tensor, Tensor> epsilon_scale_backward(const Tensor& grad, const Tensor& multiplier,
                                                                   const OptionalTensor& addend,
                                                                   const OptionalTensor& output,
                                                                   const OptionalTensor& scale, double epsilon,
                                                                   bool need_scale) {
    constexpr const char* kOp = "epsilon_scale_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_epsilon_scale_backward(kOp, grad, multiplier, addend, output, scale, epsilon, need_scale);
    const typename Backend::Guard guard(multiplier);
    const Tensor& value = output ? *output : multiplier;
    const Layout layout = layout_of(value);
    Tensor grad_multiplier = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    Tensor grad_output =
        output ? new_dense(*output, sizes_of(*output), layout, output->scalar_type()) : detail::no_tensor(multiplier);
    Tensor grad_scale = need_scale ? new_dense(*scale, sizes_of(*scale), Layout::kContiguous, scale->scalar_type())
                                   : detail::no_tensor(multiplier);
    if (multiplier.numel() == 0) {
      torch::stable::zero_(grad_output);
      torch::stable::zero_(grad_scale);
      return {grad_multiplier, grad_output, grad_scale};
    }
    const Tensor t = to_layout(grad, layout), g = to_layout(multiplier, layout);
    const OptionalTensor g2 = detail::to_layout(addend, layout), u = detail::to_layout(output, layout);
    const OptionalTensor k = detail::to_layout(scale, Layout::kContiguous);
    const LrpExtent extent = extent_of(multiplier, value, layout);
    OptionalTensor workspace;
    if (need_scale)
      workspace = new_dense(multiplier, {Backend::epsilon_scale_backward_workspace(dtype, extent)}, Layout::kContiguous,
                            ScalarType::Byte);
    Backend::epsilon_scale_backward(
        dtype, t.const_data_ptr(), g.const_data_ptr(), detail::const_data(g2), detail::const_data(u),
        detail::const_data(k), grad_multiplier.mutable_data_ptr(), output ? grad_output.mutable_data_ptr() : nullptr,
        need_scale ? grad_scale.mutable_data_ptr() : nullptr, need_scale ? workspace->mutable_data_ptr() : nullptr,
        extent, epsilon, guard.stream());
    return {grad_multiplier, grad_output, grad_scale};
  }

  // multiplier [T * B, ...]; value, denominator [B, ...] -> [T * B, ...]
  static Tensor ratio(const Tensor& multiplier, const Tensor& value, const Tensor& denominator, double epsilon) {
    constexpr const char* kOp = "ratio";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_ratio(kOp, multiplier, value, denominator, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(denominator);
    Tensor result = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout), v = to_layout(value, layout), d = to_layout(denominator, layout);
    Backend::ratio(dtype, g.const_data_ptr(), v.const_data_ptr(), d.const_data_ptr(), result.mutable_data_ptr(),
                   extent_of(multiplier, denominator, layout), epsilon, guard.stream());
    return result;
  }

  // -> (grad_multiplier [T * B, ...], grad_value [B, ...], grad_denominator [B, ...])
  static std::tuple<Tensor, Tensor, Tensor> ratio_backward(const Tensor& grad, const Tensor& multiplier,
                                                           const Tensor& value, const Tensor& denominator,
                                                           double epsilon) {
    constexpr const char* kOp = "ratio_backward";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_like_multiplier(kOp, "grad", grad, multiplier);
    check_ratio(kOp, multiplier, value, denominator, epsilon);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(denominator);
    Tensor grad_multiplier = new_dense(multiplier, sizes_of(multiplier), layout, multiplier.scalar_type());
    Tensor grad_value = new_dense(value, sizes_of(value), layout, value.scalar_type());
    Tensor grad_denominator = new_dense(value, sizes_of(value), layout, value.scalar_type());
    if (multiplier.numel() == 0) {
      torch::stable::zero_(grad_value);
      torch::stable::zero_(grad_denominator);
      return {grad_multiplier, grad_value, grad_denominator};
    }
    const Tensor t = to_layout(grad, layout), g = to_layout(multiplier, layout);
    const Tensor v = to_layout(value, layout), d = to_layout(denominator, layout);
    Backend::ratio_backward(dtype, t.const_data_ptr(), g.const_data_ptr(), v.const_data_ptr(), d.const_data_ptr(),
                            grad_multiplier.mutable_data_ptr(), grad_value.mutable_data_ptr(),
                            grad_denominator.mutable_data_ptr(), extent_of(multiplier, denominator, layout), epsilon,
                            guard.stream());
    return {grad_multiplier, grad_value, grad_denominator};
  }
};

}  // namespace lrpkernels
