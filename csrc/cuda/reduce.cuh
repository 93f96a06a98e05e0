// Sums over neighbouring lanes and over a block of kThreads, in a fixed order.
#pragma once
#include "memory.cuh"

namespace lrpkernels::cuda {

// Sum over aligned groups of `size` neighbouring lanes (a power of two); every lane gets it. All lanes of the warp
// call.
template <typename acc_t>
__device__ __forceinline__ acc_t lane_group_sum(acc_t x, int size) {
  for (int distance = size / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Sum of a double over the block, in thread 0.
__device__ __forceinline__ double block_sum(double x) {
  LRP_SHARED(double, warp_sum, [kThreads / 32]);
  x = lane_group_sum(x, 32);
  if (threadIdx.x % 32 == 0) warp_sum[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += warp_sum[warp];
  __syncthreads();
  return sum;
}

}  // namespace lrpkernels::cuda
