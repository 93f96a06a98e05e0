// The weight gradient's matrix product in the arithmetic type.
#pragma once
#include "conv_weight.cuh"

namespace lrpkernels::cuda::simt {

constexpr int kWeightRows = 64, kWeightColumns = 64, kWeightDepth = 16;
constexpr int kWeightPitch = kWeightRows + 4;  // spreads a column over the banks, keeps 16-byte alignment
constexpr int kWeightLoads = kWeightRows * kWeightDepth / kThreads;  // of either operand, per thread and slab

// Block: 64 output channels by 64 (input channel, kernel position) pairs over one part of the positions; a thread 4
// x 4. Neighbouring threads load neighbouring channels (channels-last), else neighbouring positions.
template <typename scalar_t, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2) weight_simt_kernel(WeightProblem<scalar_t> p) {
  using acc_t = arithmetic_t<scalar_t>;
  LRP_SHARED(acc_t, s_tile, [kWeightDepth][kWeightPitch]);
  LRP_SHARED(acc_t, x_tile, [kWeightDepth][kWeightPitch]);
  LRP_SHARED(ColumnTable<kWeightColumns>, columns, [1]);
  const int thread = threadIdx.x, across = thread % 16, down = thread / 16;
  const WeightTile tile(p, blockIdx.x, kWeightRows, kWeightColumns);
  fill_columns(columns[0], p, tile);
  __syncthreads();

  acc_t sum[4][4] = {};
  for (int64_t slab = tile.begin; slab < tile.end; slab += kWeightDepth) {
#pragma unroll
    for (int i = 0; i < kWeightLoads; ++i) {
      const int k = kChannelsLast ? thread / kWeightRows + i * (kThreads / kWeightRows) : thread % kWeightDepth;
      const int line = kChannelsLast ? thread % kWeightRows : thread / kWeightDepth + i * (kThreads / kWeightDepth);
      const SlabPosition at = slab_position(p, slab + k, tile.end);
      s_tile[k][line] = weight_row_value(p, tile, at, line);
      x_tile[k][line] = to_arithmetic(weight_column_value(p, columns[0], at, line));
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kWeightDepth; ++k) {
      acc_t s[4], x[4];
      load_four(s, &s_tile[k][4 * down]);
      load_four(x, &x_tile[k][4 * across]);
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[r][c] += s[r] * x[c];
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (tile.row_begin + 4 * down + r < p.s.channels && tile.column_begin + 4 * across + c < p.columns)
        write_global(p.partial + tile.partial_index(p, 4 * down + r, 4 * across + c), sum[r][c]);
}

}  // namespace lrpkernels::cuda::simt
