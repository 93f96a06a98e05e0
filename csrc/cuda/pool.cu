// Pooling: winner-takes-all for max pooling, average pooling and its transpose. All are gathers: an output element sums
// its own inputs in a fixed order, without atomics. NCHW is done by tiles (pool_tile.cuh), channels-last and what fits
// no tile element by element.
#include "pool_tile.cuh"

namespace lrpkernels::cuda {
namespace {

// One element (kVec channels) of the input per thread: the sum over the windows that it won.
template <typename storage_t>
struct MaxPoolWinner {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;
  static constexpr Winners kWinners = Winners::kOfSource;
  static constexpr int kTileBlocks = kBlocksPerSm;

  const scalar_t* source;  // multiplier [targets, batch, channels, output]
  const int64_t* indices;  // [batch, channels, output]
  scalar_t* result;        // [targets, batch, channels, input]
  PoolShape shape;
  PlaneMap in, out;

  __host__ __device__ __forceinline__ Span rows(int begin, int end) const {
    const PoolDimension& own = shape.dimension[1];
    return from_to(own.covering(begin).begin, own.covering(end - 1).end);
  }

  // share(o): what the window o, a flat position of the output, adds.
  template <int kVec, typename Share>
  __device__ __forceinline__ Pack<acc_t, kVec> gather(const int (&position)[3], const Share& share) const {
    Span span[3];
#pragma unroll
    for (int d = 0; d < 3; ++d) span[d] = shape.dimension[d].covering(position[d]);
    return sum_over<acc_t, kVec>(span, out, share);
  }

  __device__ __forceinline__ acc_t at(const scalar_t* values, int shift, const int* winners, int winners_shift,
                                      const int (&position)[3]) const {
    const int own = in.flat(position[0], position[1], position[2]);
    return gather<1>(position, [&](int o) {
      return filled<1>(winners[winners_shift + o] == own ? to_arithmetic(values[shift + o]) : acc_t(0));
    })[0];
  }

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Place place = in.place(i);
    const int64_t own = in.flat(place.position[0], place.position[1], place.position[2]), begin = out.begin(place);
#pragma unroll 1  // unrolled, the vectors of several targets do not fit the registers
    for (int64_t target = 0; target < shape.targets; ++target) {
      const scalar_t* const from = source + target * shape.planes * out.spatial.divisor() + begin;
      const Pack<acc_t, kVec> sum = gather<kVec>(place.position, [&](int o) {
        const int64_t step = o * out.channels.divisor();
        int64_t winner[kVec];
        load_indices(indices + begin + step, winner);
        Pack<acc_t, kVec> g = load<kVec>(from + step);
#pragma unroll
        for (int j = 0; j < kVec; ++j) g[j] = winner[j] == own ? g[j] : acc_t(0);
        return g;
      });
      store<kVec>(result + target * shape.planes * in.spatial.divisor() + i, sum);
    }
  }
};

// One element (kVec channels) of the output per thread: the gradient at its winner. Vectors read their whole windows
// and pick, because the channels' winners lie apart.
template <typename storage_t>
struct MaxPoolWinnerBackward {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;
  static constexpr Winners kWinners = Winners::kOfResult;
  static constexpr int kTileBlocks = kBlocksPerSm;

  const scalar_t* source;  // gradient [targets, batch, channels, input]
  const int64_t* indices;  // [batch, channels, output]
  scalar_t* result;        // [targets, batch, channels, output]
  PoolShape shape;
  PlaneMap in, out;

  __host__ __device__ __forceinline__ Span rows(int begin, int end) const {
    const PoolDimension& own = shape.dimension[1];
    return own.inside(from_to(own.dilated_window(begin).begin, own.dilated_window(end - 1).end));
  }

  __device__ __forceinline__ acc_t at(const scalar_t* values, int shift, const int* winners, int winners_shift,
                                      const int (&)[3]) const {
    return to_arithmetic(values[shift + winners[winners_shift]]);
  }

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    int64_t winner[kVec];
    load_indices(indices + i, winner);
    const Place place = out.place(i);
    const int64_t begin = in.begin(place);
#pragma unroll 1  // unrolled, the vectors of several targets do not fit the registers
    for (int64_t target = 0; target < shape.targets; ++target) {
      const scalar_t* const from = source + target * shape.planes * in.spatial.divisor() + begin;
      store<kVec>(result + target * shape.planes * out.spatial.divisor() + i, picked(from, winner, place));
    }
  }

