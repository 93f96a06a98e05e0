// Host side of the convolution ops of the CUDA kernels (emulated or not): checks, layout, allocation. One or two
// spatial dimensions.
#pragma once
#include "pointwise_ops.h"
#include "pool_ops.h"

namespace lrpkernels {

// What turns a multiplier into s while it is loaded; see LrpConvScale.
struct ConvFactors {
  const OptionalTensor& addend;
  const OptionalTensor& output;
  const OptionalTensor& scale;
  const OptionalTensor& value;
  const OptionalTensor& denominator;
  double epsilon;
};

struct ConvWindows {
  const Sizes& kernel;
  const Sizes& stride;
  const Sizes& padding;
  const Sizes& dilation;
  int64_t groups;
};

inline void check_images(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.dim() != 3 && tensor.dim() != 4)
    fail(op, ": ", name, " must have shape [N, C, L] or [N, C, H, W], got ", format_sizes(sizes_of(tensor)));
}

inline void check_conv_factors(const char* op, const Tensor& multiplier, const ConvFactors& factors) {
  check_epsilon_scale(op, multiplier, factors.addend, factors.output, factors.scale, factors.epsilon);
  if (factors.value.has_value() != factors.denominator.has_value())
    fail(op, ": value and denominator must be given together, got only ", factors.value ? "value" : "denominator");
  if (factors.value) check_ratio(op, multiplier, *factors.value, *factors.denominator, factors.epsilon);
}

// The spatial sizes of the output, once the windows are sound.
inline Sizes output_sizes(const char* op, const Sizes& input, const ConvWindows& windows) {
  const size_t dimensions = input.size();
  check_entries(op, "kernel_size", windows.kernel, dimensions, 1);
  check_entries(op, "stride", windows.stride, dimensions, 1);
  check_entries(op, "padding", windows.padding, dimensions, 0);
  check_entries(op, "dilation", windows.dilation, dimensions, 1);
  check_entries(op, "input_size", input, dimensions, 0);
  Sizes output;
  for (size_t d = 0; d < dimensions; ++d) {
    const int64_t room = input[d] + 2 * windows.padding[d] - windows.dilation[d] * (windows.kernel[d] - 1) - 1;
    output.push_back(room < 0 ? 0 : room / windows.stride[d] + 1);
  }
  return output;
}

inline void check_output(const char* op, const Sizes& input, const Sizes& output, const ConvWindows& windows) {
  if (input.size() != output.size())
    fail(op, ": input_size must be ", output.size(), " numbers >= 0, got ", format_sizes(input));
  const Sizes expected = output_sizes(op, input, windows);
  for (size_t d = 0; d < output.size(); ++d)
    if (output[d] != expected[d])
      fail(op, ": input sizes ", format_sizes(input), " give ", expected[d], " output positions in dimension ", d,
           ", got ", format_sizes(output));
}

// `images`: of the multiplier, those of several targets of one batch.
inline LrpConv conv_of(const char* op, const Sizes& input, const Sizes& output, const ConvWindows& windows,
                       int64_t images, int64_t batch, int64_t channels_in, int64_t channels_out, Layout layout,
                       bool tensor_cores) {
  LrpConv conv{};
  conv.targets = batch == 0 ? 1 : images / batch;
  conv.batch = batch;
  conv.channels_in = channels_in;
  conv.channels_out = channels_out;
  conv.groups = windows.groups;
  conv.channels_last = layout == Layout::kChannelsLast;
  conv.tensor_cores = tensor_cores;
  fill(conv.input, input, 1);
  fill(conv.output, output, 1);
  fill(conv.kernel, windows.kernel, 1);
  fill(conv.stride, windows.stride, 1);
  fill(conv.padding, windows.padding, 0);
  fill(conv.dilation, windows.dilation, 1);
  if (!fits(conv))
    fail(op, ": weight must have fewer than 2^31 elements, planes fewer than 2^31 positions and 2^28 a side with ",
         "padding and kernel, got C_in / groups = ", channels_in / windows.groups, ", C_out = ", channels_out,
         ", kernel_size ", format_sizes(windows.kernel), ", input ", format_sizes(input), ", output ",
         format_sizes(output), ", stride ", format_sizes(windows.stride), ", padding ", format_sizes(windows.padding),
         ", dilation ", format_sizes(windows.dilation));
  return conv;
}

