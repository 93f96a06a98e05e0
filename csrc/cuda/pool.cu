// Pooling: winner-takes-all for max pooling, average pooling and its transpose. All are gathers: an output element sums
// its own inputs in a fixed order, without atomics.
#include "elementwise.cuh"

namespace lrpkernels::cuda {
namespace {

// How windows lie, in 32 bits.
struct PoolShape {
  PoolDimension dimension[3];
  int64_t targets;
  int64_t planes;  // batch * channels
  int divisor;     // divisor_override, or 1
  bool counts_padding;
  bool overridden;
  bool adaptive;

  explicit PoolShape(const LrpPool& pool)
      : targets(pool.targets),
        planes(pool.batch * pool.channels),
        divisor(pool.divisor_override != 0 ? static_cast<int>(pool.divisor_override) : 1),
        counts_padding(pool.count_include_pad != 0),
        overridden(pool.divisor_override != 0),
        adaptive(pool.adaptive != 0) {
    for (int d = 0; d < 3; ++d)
      dimension[d] = {static_cast<int>(pool.input[d]),   static_cast<int>(pool.output[d]),
                      static_cast<int>(pool.kernel[d]),  static_cast<int>(pool.stride[d]),
                      static_cast<int>(pool.padding[d]), static_cast<int>(pool.dilation[d])};
  }

  // The input positions of window o in dimension d, and what they add to the divisor.
  __device__ __forceinline__ Span window(int d, int o, int* weight) const {
    const PoolDimension& own = dimension[d];
    const Span padded = adaptive ? own.adaptive_window(o) : own.padded_window(o), inside = own.inside(padded);
    *weight = overridden ? 1 : (counts_padding ? padded : inside).length();
    return inside;
  }
};

// An element of a tensor: its position in the plane, and where the plane of its image and channel begins.
struct Place {
  int position[3];
  int64_t plane;
  int64_t channel;  // channels-last; 0 else
};

// The layout of a [images, channels, depth, height, width] tensor.
struct PlaneMap {
  FastDivisor spatial, channels;  // channels: 1 for NCHW, where they count as images
  int height, width;

  PlaneMap(const LrpPool& pool, const int64_t (&size)[3])
      : spatial(size[0] * size[1] * size[2]),
        channels(pool.channels_last != 0 ? pool.channels : 1),
        height(static_cast<int>(size[1])),
        width(static_cast<int>(size[2])) {}

  // Of element i in memory order.
  __device__ __forceinline__ Place place(int64_t i) const {
    Place place;
    const int64_t row = channels.quotient(i);
    place.channel = i - row * channels.divisor();
    place.plane = spatial.quotient(row);
    const auto flat = static_cast<unsigned>(row - place.plane * spatial.divisor());
    const unsigned line = flat / static_cast<unsigned>(width);
    place.position[2] = static_cast<int>(flat - line * static_cast<unsigned>(width));
    place.position[0] = static_cast<int>(line / static_cast<unsigned>(height));
    place.position[1] = static_cast<int>(line) - place.position[0] * height;
    return place;
  }

  __device__ __forceinline__ int flat(int d, int h, int w) const { return (d * height + h) * width + w; }

