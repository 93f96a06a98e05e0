// Depthwise convolutions (one input channel per group): nothing to share between channels, so no matrix product. Both
// directions gather, one element (channels-last: one vector of channels) of the result per thread.
#pragma once
#include "conv.cuh"
#include "elementwise.cuh"

namespace lrpkernels::cuda {

// The positions of x that one dimension of an element of y meets, and the kernel positions between them.
struct DepthwiseReach {
  int kernel;
  int stride;
  int dilation;
  int start;  // position + padding (transposed), position * stride - padding (forward)
  bool transposed;

  __device__ __forceinline__ DepthwiseReach(const ConvDimension& d, int position, bool transposed_)
      : kernel(d.kernel),
        stride(d.stride),
        dilation(d.dilation),
        start(transposed_ ? position + d.padding : position * d.stride - d.padding),
        transposed(transposed_) {}

  // Of kernel position k; -1 where it meets none.
  __device__ __forceinline__ int at(int k, int size) const {
    int x = transposed ? start - k * dilation : start + k * dilation;
    if (transposed && stride > 1 && x >= 0) {
      const int whole = static_cast<int>(static_cast<unsigned>(x) / static_cast<unsigned>(stride));
      x = whole * stride == x ? whole : -1;
    }
    return x < size ? x : -1;
  }
};

template <typename storage_t>
struct Depthwise {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  ConvProblem<scalar_t> p;
  const scalar_t* weight;               // [C_out, 1, kernel]
  FastDivisor channels, height, width;  // of y
  int multiplier;                       // output channels per input channel
  bool channels_last;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    int64_t rest = i;
    int channel = 0;
    if (channels_last) {
      rest = channels.quotient(i);
      channel = static_cast<int>(i - rest * channels.divisor());
    }
    const int64_t line = width.quotient(rest);
    const auto column = static_cast<int>(rest - line * width.divisor());
    int64_t image = height.quotient(line);
    const auto row = static_cast<int>(line - image * height.divisor());
    if (!channels_last) {
      const int64_t plane = image;
      image = channels.quotient(plane);
      channel = static_cast<int>(plane - image * channels.divisor());
    }

    // Channels of x: `multiplier` of them (transposed), or the one that this channel of y reads.
    const int first = p.transposed ? channel * multiplier : channel / multiplier, count = p.transposed ? multiplier : 1;
    const int taps = p.dimension[0].kernel * p.dimension[1].kernel;
    const DepthwiseReach down(p.dimension[0], row, p.transposed), across(p.dimension[1], column, p.transposed);
    Pack<acc_t, kVec> sum[3] = {filled<kVec>(acc_t(0)), filled<kVec>(acc_t(0)), filled<kVec>(acc_t(0))};
    for (int c = first; c < first + count; ++c) {
      const scalar_t* const own = weight + static_cast<int64_t>(p.transposed ? c : channel) * taps;
      for (int ky = 0; ky < p.dimension[0].kernel; ++ky) {
        const int y = down.at(ky, p.x.height);
        if (y < 0) continue;
#pragma unroll 1
        for (int kx = 0; kx < p.dimension[1].kernel; ++kx) {
          const int x = across.at(kx, p.x.width);
          if (x < 0) continue;
          const int64_t within = y * p.x.row_step + x * p.x.column_step + c * p.x.channel_step;
          const int64_t at = image * p.x.image_step + within, values = image % p.batch * p.x.image_step + within;
          Pack<acc_t, kVec> s;
          if constexpr (kVec == 1)
            s[0] = p.x_values.at(true, at, values, c);
          else
            s = p.x_values.vector_at(true, at, values, c);
#pragma unroll
          for (int j = 0; j < kVec; ++j) {
            const acc_t w = to_arithmetic(read_global(own + j * taps + ky * p.dimension[1].kernel + kx));
            sum[0][j] += s[j] * weight_part(p.weights, 0, w);
            if (p.sets > 1) sum[1][j] += s[j] * weight_part(p.weights, 1, w);
            if (p.sets > 2) sum[2][j] += s[j] * weight_part(p.weights, 2, w);
          }
        }
      }
    }

    if (p.sets > 1) {
      const int64_t behind = (image - image % p.batch) * p.y.image_step;  // targets before this one
      const Pack<acc_t, kVec> a = load<kVec>(p.input + i - behind);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if (p.sets == 2 && !(a[j] >= acc_t(0))) sum[0][j] = a[j] < acc_t(0) ? sum[1][j] : a[j];
        if (p.weights == kBox)
          sum[0][j] = a[j] * sum[0][j] - read_global(p.low + channel + j) * sum[1][j] -
                      read_global(p.high + channel + j) * sum[2][j];
      }
    }
    store<kVec>(p.y_values + i, sum[0]);
  }
};

template <typename scalar_t>
constexpr int kResidentBlocks<Depthwise<scalar_t>> = 2;

inline bool is_depthwise(const LrpConv& conv) { return conv.groups == conv.channels_in; }

template <typename scalar_t>
int launch_depthwise(const ConvProblem<scalar_t>& p, const void* weight, const LrpConv& conv, void* stream) {
  const bool channels_last = conv.channels_last != 0;
  const int64_t channels = p.transposed ? conv.channels_in : conv.channels_out;
  const auto multiplier = static_cast<int>(conv.channels_out / conv.channels_in);
  const FastDivisor by_channels(channels), by_height(p.y.height), by_width(p.y.width);
  const Depthwise<scalar_t> body{p, In{weight}, by_channels, by_height, by_width, multiplier, channels_last};
  const ScaledInput<scalar_t>& x = p.x_values;
  const bool vectors = channels_last && multiplier == 1 && channels % kVectorWidth<scalar_t> == 0 &&
                       all_aligned(x.multiplier, x.addend, x.output, x.value, x.denominator, p.input, p.y_values);
  return launch_elementwise(body, p.images * channels * p.y.height * p.y.width, vectors, stream);
}

}  // namespace lrpkernels::cuda
