// The epsilon rule of a convolution on CPU tensors in one call each way: our elementwise pass around ATen's
// convolution, of any dimension. On small maps the calls in between would cost more than the arithmetic.
#include <array>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include "../common/conv_ops.h"
#include "pointwise.h"

namespace lrpkernels::cpu {
namespace {

enum class Gradient { kInput, kWeight };

// What ATen makes of <s, W input> by the input or by the weight; of the other only sizes and layout are read.
Tensor convolution_backward(const Tensor& s, const Tensor& input, const Tensor& weight, const ConvWindows& slide,
                            Gradient wanted) {
  const Sizes output_padding(slide.stride.size(), 0);
  const std::array<int32_t, 3> mask{wanted == Gradient::kInput, wanted == Gradient::kWeight, 0};
  std::array<AtenTensorHandle, 3> results{};
  const auto n = static_cast<int64_t>(slide.stride.size());
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_convolution_backward(s.get(), input.get(), weight.get(), nullptr, 0, slide.stride.data(), n,
                                          slide.padding.data(), n, slide.dilation.data(), n, 0, output_padding.data(),
                                          n, slide.groups, mask.data(), 3, &results[0], &results[1], &results[2]));
  const std::array<Tensor, 3> owned{Tensor(results[0]), Tensor(results[1]), Tensor(results[2])};
  return owned[wanted == Gradient::kInput ? 0 : 1];
}

Tensor convolution(const Tensor& input, const Tensor& weight, const ConvWindows& slide) {
  const Sizes output_padding(slide.stride.size(), 0);
  AtenTensorHandle result = nullptr;
  const auto n = static_cast<int64_t>(slide.stride.size());
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(input.get(), weight.get(), nullptr, slide.stride.data(), n,
                                                           slide.padding.data(), n, slide.dilation.data(), n, 0,
                                                           output_padding.data(), n, slide.groups, &result));
  return Tensor(result);
}

// The kernel's sizes, once everything fits. `input`: the layer's, or the gradient that lies like it.
Sizes checked_kernel(const char* op, const Tensor& multiplier, const Tensor& weight, const char* name,
                     const Tensor& input, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     int64_t groups) {
  if (multiplier.dim() < 3)
    fail(op, ": multiplier must have shape [N, C, ...], got ", format_sizes(sizes_of(multiplier)));
  const int64_t channels = multiplier.size(1);
  if (groups < 1) fail(op, ": groups must be >= 1, got ", groups);
  if (weight.dim() != multiplier.dim() || weight.size(0) != channels || channels % groups != 0)
    fail(op, ": weight must have ", multiplier.dim(), " dimensions and C_out = ", channels, " for groups = ", groups,
         ", got ", format_sizes(sizes_of(weight)));
  if (input.dim() != multiplier.dim() || input.size(1) != weight.size(1) * groups)
    fail(op, ": ", name, " must have ", multiplier.dim(), " dimensions and C_in = ", weight.size(1) * groups, ", got ",
         format_sizes(sizes_of(input)));
  const Sizes kernel = spatial_sizes(weight);
  check_geometry(op, spatial_sizes(input), spatial_sizes(multiplier), {kernel, stride, padding, dilation, groups});
  return kernel;
}

bool is_pointwise(const OptionalTensor& addend, const OptionalTensor& output, const OptionalTensor& scale) {
  return addend || output || scale;
}

// A tensor like the layer's input for the multiplier's images, which may be those of several targets.
Tensor input_like(const Tensor& input, const Tensor& multiplier) {
  if (input.size(0) == multiplier.size(0) && input.scalar_type() == multiplier.scalar_type()) return input;
  Sizes sizes = sizes_of(input);
  sizes[0] = multiplier.size(0);
  return new_dense(multiplier, sizes, layout_of(input), multiplier.scalar_type());
}

// multiplier [T * B, C_out, ...], input [B, C_in, ...] -> [T * B, C_in, ...]; of input only sizes and layout are read
Tensor conv_epsilon(const Tensor& multiplier, const OptionalTensor& addend, const OptionalTensor& output,
                    const OptionalTensor& scale, const Tensor& weight, const Tensor& input, const Sizes& stride,
                    const Sizes& padding, const Sizes& dilation, int64_t groups, double epsilon, double leak) {
  const Sizes kernel =
      checked_kernel("conv_epsilon", multiplier, weight, "input", input, stride, padding, dilation, groups);
  const ConvWindows slide{kernel, stride, padding, dilation, groups};
  const Tensor s = is_pointwise(addend, output, scale) ? epsilon_scale(multiplier, addend, output, scale, epsilon, leak)
                                                       : multiplier;
  return convolution_backward(s, input_like(input, multiplier), weight, slide, Gradient::kInput);
}

// grad [T * B, C_in, ...] -> (grad_multiplier [T * B, C_out, ...], grad_output [B, C_out, ...] or [0],
// grad_scale [C_out] or [0], grad_weight or [0]); `need_values` asks for the first two, which come together
std::tuple<Tensor, Tensor, Tensor, Tensor> conv_epsilon_backward(
    const Tensor& grad, const Tensor& multiplier, const OptionalTensor& addend, const OptionalTensor& output,
    const OptionalTensor& scale, const Tensor& weight, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
    int64_t groups, double epsilon, double leak, bool need_values, bool need_scale, bool need_weight) {
  const Sizes kernel =
      checked_kernel("conv_epsilon_backward", multiplier, weight, "grad", grad, stride, padding, dilation, groups);
  const ConvWindows slide{kernel, stride, padding, dilation, groups};
  const bool pointwise = is_pointwise(addend, output, scale);
  const auto nothing = [&multiplier] { return detail::no_tensor(multiplier); };
  Tensor grad_weight = nothing();
  if (need_weight) {
    const Tensor s = pointwise ? epsilon_scale(multiplier, addend, output, scale, epsilon, leak) : multiplier;
    grad_weight = convolution_backward(s, grad, weight, slide, Gradient::kWeight);
  }
  if (!need_values && !need_scale) return {nothing(), nothing(), nothing(), grad_weight};
  const Tensor t = convolution(grad, weight, slide);
  if (!pointwise) return {t, nothing(), nothing(), grad_weight};
  const auto [g, u, k] = epsilon_scale_backward(t, multiplier, addend, output, scale, epsilon, leak, need_scale);
  return {g, u, k, grad_weight};
}

}  // namespace
}  // namespace lrpkernels::cpu

STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CPU, m) {
  m.impl("conv_epsilon", TORCH_BOX(&lrpkernels::cpu::conv_epsilon));
  m.impl("conv_epsilon_backward", TORCH_BOX(&lrpkernels::cpu::conv_epsilon_backward));
}