  // The first element of the plane of another tensor's `place`.
  __device__ __forceinline__ int64_t begin(const Place& place) const {
    return place.plane * spatial.divisor() * channels.divisor() + place.channel;
  }
};

// kVec neighbouring int64 numbers.
template <int kVec>
__device__ __forceinline__ void load_indices(const int64_t* address, int64_t (&index)[kVec]) {
  if constexpr (kVec == 1) {
    index[0] = read_global(address);
  } else {
#pragma unroll
    for (int part = 0; part < kVec / 2; ++part) {
      const uint4 raw = read_global(reinterpret_cast<const uint4*>(address) + part);
      memcpy(&index[2 * part], &raw, sizeof raw);
    }
  }
}

// One element (channels-last: kVec channels) of the input per thread: the sum over the windows that it won.
template <typename storage_t>
struct MaxPoolWinner {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;  // [targets, batch, channels, output]
  const int64_t* indices;      // [batch, channels, output]
  scalar_t* result;            // [targets, batch, channels, input]
  PoolShape shape;
  PlaneMap in, out;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Place place = in.place(i);
    Span span[3];
#pragma unroll
    for (int d = 0; d < 3; ++d) span[d] = shape.dimension[d].covering(place.position[d]);
    const int64_t own = in.flat(place.position[0], place.position[1], place.position[2]), begin = out.begin(place);
#pragma unroll 1  // unrolled, the vectors of several targets do not fit the registers
    for (int64_t target = 0; target < shape.targets; ++target) {
      const scalar_t* const from = multiplier + target * shape.planes * out.spatial.divisor() + begin;
      Pack<acc_t, kVec> sum = filled<kVec>(acc_t(0));
      for (int d = span[0].begin; d < span[0].end; ++d)
        for (int h = span[1].begin; h < span[1].end; ++h)
#pragma unroll 1
          for (int w = span[2].begin; w < span[2].end; ++w) {
            const int64_t at = out.flat(d, h, w) * out.channels.divisor();
            int64_t winner[kVec];
            load_indices(indices + begin + at, winner);
            const Pack<acc_t, kVec> g = load<kVec>(from + at);
#pragma unroll
            for (int j = 0; j < kVec; ++j) sum[j] += winner[j] == own ? g[j] : acc_t(0);
          }
      store<kVec>(result + target * shape.planes * in.spatial.divisor() + i, sum);
    }
  }
};

// One element (kVec channels) of the output per thread: the gradient at its winner.
template <typename storage_t>
struct MaxPoolWinnerBackward {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* grad;       // [targets, batch, channels, input]
  const int64_t* indices;     // [batch, channels, output]
  scalar_t* grad_multiplier;  // [targets, batch, channels, output]
  PoolShape shape;
  PlaneMap in, out;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    int64_t winner[kVec];
    load_indices(indices + i, winner);
    const int64_t begin = in.begin(out.place(i));
#pragma unroll 1  // unrolled, the vectors of several targets do not fit the registers
    for (int64_t target = 0; target < shape.targets; ++target) {
      const scalar_t* const from = grad + target * shape.planes * in.spatial.divisor() + begin;
      Pack<acc_t, kVec> g;
#pragma unroll
      for (int j = 0; j < kVec; ++j) g[j] = to_arithmetic(read_global(from + winner[j] * in.channels.divisor() + j));
      store<kVec>(grad_multiplier + target * shape.planes * out.spatial.divisor() + i, g);
    }
  }
};

// One element (kVec channels) of the output per thread.
template <typename storage_t>
struct AveragePool {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* input;  // [images, channels, input]
  scalar_t* result;       // [images, channels, output]
  PoolShape shape;
  PlaneMap in, out;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Place place = out.place(i);
    Span span[3];
    int divisor = shape.divisor;
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      int weight;
      span[d] = shape.window(d, place.position[d], &weight);
      divisor *= weight;
    }
    const scalar_t* const from = input + in.begin(place);
    Pack<acc_t, kVec> sum = filled<kVec>(acc_t(0));
    for (int d = span[0].begin; d < span[0].end; ++d)
      for (int h = span[1].begin; h < span[1].end; ++h)
#pragma unroll 1
        for (int w = span[2].begin; w < span[2].end; ++w) {
          const Pack<acc_t, kVec> x = load<kVec>(from + in.flat(d, h, w) * in.channels.divisor());
#pragma unroll
          for (int j = 0; j < kVec; ++j) sum[j] += x[j];
        }
#pragma unroll
    for (int j = 0; j < kVec; ++j) sum[j] /= static_cast<acc_t>(divisor);
    store<kVec>(result + i, sum);
  }
};

// One element (kVec channels) of the input per thread: the sum of its windows' shares.
template <typename storage_t>
struct AveragePoolTranspose {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;  // [images, channels, output]
  scalar_t* result;            // [images, channels, input]
  PoolShape shape;
  PlaneMap in, out;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Place place = in.place(i);
    Span span[3];
#pragma unroll
    for (int d = 0; d < 3; ++d)
      span[d] = shape.adaptive ? shape.dimension[d].adaptive_covering(place.position[d])
                               : shape.dimension[d].covering(place.position[d]);
    const scalar_t* const from = multiplier + out.begin(place);
    Pack<acc_t, kVec> sum = filled<kVec>(acc_t(0));
    int weight[3];
    for (int d = span[0].begin; d < span[0].end; ++d) {
      shape.window(0, d, &weight[0]);
      for (int h = span[1].begin; h < span[1].end; ++h) {
        shape.window(1, h, &weight[1]);
#pragma unroll 1
        for (int w = span[2].begin; w < span[2].end; ++w) {
          shape.window(2, w, &weight[2]);
          const auto divisor = static_cast<acc_t>(shape.divisor * weight[0] * weight[1] * weight[2]);
          const Pack<acc_t, kVec> g = load<kVec>(from + out.flat(d, h, w) * out.channels.divisor());
#pragma unroll
          for (int j = 0; j < kVec; ++j) sum[j] += g[j] / divisor;
        }
      }
    }
    store<kVec>(result + i, sum);
  }
};

