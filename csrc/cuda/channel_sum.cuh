// Elementwise passes that also sum a product per channel, in two deterministic stages: every block of the first writes
// its own partial sums, the second adds them in a fixed order, in double. No atomics.
// A Body is as in elementwise.cuh, but has kSums and run returns that many products per element, one after the other:
//   template <int kVec> __device__ Pack<acc_t, kSums * kVec> run(int64_t i) const;
#pragma once
#include "elementwise.cuh"
#include "reduce.cuh"

namespace lrpkernels::cuda {

constexpr int kSumBlocksPerSm = 2;  // up to 128 registers: a vector of eight 16-bit elements with its sums

// inner > 1: a block walks kChunk neighbouring elements, which cross several rows (a row: `inner` elements of one
// channel).
constexpr int64_t kChunk = 2048;

// inner == 1: a block walks down columns. The pattern of channels repeats after `period` vectors; a slab is the part of
// it that a block covers, with `groups` periods side by side.
constexpr int kSlab = 64;  // vectors: 1 KiB of neighbouring memory
constexpr int64_t kStepsPerBlock = 16;

struct ColumnPlan {
  int64_t period;  // vectors
  int width;       // vectors of a slab
  int groups;
  int64_t slabs;
  int64_t rows;  // periods in the tensor, the last one may be partial
  int64_t rows_per_block;
  int64_t row_blocks;

  ColumnPlan(const LrpExtent& extent, int vec) {
    int64_t common = 1;  // the greatest common divisor: vec is a power of two
    while (common < vec && extent.channels % (2 * common) == 0) common *= 2;
    period = extent.channels / common;
    slabs = ceil_div<int64_t>(period, kSlab);
    width = static_cast<int>(ceil_div(period, slabs));
    groups = kThreads / width;
    rows = ceil_div(extent.numel, period * vec);
    rows_per_block = groups * kStepsPerBlock;
    row_blocks = ceil_div(rows, rows_per_block);
    if (row_blocks > 65535) {  // grid.y
      rows_per_block = ceil_div<int64_t>(ceil_div<int64_t>(rows, 65535), groups) * groups;
      row_blocks = ceil_div(rows, rows_per_block);
    }
  }
};

struct ChunkPlan {
  int64_t chunks;
  int64_t rows_per_chunk;  // at most

  explicit ChunkPlan(const LrpExtent& extent)
      : chunks(ceil_div(extent.numel, kChunk)), rows_per_chunk((kChunk + extent.inner - 2) / extent.inner + 1) {}
};

// Partial sums of one product.
inline int64_t partial_elements(const LrpExtent& extent, int vec) {
  if (extent.inner > 1) {
    const ChunkPlan plan(extent);
    return plan.chunks * plan.rows_per_chunk;
  }
  const ColumnPlan plan(extent, vec);
  return plan.row_blocks * plan.period * vec;
}

// Bytes of partial sums of `sums` products, whichever vector width the launcher takes.
inline int64_t channel_sum_workspace(LrpDtype dtype, const LrpExtent& extent, int sums) {
  if (!fits(extent) || extent.numel == 0) return 0;
  const int width = dtype == kFloat64 ? 2 : (dtype == kFloat32 ? 4 : 8);
  const int64_t single = partial_elements(extent, 1), vectors = partial_elements(extent, width);
  return sums * (single > vectors ? single : vectors) * (dtype == kFloat64 ? 8 : 4);
}

// Block: kChunk neighbouring elements; the products pass through shared memory, then groups of lanes sum one row each.
// partial [sum][chunk][row within the chunk].
template <int kVec, typename Body>
__global__ void __launch_bounds__(kThreads, kSumBlocksPerSm)
    chunk_sum_kernel(Body body, arithmetic_t<typename Body::scalar_t>* partial, int64_t numel, FastDivisor inner,
                     int64_t rows_per_chunk, int64_t chunks) {
  using acc_t = arithmetic_t<typename Body::scalar_t>;
  LRP_SHARED(acc_t, product, [Body::kSums][kChunk]);
  int lanes = 1;  // per row
  while (lanes < 32 && lanes < inner.divisor()) lanes *= 2;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < numel ? begin + kChunk : numel;
    for (int64_t i = begin + threadIdx.x * kVec; i < end; i += kThreads * kVec) {
      if (i + kVec <= end) {
        const auto pack = body.template run<kVec>(i);
#pragma unroll
        for (int s = 0; s < Body::kSums; ++s)
#pragma unroll
          for (int j = 0; j < kVec; ++j) product[s][i - begin + j] = pack[s * kVec + j];
      } else {
        for (int64_t j = i; j < end; ++j) {
          const auto pack = body.template run<1>(j);
#pragma unroll
          for (int s = 0; s < Body::kSums; ++s) product[s][j - begin] = pack[s];
        }
      }
    }
    __syncthreads();
    const int64_t first = inner.quotient(begin), rows = inner.quotient(end - 1) - first + 1;
    const int lane = threadIdx.x % lanes;
    // The bound is the same for the whole block, because the shuffles need every lane.
    for (int64_t base = 0; base < rows; base += kThreads / lanes) {
      const int64_t row = base + threadIdx.x / lanes;
      const int64_t row_begin = (first + row) * inner.divisor(), row_end = row_begin + inner.divisor();
      const int from = static_cast<int>((row_begin > begin ? row_begin : begin) - begin);
      const int to = row < rows ? static_cast<int>((row_end < end ? row_end : end) - begin) : 0;
#pragma unroll
      for (int s = 0; s < Body::kSums; ++s) {
        acc_t sum = 0;
        for (int i = from + lane; i < to; i += lanes) sum += product[s][i];
        sum = lane_group_sum(sum, lanes);
        if (row < rows && lane == 0) write_global(partial + (s * chunks + chunk) * rows_per_chunk + row, sum);
      }
    }
    __syncthreads();
  }
}