 private:
  __device__ __forceinline__ Pack<acc_t, 1> picked(const scalar_t* from, const int64_t (&winner)[1],
                                                   const Place&) const {
    return load<1>(from + winner[0] * in.channels.divisor());
  }

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kVec> picked(const scalar_t* from, const int64_t (&winner)[kVec],
                                                      const Place& place) const {
    Span span[3];
#pragma unroll
    for (int d = 0; d < 3; ++d) span[d] = shape.dimension[d].dilated_window(place.position[d]);
    Pack<acc_t, kVec> result = filled<kVec>(acc_t(0));
    for (int d = span[0].begin; d < span[0].end; d += shape.dimension[0].dilation)
      for (int h = span[1].begin; h < span[1].end; h += shape.dimension[1].dilation)
#pragma unroll 1
        for (int w = span[2].begin; w < span[2].end; w += shape.dimension[2].dilation) {
          if (!in.holds(d, h, w)) continue;
          const int at = in.flat(d, h, w);
          const Pack<acc_t, kVec> x = load<kVec>(from + at * in.channels.divisor());
#pragma unroll
          for (int j = 0; j < kVec; ++j) result[j] = winner[j] == at ? x[j] : result[j];
        }
    return result;
  }
};

// One element (kVec channels) of the output per thread.
template <typename storage_t>
struct AveragePool {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;
  static constexpr Winners kWinners = Winners::kNone;
  static constexpr int kTileBlocks = kBlocksPerSm;

  const scalar_t* source;  // input [images, channels, input]
  const int64_t* indices;  // none
  scalar_t* result;        // [images, channels, output]
  PoolShape shape;
  PlaneMap in, out;

  __host__ __device__ __forceinline__ Span rows(int begin, int end) const {
    return from_to(shape.inside(1, begin).begin, shape.inside(1, end - 1).end);
  }

  // value(i): the input at flat position i.
  template <int kVec, typename Value>
  __device__ __forceinline__ Pack<acc_t, kVec> gather(const int (&position)[3], const Value& value) const {
    Span span[3];
    int divisor = shape.divisor;
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      span[d] = shape.inside(d, position[d]);
      divisor *= shape.weight(d, position[d]);
    }
    Pack<acc_t, kVec> sum = sum_over<acc_t, kVec>(span, in, value);
#pragma unroll
    for (int j = 0; j < kVec; ++j) sum[j] /= static_cast<acc_t>(divisor);
    return sum;
  }

  __device__ __forceinline__ acc_t at(const scalar_t* values, int shift, const int*, int,
                                      const int (&position)[3]) const {
    return gather<1>(position, [&](int i) { return filled<1>(to_arithmetic(values[shift + i])); })[0];
  }

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Place place = out.place(i);
    const scalar_t* const from = source + in.begin(place);
    store<kVec>(result + i,
                gather<kVec>(place.position, [&](int at) { return load<kVec>(from + at * in.channels.divisor()); }));
  }
};

// One element (kVec channels) of the input per thread: the sum of its windows' shares.
template <typename storage_t>
struct AveragePoolTranspose {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;
  static constexpr Winners kWinners = Winners::kNone;
  static constexpr int kTileBlocks = 3;  // 16-bit vectors do not fit 64 registers

  const scalar_t* source;  // multiplier [images, channels, output]
  const int64_t* indices;  // none
  scalar_t* result;        // [images, channels, input]
  PoolShape shape;
  PlaneMap in, out;

  __host__ __device__ __forceinline__ Span rows(int begin, int end) const {
    return from_to(shape.covering(1, begin).begin, shape.covering(1, end - 1).end);
  }

