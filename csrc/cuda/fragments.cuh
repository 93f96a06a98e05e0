// What the tensor-core kernels share: slabs of two operands in shared memory as 32-bit words of one tf32 number or two
// 16-bit numbers along the inner dimension, so that one kernel serves all types, and their product, summed in float32.
#pragma once
#include "memory.cuh"

namespace lrpkernels::cuda::mma {

constexpr int kWords = 16;          // of a line of a slab
constexpr int kPitch = kWords + 4;  // fragments then read 32 different banks, and lines stay 16-byte aligned
constexpr int kRowTiles = 2, kColumnTiles = 4;  // of 16 x 8, per warp: 32 rows by 32 columns

// Numbers in a word, and in a line of a slab.
template <typename scalar_t>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(scalar_t));
template <typename scalar_t>
constexpr int kDepth = kWords * kPerWord<scalar_t>;

// A word of numbers in the precision of the tensor cores: of arithmetic numbers, which are rounded, ...
__device__ __forceinline__ uint32_t pack_word(float, const float* from) { return to_tf32(from[0]); }
template <typename half_t>
__device__ __forceinline__ uint32_t pack_word(half_t, const float* from) {
  const half_t pair[2] = {to_storage<half_t>(from[0]), to_storage<half_t>(from[1])};
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}

// ... and of stored ones.
__device__ __forceinline__ uint32_t pack_stored(const float* from) { return to_tf32(from[0]); }
template <typename half_t>
__device__ __forceinline__ uint32_t pack_stored(const half_t* from) {
  uint32_t word;
  memcpy(&word, from, sizeof word);
  return word;
}

// sum += rows * columns^T for the 32 rows and 32 columns of a warp, one slab; sum[r][c] holds the accumulators of
// multiply_tiles. All lanes of the warp call.
template <typename scalar_t>
__device__ __forceinline__ void multiply_slab(float (&sum)[kRowTiles][kColumnTiles][4], const uint32_t (*rows)[kPitch],
                                              const uint32_t (*columns)[kPitch]) {
  const int lane = threadIdx.x % 32, group = lane / 4, place = lane % 4;
#pragma unroll
  for (int word = 0; word < kWords; word += 8) {
    uint32_t a[kRowTiles][4], b[kColumnTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int part = 0; part < 4; ++part)
        a[r][part] = rows[16 * r + group + part % 2 * 8][word + place + part / 2 * 4];
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
      for (int part = 0; part < 2; ++part) b[c][part] = columns[8 * c + group][word + place + part * 4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) multiply_tiles<scalar_t>(sum[r][c], a[r], b[c]);
  }
}

// Where sum[r][c][part] of this lane belongs in the warp's 32 x 32.
__device__ __forceinline__ int fragment_row(int r, int part) { return 16 * r + threadIdx.x % 32 / 4 + part / 2 * 8; }
__device__ __forceinline__ int fragment_column(int c, int part) { return 8 * c + 2 * (threadIdx.x % 4) + part % 2; }

}  // namespace lrpkernels::cuda::mma
