// Index arithmetic shared by host and device code, and which sizes it holds for. No torch headers.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "rule_math.h"
#include "types.h"

namespace lrpkernels {

template <typename index_t>
constexpr LRP_HD index_t ceil_div(index_t a, index_t b) {
  return (a + b - 1) / b;
}

// More elements than any memory holds; small multiples, such as bytes, still fit 64 bits.
constexpr int64_t kMostElements = int64_t(1) << 48;

// The product of sizes >= 0, or 2^62 where it would be larger: safe to compare with a limit, whatever the sizes.
inline int64_t bounded_product(std::initializer_list<int64_t> sizes) {
  constexpr int64_t kBound = int64_t(1) << 62;
  int64_t product = 1;
  for (const int64_t size : sizes)
    if (size == 0) return 0;
  for (const int64_t size : sizes) product = product > kBound / size ? kBound : product * size;
  return product;
}

// Exact division of 0 <= n < 2^63 by a divisor fixed at launch: one wide multiplication and a shift instead of the
// 64-bit division that GPUs emulate in about a hundred instructions.
class FastDivisor {
 public:
  FastDivisor() : FastDivisor(1) {}

  // divisor >= 1. With 2^shift >= divisor, multiplier = ceil(2^(63 + shift) / divisor) fits 64 bits, and the error of
  // n * multiplier stays under 2^(63 + shift) for every n < 2^63 (Granlund and Montgomery 1994, theorem 4.2).
  explicit FastDivisor(int64_t divisor) : divisor_(divisor), shift_(0) {
    while ((uint64_t(1) << shift_) < static_cast<uint64_t>(divisor)) ++shift_;
    const unsigned __int128 power = static_cast<unsigned __int128>(1) << (63 + shift_);
    multiplier_ = static_cast<uint64_t>((power + static_cast<uint64_t>(divisor) - 1) / static_cast<uint64_t>(divisor));
  }

  LRP_HD int64_t divisor() const { return divisor_; }

  LRP_HD int64_t quotient(int64_t n) const {
    const uint64_t doubled = static_cast<uint64_t>(n) << 1;
#if defined(__CUDA_ARCH__)
    return static_cast<int64_t>(__umul64hi(doubled, multiplier_) >> shift_);
#else
    return static_cast<int64_t>(static_cast<uint64_t>((static_cast<unsigned __int128>(doubled) * multiplier_) >> 64) >>
                                shift_);
#endif
  }

  LRP_HD int64_t remainder(int64_t n) const { return n - quotient(n) * divisor_; }

 private:
  int64_t divisor_;
  uint64_t multiplier_;
  int shift_;
};

// Neighbouring positions [begin, end) of one dimension.
struct Span {
  int begin;
  int end;
  LRP_HD int length() const { return end - begin; }
};

// One dimension of a pooling layer. A plane has fewer than 2^31 elements, so positions are 32-bit.
struct PoolDimension {
  int input;
  int output;
  int kernel;
  int stride;
  int padding;
  int dilation;

  // The windows that may cover input position i (that do cover it when dilation is 1).
  LRP_HD Span covering(int i) const {
    const unsigned last = static_cast<unsigned>(i + padding), step = static_cast<unsigned>(stride);
    const int first = i + padding - (kernel - 1) * dilation, end = static_cast<int>(last / step) + 1;
    return {first <= 0 ? 0 : static_cast<int>((static_cast<unsigned>(first) + step - 1) / step),
            end < output ? end : output};
  }

  // Window o of average pooling with the padding counted; what ceil_mode adds behind the padding does not count.
  LRP_HD Span padded_window(int o) const {
    const int begin = o * stride - padding, end = begin + kernel;
    return {begin, end < input + padding ? end : input + padding};
  }

  // Max pooling's window o: from its first position to behind its last one, dilation apart, padding included.
  LRP_HD Span dilated_window(int o) const {
    const int begin = o * stride - padding;
    return {begin, begin + (kernel - 1) * dilation + 1};
  }

  // The part of a window that lies in the input.
  LRP_HD Span inside(Span window) const {
    return {window.begin > 0 ? window.begin : 0, window.end < input ? window.end : input};
  }

  // Adaptive pooling: window o, and the windows that cover input position i.
  LRP_HD Span adaptive_window(int o) const {
    return {static_cast<int>(int64_t(o) * input / output),
            static_cast<int>(ceil_div(int64_t(o + 1) * input, int64_t(output)))};
  }
  LRP_HD Span adaptive_covering(int i) const {
    return {static_cast<int>(int64_t(i) * output / input),
            static_cast<int>(ceil_div(int64_t(i + 1) * output, int64_t(input)))};
  }
};

// The kernel positions that meet one phase of a convolution dimension, an arithmetic progression: position
// first + j * step reads x[m * multiple + offset + j * offset_step], j < count, for output m of the phase.
struct Taps {
  int first;
  int step;
  int count;
  int offset;
  int offset_step;
};

struct ConvDimension {
  int kernel;
  int stride;
  int padding;
  int dilation;

