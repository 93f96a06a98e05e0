// Index arithmetic shared by host and device code. No torch headers.
#pragma once
#include <cstdint>

#include "rule_math.h"

namespace lrpkernels {

template <typename index_t>
constexpr LRP_HD index_t ceil_div(index_t a, index_t b) {
  return (a + b - 1) / b;
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
        return {first, step, ceil_div(kernel - first, step), reach / stride, -step * dilation / stride};
    }
    return {0, step, 0, 0, 0};
  }
};

}  // namespace lrpkernels