template <typename Backend>
struct ConvOps {
  // multiplier [T * B, C_out, output] -> [T * B, C_in, input]; weight [C_out, C_in / groups, kernel]
  static Tensor conv_relevance(const Tensor& multiplier, const OptionalTensor& addend, const OptionalTensor& output,
                               const OptionalTensor& scale, const OptionalTensor& value,
                               const OptionalTensor& denominator, const Tensor& weight, int64_t weights,
                               const OptionalTensor& input, const OptionalTensor& low, const OptionalTensor& high,
                               const Sizes& input_size, const Sizes& stride, const Sizes& padding,
                               const Sizes& dilation, int64_t groups, double epsilon, bool tensor_cores) {
    constexpr const char* kOp = "conv_relevance";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    const ConvFactors factors{addend, output, scale, value, denominator, epsilon};
    check_images(kOp, "multiplier", multiplier);
    check_conv_factors(kOp, multiplier, factors);
    check_weight(kOp, weight, multiplier, multiplier.size(1), groups, false);
    const Sizes kernel = spatial_sizes(weight), output_size = spatial_sizes(multiplier);
    const ConvWindows windows{kernel, stride, padding, dilation, groups};
    check_output(kOp, input_size, output_size, windows);
    const LrpConvWeights part = weights_of(kOp, weights, kBox);
    const int64_t images = multiplier.size(0), channels_in = weight.size(1) * groups;
    const bool needs_input = part == kSameSign || part == kOppositeSign || part == kBox;
    if (needs_input != input.has_value())
      fail(kOp, ": input must be ", needs_input ? "given" : "None", " for weights ", weights);
    const int64_t batch = batch_of(images, factors, input);
    if (input) check_input(kOp, *input, multiplier, {batch, channels_in}, input_size);
    for (const OptionalTensor* bound : {&low, &high}) {
      const char* const name = bound == &low ? "low" : "high";
      if (bound->has_value() != (part == kBox))
        fail(kOp, ": ", name, " must be ", part == kBox ? "given" : "None", " for weights ", weights);
      if (bound->has_value()) check_vector(kOp, name, **bound, multiplier, "[C_in]", channels_in);
    }
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(output ? *output : multiplier);
    const LrpConv conv = conv_of(kOp, input_size, output_size, windows, images, batch, channels_in, multiplier.size(1),
                                 layout, tensor_cores);
    Tensor result =
        new_dense(multiplier, with_channels(images, channels_in, input_size), layout, multiplier.scalar_type());
    if (result.numel() == 0) return result;
    if (multiplier.numel() == 0) return torch::stable::zero_(result);
    const Laid laid(factors, layout);
    const Tensor g = to_layout(multiplier, layout), w = to_layout(weight, Layout::kContiguous);
    const OptionalTensor a = to_layout(input, layout);
    const OptionalTensor l = to_layout(low, Layout::kContiguous), h = to_layout(high, Layout::kContiguous);
    const LrpConvResult combine{data(a), data(l), data(h)};
    const Tensor workspace = new_bytes(multiplier, Backend::conv_workspace(dtype, conv, part, 1));
    Backend::conv_relevance(dtype, data(g), laid.pointers(), data(w), part, combine, out(result), out(workspace), conv,
                            guard.stream());
    return result;
  }

  // input [N, C_in, input] -> [N, C_out, output], without bias
  static Tensor conv_apply(const Tensor& input, const Tensor& weight, int64_t weights, const Sizes& stride,
                           const Sizes& padding, const Sizes& dilation, int64_t groups, bool tensor_cores) {
    constexpr const char* kOp = "conv_apply";
    const LrpDtype dtype = storage_dtype(kOp, input, Backend::kDtypes);
    check_images(kOp, "input", input);
    check_weight(kOp, weight, input, input.size(1), groups, true);
    const Sizes kernel = spatial_sizes(weight), input_size = spatial_sizes(input);
    const ConvWindows windows{kernel, stride, padding, dilation, groups};
    const Sizes output_size = output_sizes(kOp, input_size, windows);
    const LrpConvWeights part = weights_of(kOp, weights, kNegativeWeight);
    const typename Backend::Guard guard(input);
    const Layout layout = layout_of(input);
    const LrpConv conv = conv_of(kOp, input_size, output_size, windows, input.size(0), input.size(0), input.size(1),
                                 weight.size(0), layout, tensor_cores);
    Tensor result =
        new_dense(input, with_channels(input.size(0), weight.size(0), output_size), layout, input.scalar_type());
    if (result.numel() == 0) return result;
    const Tensor a = to_layout(input, layout), w = to_layout(weight, Layout::kContiguous);
    const Tensor workspace = new_bytes(input, Backend::conv_workspace(dtype, conv, part, 0));
    Backend::conv(dtype, data(a), data(w), part, out(result), out(workspace), conv, guard.stream());
    return result;
  }

