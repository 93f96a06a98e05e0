// The matrix product of conv.cuh in the arithmetic type: register tiles of 8 x 4, two shared buffers; the weights
// arrive by asynchronous copies, x through registers, because it is scaled on the way.
#pragma once
#include "conv.cuh"

namespace lrpkernels::cuda::simt {

constexpr int kRows = kTileRows, kColumns = kTileColumns, kDepth = 8;
static_assert(2 * kDepth * kRows >= kSliceRows * kColumns, "the slice of the result takes the place of the tile");
constexpr int kRowsOfThread = 8, kColumnsOfThread = 4;  // 16 x 16 threads
constexpr int kLoads = kRows * kDepth / kThreads;       // elements of x per thread and slab

// packed [phase][group][tap][padded channel][column], the part of the weight that each column uses. One thread per
// element.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) pack_weights_kernel(const scalar_t* weight, arithmetic_t<scalar_t>* packed,
                                                                ConvProblem<scalar_t> p, int64_t numel) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / p.columns, line = row / p.padded_channels, block = line / p.most_taps;
    write_global(packed + i, packed_weight(p, weight, block, static_cast<int>(line - block * p.most_taps),
                                           static_cast<int>(row - line * p.padded_channels),
                                           static_cast<int>(i - row * p.columns)));
  }
}

// A block: 128 output positions by 64 columns. kAlongChannels (channels-last): neighbouring threads load neighbouring
// channels of one position, otherwise neighbouring positions of one channel. The launcher guarantees that images fit 32
// bits and that `packed` is 16-byte aligned.
template <typename scalar_t, bool kAlongChannels>
__global__ void __launch_bounds__(kThreads, sizeof(arithmetic_t<scalar_t>) == 8 ? 1 : 2)
    conv_simt_kernel(ConvProblem<scalar_t> p) {
  using acc_t = arithmetic_t<scalar_t>;
  LRP_SHARED(acc_t, x_tile, [2][kDepth][kRows]);
  LRP_SHARED(acc_t, w_tile, [2][kDepth][kColumns]);
  LRP_SHARED(RowTable<kRows>, rows, [1]);
  const Tile tile(p, blockIdx.x, kRows);
  if (tile.empty(p.images)) return;
  fill_rows(rows[0], p, tile);
  __syncthreads();

  const int thread = threadIdx.x, across = thread % 16, down = thread / 16;
  const int64_t block_of_weights =
      (static_cast<int64_t>(tile.phase[0]) * p.dimension[1].phases(p.transposed) + tile.phase[1]) * p.groups +
      tile.group;
  const acc_t* const packed = static_cast<const acc_t*>(p.packed) +
                              block_of_weights * p.most_taps * p.padded_channels * p.columns +
                              tile.column_tile * kColumns;

  const auto fetch = [&](const Slab& slab, acc_t(&part)[kLoads]) {
    const int dy = tile.taps[0].offset + slab.tap[0] * tile.taps[0].offset_step;
    const int dx = tile.taps[1].offset + slab.tap[1] * tile.taps[1].offset_step;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = kAlongChannels ? thread / kDepth + i * (kThreads / kDepth) : thread % kRows;
      const int channel = slab.channel + (kAlongChannels ? thread % kDepth : thread / kRows + i * (kThreads / kRows));
      const int y = rows[0].y[row] + dy, x = rows[0].x[row] + dx;
      const bool inside = y >= 0 && y < p.x.height && x >= 0 && x < p.x.width && channel < p.x.channels;
      const int64_t at = y * p.x.row_step + x * p.x.column_step + channel * p.x.channel_step;
      part[i] = p.x_values.at(inside, rows[0].x_begin[row] + at, rows[0].x_values[row] + at,
                              tile.group * p.x.channels + channel);
    }
  };
  const auto keep = [&](int buffer, const acc_t(&part)[kLoads]) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (kAlongChannels)
        x_tile[buffer][thread % kDepth][thread / kDepth + i * (kThreads / kDepth)] = part[i];
      else
        x_tile[buffer][thread / kRows + i * (kThreads / kRows)][thread % kRows] = part[i];
    }
  };
  const auto copy_weights = [&](int buffer, const Slab& slab) {
    constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(acc_t));
    constexpr int kCopies = kDepth * kColumns / kElements;
    if (thread < kCopies) {
      const int line = thread * kElements / kColumns, column = thread * kElements % kColumns;
      async_copy16(&w_tile[buffer][line][column],
                   packed + (static_cast<int64_t>(slab.index) * kDepth + line) * p.columns + column, true);
    }
    async_commit();
  };

  acc_t sum[kRowsOfThread][kColumnsOfThread] = {};
  const int slabs = tile.taps[0].count * tile.taps[1].count * (p.padded_channels / kDepth);
  Slab slab{{0, 0}, 0, 0};
  acc_t part[kLoads];
  if (slabs > 0) {
    copy_weights(0, slab);
    fetch(slab, part);
    keep(0, part);
    async_wait<0>();
    __syncthreads();
  }
  for (int i = 0; i < slabs; ++i) {
    const int buffer = i & 1;
    const bool more = i + 1 < slabs;
    if (more) {
      slab.next(tile, p.padded_channels, kDepth);
      copy_weights(buffer ^ 1, slab);
      fetch(slab, part);
    }
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      acc_t low[4], high[4], w[4];
      load_four(low, &x_tile[buffer][k][4 * across]);
      load_four(high, &x_tile[buffer][k][kRows / 2 + 4 * across]);
      load_four(w, &w_tile[buffer][k][4 * down]);
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < kColumnsOfThread; ++c) {
          sum[r][c] += low[r] * w[c];
          sum[r + 4][c] += high[r] * w[c];
        }
    }
    if (more) {
      keep(buffer ^ 1, part);
      async_wait<0>();
    }
    __syncthreads();
  }

  acc_t* const slice = &x_tile[0][0][0];
#pragma unroll
  for (int pass = 0; pass < kRows / kSliceRows; ++pass) {
    // This thread's rows of the slice: four, or none.
    if (across / 8 == pass % 2) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < kColumnsOfThread; ++c)
          slice[slice_index(4 * across % kSliceRows + r, 4 * down + c)] = sum[pass / 2 * 4 + r][c];
    }
    __syncthreads();
    write_slice<kAlongChannels>(p, tile, rows[0], pass * kSliceRows, slice);
    __syncthreads();
  }
}

}  // namespace lrpkernels::cuda::simt
