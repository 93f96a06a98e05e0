// The weight gradient's matrix product on tensor cores: tf32 for float32, 16-bit types as they are, sums in float32;
// the inner dimension of fragments.cuh runs along positions.
#pragma once
#include "conv_weight.cuh"
#include "fragments.cuh"

namespace lrpkernels::cuda::mma {

constexpr int kWeightRows = 64, kWeightColumns = 128;  // 2 x 4 warps of 32 x 32

// What a thread loads of a tile of kLines lines: one line's neighbouring words (channels-last, where neighbouring
// threads take neighbouring channels), or one word of several lines (NCHW, where they take neighbouring positions).
template <int kLines, bool kChannelsLast>
struct WordShare {
  static constexpr int kLoads = kLines * kWords / kThreads;
  static_assert(kLoads % 4 == 0, "whole 16-byte stores");

  static __device__ __forceinline__ int line(int i) {
    const int thread = threadIdx.x;
    return kChannelsLast ? thread % kLines : thread / kWords + i * (kThreads / kWords);
  }
  static __device__ __forceinline__ int word(int i) {
    const int thread = threadIdx.x;
    return kChannelsLast ? thread / kLines * kLoads + i : thread % kWords;
  }
  static __device__ __forceinline__ void keep(uint32_t (*tile)[kPitch], const uint32_t (&words)[kLoads]) {
    if constexpr (kChannelsLast) {
#pragma unroll
      for (int i = 0; i < kLoads; i += 4)
        *reinterpret_cast<uint4*>(&tile[line(i)][word(i)]) = {words[i], words[i + 1], words[i + 2], words[i + 3]};
    } else {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) tile[line(i)][word(i)] = words[i];
    }
  }
};

// The positions of a slab, in shared memory. Number n of word w stands for position n * kWords + w: in NCHW, threads
// with neighbouring words then read neighbouring elements, whatever their size.
template <typename scalar_t>
struct PositionTable {
  SlabPosition at[kDepth<scalar_t>];
};

// Block: 64 output channels by 128 (input channel, kernel position) pairs over one part of the positions; a warp 32 by
// 32. Slabs pass from global memory through registers, where s is made and both are rounded, to one of two shared
// buffers. The launcher guarantees that positions and channels fit 32 bits; no alignment is needed.
template <typename scalar_t, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2) weight_mma_kernel(WeightProblem<scalar_t> p) {
  constexpr int kNumbers = kPerWord<scalar_t>, kSlab = kDepth<scalar_t>;
  using RowShare = WordShare<kWeightRows, kChannelsLast>;
  using ColumnShare = WordShare<kWeightColumns, kChannelsLast>;
  LRP_SHARED(uint32_t, s_tile, [2][kWeightRows][kPitch]);
  LRP_SHARED(uint32_t, x_tile, [2][kWeightColumns][kPitch]);
  LRP_SHARED(ColumnTable<kWeightColumns>, columns, [1]);
  LRP_SHARED(PositionTable<scalar_t>, positions, [2]);
  const int thread = threadIdx.x, row_of_warp = thread / 32 % 2 * 32, column_of_warp = thread / 64 * 32;
  const WeightTile tile(p, blockIdx.x, kWeightRows, kWeightColumns);

  // The positions of slab `index`, by the first threads.
  const auto locate = [&](int64_t index) {
    if (thread < kSlab)
      positions[index & 1].at[thread] = slab_position(p, tile.begin + index * kSlab + thread, tile.end);
  };
  const auto fetch = [&](int64_t index, uint32_t (&s)[RowShare::kLoads], uint32_t (&x)[ColumnShare::kLoads]) {
    const PositionTable<scalar_t>& table = positions[index & 1];
#pragma unroll
    for (int i = 0; i < RowShare::kLoads; ++i) {
      float number[kNumbers];
#pragma unroll
      for (int n = 0; n < kNumbers; ++n)
        number[n] = weight_row_value(p, tile, table.at[n * kWords + RowShare::word(i)], RowShare::line(i));
      s[i] = pack_word(scalar_t{}, number);
    }
#pragma unroll
    for (int i = 0; i < ColumnShare::kLoads; ++i) {
      scalar_t number[kNumbers];
#pragma unroll
      for (int n = 0; n < kNumbers; ++n)
        number[n] =
            weight_column_value(p, columns[0], table.at[n * kWords + ColumnShare::word(i)], ColumnShare::line(i));
      x[i] = pack_stored(number);
    }
  };

  float sum[kRowTiles][kColumnTiles][4] = {};
  uint32_t s[RowShare::kLoads], x[ColumnShare::kLoads];
  const int64_t slabs = ceil_div<int64_t>(tile.end - tile.begin, kSlab);
  fill_columns(columns[0], p, tile);
  locate(0);
  locate(1);
  __syncthreads();
  fetch(0, s, x);
  RowShare::keep(s_tile[0], s);
  ColumnShare::keep(x_tile[0], x);
  __syncthreads();
  for (int64_t i = 0; i < slabs; ++i) {
    const int buffer = static_cast<int>(i & 1);
    const bool more = i + 1 < slabs;
    if (more) {
      fetch(i + 1, s, x);
      locate(i + 2);  // in the place of slab i's, which all have read
    }
    multiply_slab<scalar_t>(sum, &s_tile[buffer][row_of_warp], &x_tile[buffer][column_of_warp]);
    if (more) {
      RowShare::keep(s_tile[buffer ^ 1], s);
      ColumnShare::keep(x_tile[buffer ^ 1], x);
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int row = row_of_warp + fragment_row(r, part), column = column_of_warp + fragment_column(c, part);
        if (tile.row_begin + row < p.s.channels && tile.column_begin + column < p.columns)
          write_global(p.partial + tile.partial_index(p, row, column), sum[r][c][part]);
      }
}

}  // namespace lrpkernels::cuda::mma