  // multiplier [T * B, C_out, output], input [T * B, C_in, input] -> [C_out, C_in / groups, kernel]
  static Tensor conv_weight_gradient(const Tensor& multiplier, const OptionalTensor& addend,
                                     const OptionalTensor& output, const OptionalTensor& scale,
                                     const OptionalTensor& value, const OptionalTensor& denominator,
                                     const Tensor& input, const Sizes& kernel_size, const Sizes& stride,
                                     const Sizes& padding, const Sizes& dilation, int64_t groups, double epsilon,
                                     bool tensor_cores) {
    constexpr const char* kOp = "conv_weight_gradient";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    const ConvFactors factors{addend, output, scale, value, denominator, epsilon};
    check_images(kOp, "multiplier", multiplier);
    check_conv_factors(kOp, multiplier, factors);
    check_images(kOp, "input", input);
    const int64_t images = multiplier.size(0), channels_out = multiplier.size(1), channels_in = input.size(1);
    if (groups < 1 || channels_in % groups != 0 || channels_out % groups != 0)
      fail(kOp, ": groups must divide the ", channels_in, " input and ", channels_out, " output channels, got ",
           groups);
    const Sizes input_size = spatial_sizes(input), output_size = spatial_sizes(multiplier);
    check_input(kOp, input, multiplier, {images, channels_in}, input_size);
    const ConvWindows windows{kernel_size, stride, padding, dilation, groups};
    check_output(kOp, input_size, output_size, windows);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(input);
    const int64_t batch = batch_of(images, factors, std::nullopt);
    const LrpConv conv =
        conv_of(kOp, input_size, output_size, windows, images, batch, channels_in, channels_out, layout, tensor_cores);
    Tensor result = new_dense(multiplier, with_channels(channels_out, channels_in / groups, kernel_size),
                              Layout::kContiguous, multiplier.scalar_type());
    if (result.numel() == 0) return result;
    if (multiplier.numel() == 0) return torch::stable::zero_(result);
    const Laid laid(factors, layout);
    const Tensor g = to_layout(multiplier, layout), a = to_layout(input, layout);
    const Tensor workspace = new_bytes(multiplier, Backend::conv_weight_gradient_workspace(dtype, conv));
    Backend::conv_weight_gradient(dtype, data(g), laid.pointers(), data(a), out(result), out(workspace), conv,
                                  guard.stream());
    return result;
  }

 private:
  // The factors' tensors in one layout, kept alive.
  struct Laid {
    OptionalTensor addend, output, scale, value, denominator;
    double epsilon;

    Laid(const ConvFactors& factors, Layout layout)
        : addend(to_layout(factors.addend, layout)),
          output(to_layout(factors.output, layout)),
          scale(to_layout(factors.scale, Layout::kContiguous)),
          value(to_layout(factors.value, layout)),
          denominator(to_layout(factors.denominator, layout)),
          epsilon(factors.epsilon) {}

    LrpConvScale pointers() const {
      return {data(addend), data(output), data(scale), data(value), data(denominator), epsilon};
    }
  };

  static Sizes with_channels(int64_t images, int64_t channels, const Sizes& spatial) {
    Sizes sizes = {images, channels};
    sizes.insert(sizes.end(), spatial.begin(), spatial.end());
    return sizes;
  }

  // Images of the forward values: all of the multiplier's where there are none.
  static int64_t batch_of(int64_t images, const ConvFactors& factors, const OptionalTensor& input) {
    if (factors.output) return factors.output->size(0);
    if (factors.value) return factors.value->size(0);
    return input ? input->size(0) : images;
  }

  static LrpConvWeights weights_of(const char* op, int64_t weights, LrpConvWeights last) {
    if (weights < 0 || weights > last) fail(op, ": weights must be 0 to ", static_cast<int>(last), ", got ", weights);
    return static_cast<LrpConvWeights>(weights);
  }

  // `channels`: those of `other`, the input's (forward) or the output's.
  static void check_weight(const char* op, const Tensor& weight, const Tensor& other, int64_t channels, int64_t groups,
                           bool forward) {
    check_same_device(op, "weight", weight, other);
    check_dtype(op, "weight", weight, other.scalar_type());
    if (groups < 1) fail(op, ": groups must be >= 1, got ", groups);
    const bool fits = weight.dim() == other.dim() && weight.size(0) % groups == 0 &&
                      (forward ? weight.size(1) * groups : weight.size(0)) == channels;
    if (!fits)
      fail(op, ": weight must have shape [C_out, C_in / groups, ...] for ", forward ? "C_in" : "C_out", " = ", channels,
           " and groups = ", groups, ", got ", format_sizes(sizes_of(weight)));
  }

  static void check_input(const char* op, const Tensor& input, const Tensor& multiplier, const Sizes& leading,
                          const Sizes& spatial) {
    check_same_device(op, "input", input, multiplier);
    check_dtype(op, "input", input, multiplier.scalar_type());
    const Sizes expected = with_channels(leading[0], leading[1], spatial), got = sizes_of(input);
    if (expected != got) fail(op, ": input must have shape ", format_sizes(expected), ", got ", format_sizes(got));
  }
};

}  // namespace lrpkernels
