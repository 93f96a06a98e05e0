// What the weight gradient kernels share. As a matrix product: rows are the output channels of a group, columns its
// pairs of an input channel and a kernel position, the inner dimension runs over images and output positions. Positions
// are split into parts, one block each per tile of the result; a last kernel adds the parts in a fixed order.
#pragma once
#include "conv.cuh"

namespace lrpkernels::cuda {

template <typename scalar_t>
struct WeightProblem {
  ScaledInput<scalar_t> s_values;
  const scalar_t* x_values;
  arithmetic_t<scalar_t>* partial;  // [parts, C_out, columns]
  Image s, x;
  ConvDimension dimension[2];
  FastDivisor plane, width;  // of s
  int64_t batch;
  int64_t positions;       // images * plane
  int64_t part_positions;  // a multiple of the slab
  int columns;             // C_in / groups * kernel positions
  int row_tiles, column_tiles, groups;
  bool channels_last;

  // The channel and kernel position of a column. The order makes neighbouring columns neighbours in memory where it
  // can.
  __device__ __forceinline__ void column(int index, int* channel, int* tap) const {
    const int taps = columns / x.channels;
    *channel = channels_last ? index % x.channels : index / taps;
    *tap = channels_last ? index / x.channels : index % taps;
  }
};

// Where a block works.
struct WeightTile {
  int column_begin;
  int row_begin;
  int group;
  int64_t part, begin, end;  // positions

  // Column tiles first: neighbouring blocks read the same s.
  template <typename scalar_t>
  __device__ __forceinline__ WeightTile(const WeightProblem<scalar_t>& p, int64_t block, int rows, int columns) {
    column_begin = static_cast<int>(block % p.column_tiles) * columns;
    block /= p.column_tiles;
    row_begin = static_cast<int>(block % p.row_tiles) * rows;
    block /= p.row_tiles;
    group = static_cast<int>(block % p.groups);
    part = block / p.groups;
    begin = part * p.part_positions;
    end = begin + p.part_positions < p.positions ? begin + p.part_positions : p.positions;
  }

  // The element of `partial` for a row and column of the tile, which must exist.
  template <typename scalar_t>
  __device__ __forceinline__ int64_t partial_index(const WeightProblem<scalar_t>& p, int row, int column) const {
    return ((part * p.groups + group) * p.s.channels + row_begin + row) * p.columns + column_begin + column;
  }
};

// The columns of a tile: where each one's channel begins in x, and by how much its kernel position shifts.
template <int kColumns>
struct ColumnTable {
  int64_t channel_begin[kColumns];
  int y[kColumns];
  int x[kColumns];
};

// One position of the inner dimension, as addresses.
struct SlabPosition {
  int64_t s;       // in a channel of s; -1: no such position
  int64_t values;  // the same in the forward values, which have no targets
  int64_t image;   // in x
  int y;           // top left position of its window, without the padding
  int x;
};

template <typename scalar_t>
__device__ __forceinline__ SlabPosition slab_position(const WeightProblem<scalar_t>& p, int64_t at, int64_t end) {
  const int64_t image = p.plane.quotient(at), flat = at - image * p.plane.divisor();
  const int row = static_cast<int>(p.width.quotient(flat));
  const int column = static_cast<int>(flat - row * p.width.divisor());
  const int64_t within = row * p.s.row_step + column * p.s.column_step;
  return {at < end ? image * p.s.image_step + within : -1, image % p.batch * p.s.image_step + within,
          image * p.x.image_step, at < end ? row * p.dimension[0].stride : kNowhere, column * p.dimension[1].stride};
}

template <int kColumns, typename scalar_t>
__device__ __forceinline__ void fill_columns(ColumnTable<kColumns>& table, const WeightProblem<scalar_t>& p,
                                             const WeightTile& tile) {
  for (int i = threadIdx.x; i < kColumns; i += kThreads) {
    int channel, tap;
    p.column(tile.column_begin + i, &channel, &tap);
    const int ky = tap / p.dimension[1].kernel, kx = tap - ky * p.dimension[1].kernel;
    const bool known = tile.column_begin + i < p.columns;
    table.channel_begin[i] = (static_cast<int64_t>(tile.group) * p.x.channels + channel) * p.x.channel_step;
    table.y[i] = known ? ky * p.dimension[0].dilation - p.dimension[0].padding : kNowhere;
    table.x[i] = kx * p.dimension[1].dilation - p.dimension[1].padding;
  }
}

// s at a position and row of the tile.
template <typename scalar_t>
__device__ __forceinline__ arithmetic_t<scalar_t> weight_row_value(const WeightProblem<scalar_t>& p,
                                                                   const WeightTile& tile, const SlabPosition& at,
                                                                   int row) {
  const int channel = tile.group * p.s.channels + tile.row_begin + row;
  const int64_t step = channel * p.s.channel_step;
  return p.s_values.at(at.s >= 0 && tile.row_begin + row < p.s.channels, at.s + step, at.values + step, channel);
}

// x under the kernel position of a column, zero in the padding.
template <int kColumns, typename scalar_t>
__device__ __forceinline__ scalar_t weight_column_value(const WeightProblem<scalar_t>& p,
                                                        const ColumnTable<kColumns>& table, const SlabPosition& at,
                                                        int column) {
  const int y = at.y + table.y[column], x = at.x + table.x[column];
  const bool inside = y >= 0 && y < p.x.height && x >= 0 && x < p.x.width;
  return read_global_if(inside,
                        p.x_values + at.image + table.channel_begin[column] + y * p.x.row_step + x * p.x.column_step,
                        to_storage<scalar_t>(arithmetic_t<scalar_t>(0)));
}

}  // namespace lrpkernels::cuda
