// The matrix product of conv.cuh on tensor cores: tf32 for float32, 16-bit types as they are, sums in float32; the
// inner dimension of fragments.cuh runs along channels.
#pragma once
#include "conv.cuh"
#include "fragments.cuh"

namespace lrpkernels::cuda::mma {

constexpr int kRows = kTileRows, kColumns = kTileColumns;
constexpr int kQuads = kWords / 4;  // 16-byte pieces of a row
constexpr int kLoads = kRows * kQuads / kThreads;
static_assert(2 * kRows * kPitch >= kSliceRows * kColumns, "the slice of the result takes the place of the tile");

// packed [phase][group][column][tap][padded channel] as words. One thread per word.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    pack_weights_kernel(const scalar_t* weight, uint32_t* packed, ConvProblem<scalar_t> p, int64_t words) {
  constexpr int kNumbers = kPerWord<scalar_t>;
  const int row_words = p.padded_channels / kNumbers;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / row_words, line = row / p.most_taps, block = line / p.columns;
    float number[kNumbers];
#pragma unroll
    for (int n = 0; n < kNumbers; ++n)
      number[n] = packed_weight(p, weight, block, static_cast<int>(row - line * p.most_taps),
                                static_cast<int>(i - row * row_words) * kNumbers + n,
                                static_cast<int>(line - block * p.columns));
    write_global(packed + i, pack_word(scalar_t{}, number));
  }
}

// A block: 128 output positions by 64 columns, a warp 32 by 32. kAlongChannels (channels-last, channels of a group a
// multiple of the vector, aligned): x arrives in 16-byte vectors of channels; otherwise neighbouring threads load
// neighbouring positions of one channel.
template <typename scalar_t, bool kAlongChannels, bool kVectors>
__global__ void __launch_bounds__(kThreads, 2) conv_mma_kernel(ConvProblem<scalar_t> p) {
  constexpr int kNumbers = 4 * kPerWord<scalar_t>;  // of a quad
  LRP_SHARED(uint32_t, x_tile, [2][kRows][kPitch]);
  LRP_SHARED(uint32_t, w_tile, [2][kColumns][kPitch]);
  LRP_SHARED(RowTable<kRows>, rows, [1]);
  const Tile tile(p, blockIdx.x, kRows);
  if (tile.empty(p.images)) return;
  fill_rows(rows[0], p, tile);
  __syncthreads();

  const int thread = threadIdx.x;
  const int row_of_warp = thread / 32 % 4 * 32, column_of_warp = thread / 128 * 32;
  const int64_t row_words = static_cast<int64_t>(p.most_taps) * p.padded_channels / kPerWord<scalar_t>;
  const int64_t block_of_weights =
      (static_cast<int64_t>(tile.phase[0]) * p.dimension[1].phases(p.transposed) + tile.phase[1]) * p.groups +
      tile.group;
  const uint32_t* const packed =
      static_cast<const uint32_t*>(p.packed) + (block_of_weights * p.columns + tile.column_tile * kColumns) * row_words;

  const auto fetch = [&](const Slab& slab, uint4(&quad)[kLoads]) {
    const int dy = tile.taps[0].offset + slab.tap[0] * tile.taps[0].offset_step;
    const int dx = tile.taps[1].offset + slab.tap[1] * tile.taps[1].offset_step;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = kAlongChannels ? thread / kQuads + i * (kThreads / kQuads) : thread % kRows;
      const int which = kAlongChannels ? thread % kQuads : thread / kRows + i * (kThreads / kRows);
      const int channel = slab.channel + which * kNumbers, y = rows[0].y[row] + dy, x = rows[0].x[row] + dx;
      const bool inside = y >= 0 && y < p.x.height && x >= 0 && x < p.x.width;
      const int64_t at = y * p.x.row_step + x * p.x.column_step + channel * p.x.channel_step;
      const int64_t begin = rows[0].x_begin[row] + at, values = rows[0].x_values[row] + at;
      const int named = tile.group * p.x.channels + channel;
      float number[kNumbers];
      if constexpr (kVectors) {
        const Pack<float, kNumbers> pack = p.x_values.vector_at(inside && channel < p.x.channels, begin, values, named);
#pragma unroll
        for (int n = 0; n < kNumbers; ++n) number[n] = pack[n];
      } else {
#pragma unroll
        for (int n = 0; n < kNumbers; ++n)
          number[n] = p.x_values.at(inside && channel + n < p.x.channels, begin + n * p.x.channel_step,
                                    values + n * p.x.channel_step, named + n);
      }
      uint32_t word[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) word[w] = pack_word(scalar_t{}, &number[w * kPerWord<scalar_t>]);
      quad[i] = {word[0], word[1], word[2], word[3]};
    }
  };
  const auto keep = [&](int buffer, const uint4(&quad)[kLoads]) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = kAlongChannels ? thread / kQuads + i * (kThreads / kQuads) : thread % kRows;
      const int which = kAlongChannels ? thread % kQuads : thread / kRows + i * (kThreads / kRows);
      *reinterpret_cast<uint4*>(&x_tile[buffer][row][4 * which]) = quad[i];
    }
  };
  const auto copy_weights = [&](int buffer, const Slab& slab) {
    static_assert(kColumns * kQuads == kThreads, "one copy per thread");
    const int column = thread / kQuads, which = thread % kQuads;
    async_copy16(&w_tile[buffer][column][4 * which],
                 packed + column * row_words + static_cast<int64_t>(slab.index) * kWords + 4 * which, true);
    async_commit();
  };

  float sum[kRowTiles][kColumnTiles][4] = {};
  const int slabs = tile.taps[0].count * tile.taps[1].count * (p.padded_channels / kDepth<scalar_t>);
  Slab slab{{0, 0}, 0, 0};
  uint4 quad[kLoads];
  if (slabs > 0) {
    copy_weights(0, slab);
    fetch(slab, quad);
    keep(0, quad);
    async_wait<0>();
    __syncthreads();
  }
  for (int i = 0; i < slabs; ++i) {
    const int buffer = i & 1;
    const bool more = i + 1 < slabs;
    if (more) {
      slab.next(tile, p.padded_channels, kDepth<scalar_t>);
      copy_weights(buffer ^ 1, slab);
      fetch(slab, quad);
    }
    multiply_slab<scalar_t>(sum, &x_tile[buffer][row_of_warp], &w_tile[buffer][column_of_warp]);
    if (more) {
      keep(buffer ^ 1, quad);
      async_wait<0>();
    }
    __syncthreads();
  }

  float* const slice = reinterpret_cast<float*>(&x_tile[0][0][0]);
  for (int pass = 0; pass < kRows / kSliceRows; ++pass) {
    if (row_of_warp == pass * kSliceRows) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
          for (int part = 0; part < 4; ++part)
            slice[slice_index(fragment_row(r, part), column_of_warp + fragment_column(c, part))] = sum[r][c][part];
    }
    __syncthreads();
    write_slice<kAlongChannels>(p, tile, rows[0], pass * kSliceRows, slice);
    __syncthreads();
  }
}

}  // namespace lrpkernels::cuda::mma
