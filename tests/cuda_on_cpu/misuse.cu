// Mistakes that hardware may forgive and the shim must not: tests/test_cuda_shim.py runs each.
#include "runtime.cuh"

namespace {

using namespace lrpkernels;

__global__ void partial_barrier(float* p) {
  if (threadIdx.x < 10) __syncthreads();
  p[threadIdx.x] = 0;
}

__global__ void two_barriers(float* p) {
  if (threadIdx.x < 10) {
    __syncthreads();
    p[0] = 1;
  } else {
    __syncthreads();
    p[1] = 2;
  }
}

__global__ void shuffle_without_a_lane(float* p) {
  if (threadIdx.x == 3) return;
  p[threadIdx.x] = __shfl_xor_sync(0xffffffffu, float(threadIdx.x), 1);
}

__global__ void uninitialised_shared(float* p) {
  LRP_SHARED(float, tile, [32]);
  if (threadIdx.x < 16) tile[threadIdx.x] = 1;
  __syncthreads();
  p[threadIdx.x] = tile[threadIdx.x];
}

__global__ void beyond_shared(float* p) {
  LRP_SHARED(float, tile, [32]);
  float* const begin = tile;  // UndefinedBehaviorSanitizer would stop an array subscript first
  begin[threadIdx.x + 1] = 1;
  __syncthreads();
  p[threadIdx.x] = tile[threadIdx.x];
}

__global__ void race(float* p) {
  LRP_SHARED(float, tile, [32]);
  tile[threadIdx.x] = 1;
  p[threadIdx.x] = tile[31 - threadIdx.x];
}

__global__ void too_much_shared(float* p) {
  LRP_SHARED(float, tile, [16 * 1024]);
  tile[threadIdx.x] = 1;
  p[threadIdx.x] = tile[threadIdx.x];
}

__global__ void misaligned(float* p) { write_global(reinterpret_cast<uint4*>(p + 1), uint4{}); }

__global__ void unawaited_copy(float* p) {
  LRP_SHARED(float4, tile, [32]);
  async_copy16(&tile[threadIdx.x], p + 4 * threadIdx.x, true);
  async_commit();
  const float seen = tile[threadIdx.x].x;
  async_wait<0>();
  p[threadIdx.x] = seen;
}

__global__ void correct(float* p) {
  LRP_SHARED(float, tile, [32]);
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  p[threadIdx.x] = tile[31 - threadIdx.x] + __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

}  // namespace

extern "C" int run_misuse(int which, float* p, int threads) {
  switch (which) {
    case 0:
      LRP_LAUNCH(correct, 1, threads, nullptr, p);
      break;
    case 1:
      LRP_LAUNCH(partial_barrier, 1, threads, nullptr, p);
      break;
    case 2:
      LRP_LAUNCH(two_barriers, 1, threads, nullptr, p);
      break;
    case 3:
      LRP_LAUNCH(shuffle_without_a_lane, 1, threads, nullptr, p);
      break;
    case 4:
      LRP_LAUNCH(uninitialised_shared, 1, threads, nullptr, p);
      break;
    case 5:
      LRP_LAUNCH(beyond_shared, 1, threads, nullptr, p);
      break;
    case 6:
      LRP_LAUNCH(race, 1, threads, nullptr, p);
      break;
    case 7:
      LRP_LAUNCH(too_much_shared, 1, threads, nullptr, p);
      break;
    case 8:
      LRP_LAUNCH(misaligned, 1, threads, nullptr, p);
      break;
    case 9:
      LRP_LAUNCH(unawaited_copy, 1, threads, nullptr, p);
      break;
  }
  return LRP_LAST_ERROR();
}