  // Forward: one phase. Transposed: position i of the input belongs to phase i % stride and, there, is m = i / stride;
  // kernel position k reaches it from output (i + padding - k * dilation) / stride where that is whole.
  LRP_HD int phases(bool transposed) const { return transposed ? stride : 1; }

  // Kernel positions of one phase are this far apart: stride / gcd(stride, dilation).
  LRP_HD int tap_step(bool transposed) const {
    if (!transposed) return 1;
    int a = stride, b = dilation;
    while (b != 0) {
      const int rest = a % b;
      a = b;
      b = rest;
    }
    return stride / a;
  }

  LRP_HD int most_taps(bool transposed) const { return ceil_div(kernel, tap_step(transposed)); }

  LRP_HD Taps taps(bool transposed, int phase) const {
    if (!transposed) return {0, 1, kernel, -padding, dilation};
    const int step = tap_step(true);
    for (int first = 0; first < step && first < kernel; ++first) {
      const int reach = phase + padding - first * dilation;
      if (reach % stride == 0)
        return {first, step, ceil_div(kernel - first, step), reach / stride, -(dilation / (stride / step))};
    }
    return {0, step, 0, 0, 0};
  }
};

inline bool fits(const LrpExtent& extent) {
  return bounded_product({extent.targets, extent.numel}) < kMostElements &&
         bounded_product({extent.channels, extent.inner}) < kMostElements;
}

// The largest plane, padding included, that the 32-bit positions of pooling allow.
constexpr int64_t kMostPositions = int64_t(1) << 30;

// Whether planes, padding included, and the ends of windows have 32-bit positions.
inline bool fits(const LrpPool& pool) {
  const bool windows = pool.adaptive == 0;
  int64_t in[3];
  for (int d = 0; d < 3; ++d) {
    in[d] = pool.input[d];
    if (in[d] >= kMostPositions || pool.output[d] >= kMostPositions) return false;
    if (!windows) continue;
    for (const int64_t size : {pool.kernel[d], pool.stride[d], pool.padding[d], pool.dilation[d]})
      if (size >= kMostPositions) return false;
    in[d] += 2 * pool.padding[d];
    if ((pool.output[d] - 1) * pool.stride[d] + (pool.kernel[d] - 1) * pool.dilation[d] >= kMostPositions) return false;
  }
  const int64_t out = bounded_product({pool.output[0], pool.output[1], pool.output[2]});
  const int64_t images = bounded_product({pool.targets, pool.batch, pool.channels});
  return bounded_product({in[0], in[1], in[2]}) < kMostPositions && out < kMostPositions &&
         bounded_product({images, pool.input[0], pool.input[1], pool.input[2]}) < kMostElements &&
         bounded_product({images, out}) < kMostElements && pool.divisor_override < kMostPositions;
}

// Pairs of an input channel of a group and a kernel position.
inline int64_t weight_columns(const LrpConv& conv) {
  return conv.channels_in / conv.groups * conv.kernel[0] * conv.kernel[1];
}

// Whether positions, channels, kernel positions and the weight's elements fit 32 bits. Everything that the launchers
// multiply for a convolution that fits stays below 2^63, except what grows with the strides; see `launchable`.
inline bool fits(const LrpConv& conv) {
  constexpr int64_t kMostPositions = 1 << 28, kMostChannels = 1 << 24, kMostColumns = 1 << 30;
  constexpr int64_t kMost32 = int64_t(1) << 31;
  for (int d = 0; d < 2; ++d) {
    for (const int64_t size :
         {conv.input[d], conv.output[d], conv.kernel[d], conv.stride[d], conv.padding[d], conv.dilation[d]})
      if (size > kMostPositions) return false;
    if (conv.input[d] + 2 * conv.padding[d] + conv.kernel[d] * conv.dilation[d] > kMostPositions) return false;
  }
  if (conv.channels_in >= kMostChannels || conv.channels_out >= kMostChannels || conv.groups < 1 ||
      conv.groups >= kMostChannels)
    return false;
  const int64_t in = conv.input[0] * conv.input[1], out = conv.output[0] * conv.output[1];
  return in < kMost32 && out < kMost32 && conv.kernel[0] * conv.kernel[1] <= kMostColumns &&
         weight_columns(conv) <= kMostColumns && conv.channels_out * weight_columns(conv) < kMost32 &&
         bounded_product({conv.targets, conv.batch, conv.channels_in, in}) < kMostElements &&
         bounded_product({conv.targets, conv.batch, conv.channels_out, out}) < kMostElements;
}

}  // namespace lrpkernels
