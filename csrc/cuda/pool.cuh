// What the pooling kernels know of a layer: how windows lie, and where elements of a layout are.
#pragma once
#include "elementwise.cuh"

namespace lrpkernels::cuda {

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

  // The input positions of window o in dimension d.
  __host__ __device__ __forceinline__ Span inside(int d, int o) const {
    const PoolDimension& own = dimension[d];
    return own.inside(adaptive ? own.adaptive_window(o) : own.padded_window(o));
  }

  // What window o adds to the divisor.
  __device__ __forceinline__ int weight(int d, int o) const {
    if (overridden) return 1;
    return counts_padding && !adaptive ? dimension[d].padded_window(o).length() : inside(d, o).length();
  }

  // The windows of average pooling that cover input position i in dimension d.
  __host__ __device__ __forceinline__ Span covering(int d, int i) const {
    return adaptive ? dimension[d].adaptive_covering(i) : dimension[d].covering(i);
  }
};

// Empty where end lies ahead of begin.
__host__ __device__ __forceinline__ Span from_to(int begin, int end) { return {begin, end > begin ? end : begin}; }

// An element of a tensor: its position in the plane, and where the plane of its image and channel begins.
struct Place {
  int position[3];
  int64_t plane;
  int64_t channel;  // channels-last; 0 else
};

// The layout of a [images, channels, depth, height, width] tensor.
struct PlaneMap {
  FastDivisor spatial, channels;  // channels: 1 for NCHW, where they count as images
  int depth, height, width;

  PlaneMap(const LrpPool& pool, const int64_t (&size)[3])
      : spatial(size[0] * size[1] * size[2]),
        channels(pool.channels_last != 0 ? pool.channels : 1),
        depth(static_cast<int>(size[0])),
        height(static_cast<int>(size[1])),
        width(static_cast<int>(size[2])) {}

  // Of element i in memory order.
  __device__ __forceinline__ Place place(int64_t i) const {
    Place place;
    const int64_t row = channels.quotient(i);
    place.channel = i - row * channels.divisor();
    place.plane = spatial.quotient(row);
    locate(static_cast<int>(row - place.plane * spatial.divisor()), place.position);
    return place;
  }

  // The position of element `flat` of a plane.
  __device__ __forceinline__ void locate(int flat, int (&position)[3]) const {
    const unsigned line = static_cast<unsigned>(flat) / static_cast<unsigned>(width);
    position[2] = flat - static_cast<int>(line) * width;
    position[0] = static_cast<int>(line / static_cast<unsigned>(height));
    position[1] = static_cast<int>(line) - position[0] * height;
  }

  __device__ __forceinline__ int flat(int d, int h, int w) const { return (d * height + h) * width + w; }

  // Whether a position that windows reach, padding included, is one of the plane.
  __device__ __forceinline__ bool holds(int d, int h, int w) const {
    return d >= 0 && h >= 0 && w >= 0 && d < depth && h < height && w < width;
  }

  // From one position to the next in memory.
  __device__ __forceinline__ void advance(int (&position)[3]) const {
    if (++position[2] < width) return;
    position[2] = 0;
    if (++position[1] < height) return;
    position[1] = 0;
    ++position[0];
  }

  // The first element of the plane of another tensor's `place`.
  __device__ __forceinline__ int64_t begin(const Place& place) const {
    return place.plane * spatial.divisor() * channels.divisor() + place.channel;
  }
};

// The sum of value(i) over the flat positions i of a box.
template <typename acc_t, int kVec, typename Value>
__device__ __forceinline__ Pack<acc_t, kVec> sum_over(const Span (&box)[3], const PlaneMap& map, const Value& value) {
  Pack<acc_t, kVec> sum = filled<kVec>(acc_t(0));
  for (int d = box[0].begin; d < box[0].end; ++d)
    for (int h = box[1].begin; h < box[1].end; ++h)
#pragma unroll 1
      for (int w = box[2].begin; w < box[2].end; ++w) {
        const Pack<acc_t, kVec> x = value(map.flat(d, h, w));
#pragma unroll
        for (int j = 0; j < kVec; ++j) sum[j] += x[j];
      }
  return sum;
}

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

}  // namespace lrpkernels::cuda