  // value(o): the multiplier at flat position o.
  template <int kVec, typename Value>
  __device__ __forceinline__ Pack<acc_t, kVec> gather(const int (&position)[3], const Value& value) const {
    Span span[3];
#pragma unroll
    for (int d = 0; d < 3; ++d) span[d] = shape.covering(d, position[d]);
    Pack<acc_t, kVec> sum = filled<kVec>(acc_t(0));
    for (int d = span[0].begin; d < span[0].end; ++d) {
      const int depth = shape.divisor * shape.weight(0, d);
      for (int h = span[1].begin; h < span[1].end; ++h) {
        const int plane = depth * shape.weight(1, h);
#pragma unroll 1
        for (int w = span[2].begin; w < span[2].end; ++w) {
          const auto divisor = static_cast<acc_t>(plane * shape.weight(2, w));
          const Pack<acc_t, kVec> g = value(out.flat(d, h, w));
#pragma unroll
          for (int j = 0; j < kVec; ++j) sum[j] += g[j] / divisor;
        }
      }
    }
    return sum;
  }

  __device__ __forceinline__ acc_t at(const scalar_t* values, int shift, const int*, int,
                                      const int (&position)[3]) const {
    return gather<1>(position, [&](int o) { return filled<1>(to_arithmetic(values[shift + o])); })[0];
  }

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Place place = in.place(i);
    const scalar_t* const from = source + out.begin(place);
    store<kVec>(result + i,
                gather<kVec>(place.position, [&](int at) { return load<kVec>(from + at * out.channels.divisor()); }));
  }
};

// Two channels a thread in max pooling: with more, neighbouring threads would read distant winners, of 8 bytes.
template <typename Body>
constexpr int kChannelVector = Body::kWinners == Winners::kNone ? kVectorWidth<typename Body::scalar_t> : 2;

// By tiles, else element by element: a vector of channels of the result per thread where they are neighbours (it is
// channels-last, with a whole number of vectors). kToInput: the result has the layout of the layer's input.
template <template <typename> class Body, bool kToInput>
int launch_pool(LrpDtype dtype, const void* source, const int64_t* indices, void* result, const LrpPool& pool,
                void* stream) {
  if (!fits(pool)) return kInvalidValue;
  return with_storage(dtype, [&](auto storage) {
    using Typed = Body<decltype(storage)>;
    const int64_t (&from)[3] = kToInput ? pool.output : pool.input;
    const int64_t (&to)[3] = kToInput ? pool.input : pool.output;
    const int64_t numel = pool.batch * pool.channels * to[0] * to[1] * to[2];
    if (numel == 0 || pool.targets == 0) return 0;
    const Typed body{
        In{source}, indices, Out{result}, PoolShape(pool), PlaneMap(pool, pool.input), PlaneMap(pool, pool.output)};
    if (launch_tiles(body, pool, from, to, stream)) return LRP_LAST_ERROR();
    constexpr int kVec = kChannelVector<Typed>;
    const bool vectors = pool.channels_last != 0 && pool.channels % kVec == 0 && all_aligned(source, indices, result);
    return launch_elementwise<kVec>(body, numel, vectors, stream);
  });
}

// Average pooling knows no targets: they are images.
LrpPool with_targets_as_images(LrpPool pool) {
  if (!fits(pool)) return pool;
  pool.batch *= pool.targets;
  pool.targets = 1;
  return pool;
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int lrp_max_pool_winner(LrpDtype dtype, const void* multiplier, const int64_t* indices, void* result, LrpPool pool,
                        void* stream) {
  return launch_pool<MaxPoolWinner, true>(dtype, multiplier, indices, result, pool, stream);
}

int lrp_max_pool_winner_backward(LrpDtype dtype, const void* grad, const int64_t* indices, void* grad_multiplier,
                                 LrpPool pool, void* stream) {
  return launch_pool<MaxPoolWinnerBackward, false>(dtype, grad, indices, grad_multiplier, pool, stream);
}

int lrp_average_pool(LrpDtype dtype, const void* input, void* result, LrpPool pool, void* stream) {
  return launch_pool<AveragePool, false>(dtype, input, nullptr, result, with_targets_as_images(pool), stream);
}

int lrp_average_pool_transpose(LrpDtype dtype, const void* multiplier, void* result, LrpPool pool, void* stream) {
  return launch_pool<AveragePoolTranspose, true>(dtype, multiplier, nullptr, result, with_targets_as_images(pool),
                                                 stream);
}

}  // extern "C"
}  // namespace lrpkernels::cuda