// Vectors run along the channels, so they need channels-last and a whole number of them.
template <typename scalar_t, typename... Pointers>
bool channel_vectors(const LrpPool& pool, Pointers... pointers) {
  return pool.channels_last != 0 && pool.channels % kVectorWidth<scalar_t> == 0 && all_aligned(pointers...);
}

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// 32-bit positions: planes of fewer than 2^31 elements, padding included in every sum of a position and a window.
bool fits(const LrpPool& pool) {
  int64_t in = 1, out = 1;
  for (int d = 0; d < 3; ++d) {
    in *= pool.input[d] + 2 * pool.padding[d];
    out *= pool.output[d];
  }
  return in < (1ll << 30) && out < (1ll << 30) && pool.divisor_override < (1ll << 31);
}

int64_t elements(const LrpPool& pool, const int64_t (&size)[3]) {
  return pool.batch * pool.channels * size[0] * size[1] * size[2];
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int lrp_max_pool_winner(LrpDtype dtype, const void* multiplier, const int64_t* indices, void* result, LrpPool pool,
                        void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(pool)) return kInvalidValue;
    const int64_t numel = elements(pool, pool.input);
    if (numel * pool.targets == 0) return 0;
    const MaxPoolWinner<scalar_t> body{static_cast<const scalar_t*>(multiplier),
                                       indices,
                                       static_cast<scalar_t*>(result),
                                       PoolShape(pool),
                                       PlaneMap(pool, pool.input),
                                       PlaneMap(pool, pool.output)};
    return launch_elementwise(body, numel, channel_vectors<scalar_t>(pool, multiplier, indices, result), stream);
  });
}

int lrp_max_pool_winner_backward(LrpDtype dtype, const void* grad, const int64_t* indices, void* grad_multiplier,
                                 LrpPool pool, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(pool)) return kInvalidValue;
    const int64_t numel = elements(pool, pool.output);
    if (numel * pool.targets == 0) return 0;
    const MaxPoolWinnerBackward<scalar_t> body{static_cast<const scalar_t*>(grad),
                                               indices,
                                               static_cast<scalar_t*>(grad_multiplier),
                                               PoolShape(pool),
                                               PlaneMap(pool, pool.input),
                                               PlaneMap(pool, pool.output)};
    return launch_elementwise(body, numel, channel_vectors<scalar_t>(pool, grad, indices, grad_multiplier), stream);
  });
}

int lrp_average_pool(LrpDtype dtype, const void* input, void* result, LrpPool pool, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(pool)) return kInvalidValue;
    const int64_t numel = pool.targets * elements(pool, pool.output);
    if (numel == 0) return 0;
    const AveragePool<scalar_t> body{static_cast<const scalar_t*>(input), static_cast<scalar_t*>(result),
                                     PoolShape(pool), PlaneMap(pool, pool.input), PlaneMap(pool, pool.output)};
    return launch_elementwise(body, numel, channel_vectors<scalar_t>(pool, input, result), stream);
  });
}

int lrp_average_pool_transpose(LrpDtype dtype, const void* multiplier, void* result, LrpPool pool, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(pool)) return kInvalidValue;
    const int64_t numel = pool.targets * elements(pool, pool.input);
    if (numel == 0) return 0;
    const AveragePoolTranspose<scalar_t> body{static_cast<const scalar_t*>(multiplier), static_cast<scalar_t*>(result),
                                              PoolShape(pool), PlaneMap(pool, pool.input), PlaneMap(pool, pool.output)};
    return launch_elementwise(body, numel, channel_vectors<scalar_t>(pool, multiplier, result), stream);
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda
