// What the convolution kernels share. Both directions are one map from x to y: for every output position of a phase,
//   y[m] = sum over taps and channels of s(x[m * multiple + offset(tap)]) * w(tap), see Taps in geometry.h;
// forward there is one phase, transposed there are stride x stride, so that no multiplication by a skipped zero is
// done. As a matrix product: rows are output positions, columns output channels (times weight sets), the inner
// dimension runs over taps and, inside a tap, over input channels.
#pragma once
#include <type_traits>

#include "memory.cuh"

namespace lrpkernels::cuda {

// A [images, channels, height, width] tensor in either layout.
struct Image {
  int height;
  int width;
  int channels;  // of a group
  int64_t image_step;
  int64_t channel_step;
  int64_t row_step;
  int64_t column_step;
};

// Turns the multiplier into s while it is loaded; forward convolutions use it with the multiplier alone.
template <typename scalar_t>
struct ScaledInput {
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;
  const scalar_t* addend;
  const scalar_t* output;
  const acc_t* scale;
  const scalar_t* value;
  const scalar_t* denominator;
  acc_t epsilon;

  // i: of the multiplier; j: of the forward values; 0 when `inside` is false.
  __device__ __forceinline__ acc_t at(bool inside, int64_t i, int64_t j, int channel) const {
    const scalar_t zero = to_storage<scalar_t>(acc_t(0));
    acc_t g = to_arithmetic(read_global_if(inside, multiplier + i, zero));
    if (addend) g += to_arithmetic(read_global_if(inside, addend + i, zero));
    if (scale) g *= read_global_if(inside, scale + channel, acc_t(0));
    const scalar_t one = to_storage<scalar_t>(acc_t(1));
    if (output) g *= relu_ratio(to_arithmetic(read_global_if(inside, output + j, one)), epsilon);
    if (denominator) {
      const acc_t d = stabilize(to_arithmetic(read_global_if(inside, denominator + j, one)), epsilon);
      g = g * to_arithmetic(read_global_if(inside, value + j, zero)) / d;
    }
    return g;
  }

  // The same for a 16-byte vector of neighbouring channels.
  __device__ __forceinline__ Pack<acc_t, kVectorWidth<scalar_t>> vector_at(bool inside, int64_t i, int64_t j,
                                                                           int channel) const {
    constexpr int kWidth = kVectorWidth<scalar_t>;
    using Vector = Pack<acc_t, kWidth>;
    Vector g = load_if(inside, multiplier + i);
    if (addend) {
      const Vector g2 = load_if(inside, addend + i);
#pragma unroll
      for (int n = 0; n < kWidth; ++n) g[n] += g2[n];
    }
    if (scale) {
#pragma unroll
      for (int n = 0; n < kWidth; ++n) g[n] *= read_global_if(inside, scale + channel + n, acc_t(0));
    }
    if (output) {
      const Vector u = load_if(inside, output + j);
#pragma unroll
      for (int n = 0; n < kWidth; ++n) g[n] *= relu_ratio(u[n], epsilon);
    }
    if (denominator) {
      const Vector d = load_if(inside, denominator + j), v = load_if(inside, value + j);
#pragma unroll
      for (int n = 0; n < kWidth; ++n) g[n] = inside ? g[n] * v[n] / stabilize(d[n], epsilon) : acc_t(0);
    }
    return g;
  }
};

template <typename scalar_t>
struct ConvProblem {
  using acc_t = arithmetic_t<scalar_t>;

  ScaledInput<scalar_t> x_values;
  const void* packed;  // weights, see pack_weights_kernel
  scalar_t* y_values;
  const scalar_t* input;  // a, laid out as y without targets
  const acc_t* low;
  const acc_t* high;
  Image x, y;
  ConvDimension dimension[2];
  bool transposed;
  LrpConvWeights weights;
  int64_t images;
  int64_t batch;
  int groups;
  int sets;             // columns of one output channel
  int columns;          // y.channels * sets, rounded up to the tile
  int padded_channels;  // x.channels rounded up to the slab
  int most_taps;        // of a phase
  int64_t row_tiles;    // of the largest phase
  int column_tiles;
};

// Columns that one output channel takes, and the part of the weight in each.
LRP_HD int weight_sets(LrpConvWeights weights) {
  return weights == kBox ? 4 : (weights == kSameSign || weights == kOppositeSign ? 2 : 1);
}

template <typename acc_t>
LRP_HD acc_t weight_part(LrpConvWeights weights, int set, acc_t w) {
  const acc_t positive = positive_part(w), negative = negative_part(w);
  switch (weights) {
    case kWeight:
      return w;
    case kPositiveWeight:
      return positive;
    case kNegativeWeight:
      return negative;
    case kSameSign:
      return set == 0 ? positive : negative;
    case kOppositeSign:
      return set == 0 ? negative : positive;
    default:
      return set == 0 ? w : (set == 1 ? positive : (set == 2 ? negative : acc_t(0)));
  }
}

// The weight element of one packed place, or zero where there is none. `tap` numbers the kernel positions of the phase.
template <typename scalar_t>
__device__ __forceinline__ arithmetic_t<scalar_t> packed_weight(const ConvProblem<scalar_t>& p, const scalar_t* weight,
                                                                int64_t phase_and_group, int tap, int channel,
                                                                int column) {
  const int group = static_cast<int>(phase_and_group % p.groups), phase = static_cast<int>(phase_and_group / p.groups);
  const int across = p.dimension[1].phases(p.transposed), out = column / p.sets;
  const Taps down = p.dimension[0].taps(p.transposed, phase / across);
  const Taps over = p.dimension[1].taps(p.transposed, phase % across);
  if (tap >= down.count * over.count || channel >= p.x.channels || out >= p.y.channels) return 0;
  const int ky = down.first + tap / over.count * down.step, kx = over.first + tap % over.count * over.step;
  // [C_out, C_in / groups, kernel], whichever of the two is x
  const int64_t row =
      static_cast<int64_t>(group) * (p.transposed ? p.x.channels : p.y.channels) + (p.transposed ? channel : out);
  const int64_t place = row * (p.transposed ? p.y.channels : p.x.channels) + (p.transposed ? out : channel);
  const int64_t at = (place * p.dimension[0].kernel + ky) * p.dimension[1].kernel + kx;
  return weight_part(p.weights, column % p.sets, to_arithmetic(read_global(weight + at)));
}

// Where a block works.
struct Tile {
  int phase[2];
  int group;
  int column_tile;
  int64_t row_begin;
  int height;  // output positions of the phase
  int width;
  Taps taps[2];

  template <typename scalar_t>
  __device__ __forceinline__ Tile(const ConvProblem<scalar_t>& p, int64_t block, int tile_rows) {
    // Column tiles first: neighbouring blocks read the same part of x.
    column_tile = static_cast<int>(block % p.column_tiles);
    block /= p.column_tiles;
    row_begin = block % p.row_tiles * tile_rows;
    block /= p.row_tiles;
    group = static_cast<int>(block % p.groups);
    const int both = static_cast<int>(block / p.groups), across = p.dimension[1].phases(p.transposed);
    phase[0] = both / across;
    phase[1] = both % across;
    const int step_y = p.dimension[0].phases(p.transposed), step_x = across;
    height = phase[0] < p.y.height ? ceil_div(p.y.height - phase[0], step_y) : 0;
    width = phase[1] < p.y.width ? ceil_div(p.y.width - phase[1], step_x) : 0;
#pragma unroll
    for (int d = 0; d < 2; ++d) taps[d] = p.dimension[d].taps(p.transposed, phase[d]);
  }

  __device__ __forceinline__ bool empty(int64_t images) const { return row_begin >= images * height * width; }
};

// The rows of a tile, in shared memory: where each reads and writes.
template <int kRows>
struct RowTable {
  int64_t x_begin[kRows];   // its image and group in x
  int64_t x_values[kRows];  // the same in the forward values, which have no targets
  int64_t y_begin[kRows];   // its position in y, channel 0 of the group; -1: no such row
  int64_t a_begin[kRows];   // the same in the forward values
  int y[kRows];             // top left position of its window in x
  int x[kRows];
};

constexpr int kNowhere = -(1 << 29);  // outside of every image, whatever offset is added

template <int kRows, typename scalar_t>
__device__ __forceinline__ void fill_rows(RowTable<kRows>& table, const ConvProblem<scalar_t>& p, const Tile& tile) {
  for (int row = threadIdx.x; row < kRows; row += kThreads) {
    const int64_t m = tile.row_begin + row;
    const int64_t plane = static_cast<int64_t>(tile.height) * tile.width, image = m / plane;
    if (image >= p.images) {
      table.x_begin[row] = table.x_values[row] = table.a_begin[row] = 0;
      table.y_begin[row] = -1;
      table.y[row] = table.x[row] = kNowhere;
      continue;
    }
    const auto flat = static_cast<int>(m - image * plane);
    const int line = flat / tile.width, column = flat - line * tile.width;
    const int multiple_y = p.transposed ? 1 : p.dimension[0].stride,
              multiple_x = p.transposed ? 1 : p.dimension[1].stride;
    const int step_y = p.dimension[0].phases(p.transposed), step_x = p.dimension[1].phases(p.transposed);
    const int64_t group_x = static_cast<int64_t>(tile.group) * p.x.channels * p.x.channel_step;
    table.x_begin[row] = image * p.x.image_step + group_x;
    table.x_values[row] = image % p.batch * p.x.image_step + group_x;
    const int64_t within = static_cast<int64_t>(tile.group) * p.y.channels * p.y.channel_step +
                           (static_cast<int64_t>(line) * step_y + tile.phase[0]) * p.y.row_step +
                           (static_cast<int64_t>(column) * step_x + tile.phase[1]) * p.y.column_step;
    table.y_begin[row] = image * p.y.image_step + within;
    table.a_begin[row] = image % p.batch * p.y.image_step + within;
    table.y[row] = line * multiple_y;
    table.x[row] = column * multiple_x;
  }
}

// Slabs of the inner dimension, in order: the channels of one tap, then those of the next.
struct Slab {
  int tap[2];
  int channel;
  int index;  // among the packed slabs

  __device__ __forceinline__ void next(const Tile& tile, int padded_channels, int depth) {
    ++index;
    channel += depth;
    if (channel < padded_channels) return;
    channel = 0;
    if (++tap[1] < tile.taps[1].count) return;
    tap[1] = 0;
    ++tap[0];
  }
};

// A slice of the result, kSliceRows rows by kTileColumns columns, passes through shared memory, so that neighbouring
// threads write neighbouring elements and the sets of a channel meet. Columns are permuted by the row to spread the
// banks.
constexpr int kTileRows = 128, kTileColumns = 64, kSliceRows = 32;

__device__ __forceinline__ int slice_index(int row, int column) { return row * kTileColumns + (column ^ row); }

template <bool kAlongChannels, typename scalar_t>
__device__ __forceinline__ void write_slice(const ConvProblem<scalar_t>& p, const Tile& tile,
                                            const RowTable<kTileRows>& rows, int row_begin,
                                            const arithmetic_t<scalar_t>* slice) {
  using acc_t = arithmetic_t<scalar_t>;
  const int channels = kTileColumns / p.sets, channel_begin = tile.column_tile * channels;
  for (int e = threadIdx.x; e < kSliceRows * channels; e += kThreads) {
    const int line = kAlongChannels ? e / channels : e % kSliceRows;
    const int column = kAlongChannels ? e % channels : e / kSliceRows, channel = channel_begin + column;
    const int64_t y_begin = rows.y_begin[row_begin + line], a_begin = rows.a_begin[row_begin + line];
    const bool inside = y_begin >= 0 && channel < p.y.channels;
    const int64_t step = channel * p.y.channel_step;
    acc_t sum = slice[slice_index(line, column * p.sets)];
    if (p.sets > 1) {
      const scalar_t zero = to_storage<scalar_t>(acc_t(0));
      const acc_t a = to_arithmetic(read_global_if(inside, p.input + a_begin + step, zero));
      if (p.sets == 2 && !(a >= acc_t(0))) sum = a < acc_t(0) ? slice[slice_index(line, 2 * column + 1)] : a;
      if (p.weights == kBox) {
        const int64_t place = static_cast<int64_t>(tile.group) * p.y.channels + channel;
        sum = a * sum - read_global_if(inside, p.low + place, acc_t(0)) * slice[slice_index(line, 4 * column + 1)] -
              read_global_if(inside, p.high + place, acc_t(0)) * slice[slice_index(line, 4 * column + 2)];
      }
    }
    if (inside) write_global(p.y_values + y_begin + step, to_storage<scalar_t>(sum));
  }
}

// Four neighbours in shared memory, 16-byte aligned.
template <typename acc_t>
__device__ __forceinline__ void load_four(acc_t (&to)[4], const acc_t* from) {
  memcpy(to, __builtin_assume_aligned(from, 16), sizeof to);
}

// Host side.

template <typename scalar_t>
constexpr bool kHasTensorCores = !std::is_same_v<scalar_t, double>;

template <typename scalar_t>
bool use_tensor_cores(const LrpConv& conv) {
  return kHasTensorCores<scalar_t> && conv.tensor_cores != 0;
}

inline Image image_of(const LrpConv& conv, const int64_t (&size)[2], int64_t channels) {
  Image image;
  image.height = static_cast<int>(size[0]);
  image.width = static_cast<int>(size[1]);
  image.channels = static_cast<int>(channels / conv.groups);
  image.image_step = channels * size[0] * size[1];
  image.channel_step = conv.channels_last ? 1 : size[0] * size[1];
  image.column_step = conv.channels_last ? channels : 1;
  image.row_step = size[1] * image.column_step;
  return image;
}

template <typename scalar_t>
ScaledInput<scalar_t> scaled(const void* multiplier, const LrpConvScale& scale) {
  const In g{multiplier}, g2{scale.addend}, u{scale.output}, k{scale.scale}, v{scale.value}, d{scale.denominator};
  return {g, g2, u, k, v, d, static_cast<arithmetic_t<scalar_t>>(scale.epsilon)};
}

}  // namespace lrpkernels::cuda
