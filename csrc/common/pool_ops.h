// Host side of the pooling ops, the same for every backend: checks, layout, allocation, early return for empty tensors.
// A Backend as in pointwise_ops.h.
#pragma once
#include <vector>

#include "dispatch.h"
#include "geometry.h"

namespace lrpkernels {

using Sizes = std::vector<int64_t>;

inline Sizes spatial_sizes(const Tensor& tensor) {
  Sizes sizes = sizes_of(tensor);
  sizes.erase(sizes.begin(), sizes.begin() + 2);
  return sizes;
}

inline Sizes with_spatial(const Tensor& tensor, int64_t images, const Sizes& spatial) {
  Sizes sizes = {images, tensor.size(1)};
  sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  return sizes;
}

inline void check_planes(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.dim() < 3 || tensor.dim() > 5)
    fail(op, ": ", name, " must have shape [N, C, ...] with 1 to 3 spatial dimensions, got ",
         format_sizes(sizes_of(tensor)));
}

inline void check_entries(const char* op, const char* name, const Sizes& values, size_t dimensions, int64_t least) {
  bool fits = values.size() == dimensions, large = false;
  for (const int64_t value : values) {
    large = large || value >= kMostPositions;
    fits = fits && value >= least && !large;
  }
  if (!fits)
    fail(op, ": ", name, " must be ", dimensions, " numbers >= ", least, large ? " and < 2^30" : "", ", got ",
         format_sizes(values));
}

// Winners, [B, C, ...] int64 beside a tensor [T * B, C, ...] of the same rank.
inline void check_indices(const char* op, const Tensor& indices, const Tensor& other) {
  check_same_device(op, "indices", indices, other);
  if (indices.scalar_type() != ScalarType::Long)
    fail(op, ": indices must have dtype int64, got ", dtype_name(indices.scalar_type()));
  const int64_t batch = indices.dim() > 0 ? indices.size(0) : 0, images = other.size(0);
  const bool fits = indices.dim() == other.dim() && indices.size(1) == other.size(1) &&
                    (batch == 0 ? images == 0 : images % batch == 0);
  if (!fits)
    fail(op, ": indices must have shape [B, C, ...] beside [T * B, C, ...] = ", format_sizes(sizes_of(other)), ", got ",
         format_sizes(sizes_of(indices)));
}

inline void check_windows(const char* op, size_t dimensions, const Sizes& kernel, const Sizes& stride,
                          const Sizes& padding) {
  check_entries(op, "kernel_size", kernel, dimensions, 1);
  check_entries(op, "stride", stride, dimensions, 1);
  check_entries(op, "padding", padding, dimensions, 0);
}

// The last entries are `values`, those ahead of them (missing dimensions) `otherwise`.
template <size_t kDimensions>
void fill(int64_t (&entries)[kDimensions], const Sizes& values, int64_t otherwise) {
  const size_t missing = kDimensions - values.size();
  for (size_t d = 0; d < kDimensions; ++d) entries[d] = d < missing ? otherwise : values[d - missing];
}

// How windows lie; kernel, stride, padding empty: adaptive.
struct PoolWindows {
  const Sizes& input;
  const Sizes& output;
  Sizes kernel = {};
  Sizes stride = {};
  Sizes padding = {};
  Sizes dilation = {};
};

// `images`: of the multiplier, those of several targets of one batch.
inline LrpPool pool_of(const char* op, const PoolWindows& windows, int64_t images, int64_t batch, int64_t channels,
                       Layout layout) {
  LrpPool pool{};
  pool.targets = batch == 0 ? 1 : images / batch;
  pool.batch = batch;
  pool.channels = channels;
  pool.channels_last = layout == Layout::kChannelsLast;
  pool.adaptive = windows.kernel.empty();
  fill(pool.input, windows.input, 1);
  fill(pool.output, windows.output, 1);
  fill(pool.kernel, windows.kernel, 1);
  fill(pool.stride, windows.stride, 1);
  fill(pool.padding, windows.padding, 0);
  fill(pool.dilation, windows.dilation, 1);
  if (!fits(pool))
    fail(op, ": a plane, padding included, and its windows must have fewer than 2^30 positions, got input ",
         format_sizes(windows.input), ", output ", format_sizes(windows.output), ", kernel_size ",
         format_sizes(windows.kernel), ", stride ", format_sizes(windows.stride), ", padding ",
         format_sizes(windows.padding), ", dilation ", format_sizes(windows.dilation));
  return pool;
}

template <typename Backend>
struct PoolOps {
  // multiplier [T * B, C, output], indices [B, C, output] -> [T * B, C, input]
  static Tensor max_pool_winner(const Tensor& multiplier, const Tensor& indices, const Sizes& input_size,
                                const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                                const Sizes& dilation) {
    constexpr const char* kOp = "max_pool_winner";
    const LrpDtype dtype = storage_dtype(kOp, multiplier, Backend::kDtypes);
    check_planes(kOp, "multiplier", multiplier);
    check_indices(kOp, indices, multiplier);
    const Sizes output = spatial_sizes(indices);
    if (spatial_sizes(multiplier) != output)
      fail(kOp, ": indices must have the multiplier's spatial sizes ", format_sizes(spatial_sizes(multiplier)),
           ", got ", format_sizes(output));
    check_entries(kOp, "input_size", input_size, output.size(), 0);
    check_windows(kOp, output.size(), kernel_size, stride, padding);
    check_entries(kOp, "dilation", dilation, output.size(), 1);
    const typename Backend::Guard guard(multiplier);
    const Layout layout = layout_of(indices);
    const LrpPool pool = pool_of(kOp, {input_size, output, kernel_size, stride, padding, dilation}, multiplier.size(0),
                                 indices.size(0), indices.size(1), layout);
    Tensor result = new_dense(multiplier, with_spatial(multiplier, multiplier.size(0), input_size), layout,
                              multiplier.scalar_type());
    if (result.numel() == 0) return result;
    const Tensor g = to_layout(multiplier, layout), winners = to_layout(indices, layout);
    Backend::max_pool_winner(dtype, data(g), data(winners), out(result), pool, guard.stream());
    return result;
  }