// Block: one channel. Thread: its share of the (sample, chunk) pairs in which rows of the channel lie.
template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    chunk_total_kernel(const acc_t* partial, acc_t* total, int64_t samples, int64_t channels, FastDivisor inner,
                       int64_t rows_per_chunk, FastDivisor chunks_per_row) {
  for (int64_t channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    double sum = 0;
    for (int64_t pair = threadIdx.x; pair < samples * chunks_per_row.divisor(); pair += kThreads) {
      const int64_t sample = chunks_per_row.quotient(pair);
      const int64_t row = sample * channels + channel, row_begin = row * inner.divisor();
      const int64_t chunk = row_begin / kChunk + (pair - sample * chunks_per_row.divisor());
      if (chunk * kChunk < row_begin + inner.divisor())
        sum +=
            static_cast<double>(read_global(partial + chunk * rows_per_chunk + row - inner.quotient(chunk * kChunk)));
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) write_global(total + channel, static_cast<acc_t>(sum));
  }
}

// Block: a slab of the period over rows_per_block rows. Thread: always the same channels, kVec sums in registers; the
// groups meet in shared memory. partial [sum][row block][period * kVec].
template <int kVec, typename Body>
__global__ void __launch_bounds__(kThreads, kSumBlocksPerSm)
    column_sum_kernel(Body body, arithmetic_t<typename Body::scalar_t>* partial, int64_t numel, ColumnPlan plan) {
  using acc_t = arithmetic_t<typename Body::scalar_t>;
  LRP_SHARED(acc_t, group_sum, [Body::kSums][kThreads * kVec]);
  const int group = static_cast<int>(threadIdx.x) / plan.width, lane = static_cast<int>(threadIdx.x) % plan.width;
  const int64_t vector = static_cast<int64_t>(blockIdx.x) * plan.width + lane;
  auto sum = filled<Body::kSums * kVec>(acc_t(0));
  if (group < plan.groups && vector < plan.period) {
    const int64_t begin = static_cast<int64_t>(blockIdx.y) * plan.rows_per_block;
    const int64_t end = begin + plan.rows_per_block < plan.rows ? begin + plan.rows_per_block : plan.rows;
    for (int64_t row = begin + group; row < end; row += plan.groups) {
      const int64_t i = (row * plan.period + vector) * kVec;
      if (i + kVec <= numel) {
        const auto pack = body.template run<kVec>(i);
#pragma unroll
        for (int j = 0; j < Body::kSums * kVec; ++j) sum[j] += pack[j];
      } else {
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
          if (i + j >= numel) continue;
          const auto pack = body.template run<1>(i + j);
#pragma unroll
          for (int s = 0; s < Body::kSums; ++s) sum[s * kVec + j] += pack[s];
        }
      }
    }
  }