  // grad [T * B, C, input], indices [B, C, output] -> [T * B, C, output]
  static Tensor max_pool_winner_backward(const Tensor& grad, const Tensor& indices, const Sizes& kernel_size,
                                         const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
    constexpr const char* kOp = "max_pool_winner_backward";
    const LrpDtype dtype = storage_dtype(kOp, grad, Backend::kDtypes);
    check_planes(kOp, "grad", grad);
    check_indices(kOp, indices, grad);
    const Sizes input = spatial_sizes(grad), output = spatial_sizes(indices);
    check_windows(kOp, input.size(), kernel_size, stride, padding);
    check_entries(kOp, "dilation", dilation, input.size(), 1);
    const typename Backend::Guard guard(grad);
    const Layout layout = layout_of(indices);
    const LrpPool pool = pool_of(kOp, {input, output, kernel_size, stride, padding, dilation}, grad.size(0),
                                 indices.size(0), indices.size(1), layout);
    Tensor result = new_dense(grad, with_spatial(grad, grad.size(0), output), layout, grad.scalar_type());
    if (result.numel() == 0) return result;
    if (grad.numel() == 0)
      fail(kOp, ": indices of shape ", format_sizes(sizes_of(indices)), " cannot point into an empty grad");
    const Tensor t = to_layout(grad, layout), winners = to_layout(indices, layout);
    Backend::max_pool_winner_backward(dtype, data(t), data(winners), out(result), pool, guard.stream());
    return result;
  }

  // input [N, C, input] -> [N, C, output]; kernel_size, stride and padding empty: adaptive
  static Tensor average_pool(const Tensor& input, const Sizes& output_size, const Sizes& kernel_size,
                             const Sizes& stride, const Sizes& padding, bool count_include_pad,
                             std::optional<int64_t> divisor_override) {
    check_planes("average_pool", "input", input);
    return average<false>("average_pool", input, spatial_sizes(input), output_size, kernel_size, stride, padding,
                          count_include_pad, divisor_override);
  }

  // multiplier [N, C, output] -> [N, C, input]
  static Tensor average_pool_transpose(const Tensor& multiplier, const Sizes& input_size, const Sizes& kernel_size,
                                       const Sizes& stride, const Sizes& padding, bool count_include_pad,
                                       std::optional<int64_t> divisor_override) {
    check_planes("average_pool_transpose", "multiplier", multiplier);
    return average<true>("average_pool_transpose", multiplier, input_size, spatial_sizes(multiplier), kernel_size,
                         stride, padding, count_include_pad, divisor_override);
  }

 private:
  static void check_average(const char* op, const Sizes& input, const Sizes& output, const Sizes& kernel,
                            const Sizes& stride, const Sizes& padding, std::optional<int64_t> divisor_override) {
    // Not by its absolute value, which -2^63 has none of.
    if (divisor_override &&
        (*divisor_override == 0 || *divisor_override >= kMostPositions || *divisor_override <= -kMostPositions))
      fail(op, ": divisor_override must not be 0 and be below 2^30 in size, got ", *divisor_override);
    const size_t dimensions = input.size();
    if (kernel.empty()) {
      check_entries(op, "stride (adaptive)", stride, 0, 1);
      check_entries(op, "padding (adaptive)", padding, 0, 0);
      if (divisor_override) fail(op, ": divisor_override must be None for adaptive pooling, got ", *divisor_override);
      return;
    }
    check_windows(op, dimensions, kernel, stride, padding);
    for (size_t d = 0; d < dimensions; ++d)
      if (output[d] > 0 && (output[d] - 1) * stride[d] >= input[d] + padding[d])
        fail(op, ": the last window must start inside the input or the padding ahead of it, got input ",
             format_sizes(input), ", output ", format_sizes(output), ", stride ", format_sizes(stride), ", padding ",
             format_sizes(padding));
  }

  template <bool kTranspose>
  static Tensor average(const char* op, const Tensor& from, const Sizes& input_size, const Sizes& output_size,
                        const Sizes& kernel_size, const Sizes& stride, const Sizes& padding, bool count_include_pad,
                        std::optional<int64_t> divisor_override) {
    const LrpDtype dtype = storage_dtype(op, from, Backend::kDtypes);
    check_entries(op, kTranspose ? "input_size" : "output_size", kTranspose ? input_size : output_size, from.dim() - 2,
                  0);
    check_average(op, input_size, output_size, kernel_size, stride, padding, divisor_override);
    const typename Backend::Guard guard(from);
    const Layout layout = layout_of(from);
    LrpPool pool = pool_of(op, {input_size, output_size, kernel_size, stride, padding}, from.size(0), from.size(0),
                           from.size(1), layout);
    Tensor result = new_dense(from, with_spatial(from, from.size(0), kTranspose ? input_size : output_size), layout,
                              from.scalar_type());
    if (result.numel() == 0) return result;
    pool.count_include_pad = count_include_pad;
    pool.divisor_override = divisor_override.value_or(0);
    const Tensor x = to_layout(from, layout);
    if constexpr (kTranspose)
      Backend::average_pool_transpose(dtype, data(x), out(result), pool, guard.stream());
    else
      Backend::average_pool(dtype, data(x), out(result), pool, guard.stream());
    return result;
  }
};

}  // namespace lrpkernels