#pragma unroll
  for (int s = 0; s < Body::kSums; ++s)
#pragma unroll
    for (int j = 0; j < kVec; ++j) group_sum[s][threadIdx.x * kVec + j] = sum[s * kVec + j];
  __syncthreads();
  const int width = plan.width * kVec;
  for (int position = threadIdx.x; position < width; position += kThreads) {
    const int64_t where = static_cast<int64_t>(blockIdx.x) * width + position;
    if (where >= plan.period * kVec) continue;
#pragma unroll
    for (int s = 0; s < Body::kSums; ++s) {
      acc_t total = 0;
      for (int g = 0; g < plan.groups; ++g) total += group_sum[s][g * width + position];
      write_global(partial + (s * plan.row_blocks + blockIdx.y) * plan.period * kVec + where, total);
    }
  }
}

// Block: 32 neighbouring channels. Warp: every 8th partial row, lane = channel; the positions of a channel in a period
// are `channels` apart.
template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    column_total_kernel(const acc_t* partial, acc_t* total, int64_t channels, int64_t period, int64_t rows) {
  LRP_SHARED(double, warp_sum, [kThreads / 32][32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * 32; base < channels;
       base += static_cast<int64_t>(gridDim.x) * 32) {
    double sum = 0;
    if (base + lane < channels)
      for (int64_t row = warp; row < rows; row += kThreads / 32)
        for (int64_t position = base + lane; position < period; position += channels)
          sum += static_cast<double>(read_global(partial + row * period + position));
    warp_sum[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && base + lane < channels) {
      for (int other = 1; other < kThreads / 32; ++other) sum += warp_sum[other][lane];
      write_global(total + base + lane, static_cast<acc_t>(sum));
    }
    __syncthreads();
  }
}

// totals: kSums pointers to [channels]; workspace of channel_sum_workspace bytes.
template <int kVec, typename Body>
int launch_channel_sum(const Body& body, const LrpExtent& extent, void* workspace, void* const (&totals)[Body::kSums],
                       void* stream) {
  using acc_t = arithmetic_t<typename Body::scalar_t>;
  acc_t* const partial = Out{workspace};
  const int64_t elements = partial_elements(extent, kVec);  // of each sum
  if (extent.inner > 1) {
    const ChunkPlan plan(extent);
    const FastDivisor inner(extent.inner), chunks_per_row((extent.inner - 1) / kChunk + 2);
    LRP_LAUNCH((chunk_sum_kernel<kVec, Body>), grid_for(plan.chunks, 1), kThreads, stream, body, partial, extent.numel,
               inner, plan.rows_per_chunk, plan.chunks);
    for (int s = 0; s < Body::kSums; ++s)
      LRP_LAUNCH(chunk_total_kernel<acc_t>, grid_for(extent.channels, 1), kThreads, stream, partial + s * elements,
                 Out{totals[s]}, extent.numel / (extent.channels * extent.inner), extent.channels, inner,
                 plan.rows_per_chunk, chunks_per_row);
  } else {
    const ColumnPlan plan(extent, kVec);
    if (plan.slabs > max_grid_x()) return kInvalidValue;
    const dim3 grid(static_cast<unsigned>(plan.slabs), static_cast<unsigned>(plan.row_blocks));
    LRP_LAUNCH((column_sum_kernel<kVec, Body>), grid, kThreads, stream, body, partial, extent.numel, plan);
    for (int s = 0; s < Body::kSums; ++s)
      LRP_LAUNCH(column_total_kernel<acc_t>, grid_for(extent.channels, 32), kThreads, stream, partial + s * elements,
                 Out{totals[s]}, extent.channels, plan.period * kVec, plan.row_blocks);
  }
  return LRP_LAST_ERROR();
}

template <typename Body>
int launch_channel_sum(const Body& body, const LrpExtent& extent, bool vectors, void* workspace,
                       void* const (&totals)[Body::kSums], void* stream) {
  return vectors ? launch_channel_sum<kVectorWidth<typename Body::scalar_t>>(body, extent, workspace, totals, stream)
                 : launch_channel_sum<1>(body, extent, workspace, totals, stream);
}

// Drops the products of a Body where the sums are not requested.
template <typename Body>
struct WithoutSum : Body {
  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    Body::template run<kVec>(i);
  }
};

}  // namespace lrpkernels::cuda
