// The one header through which kernels see CUDA. Under nvcc it is CUDA; under g++ it is the shim that the tests put on
// the include path, in which every CUDA thread is a fiber. Kernels reach global memory only through the functions here
// and in memory.cuh, so that the shim can count it.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

// A static shared array: LRP_SHARED(float, tile, [32][33]);
#define LRP_SHARED(type, name, dims) __shared__ type name dims

#define LRP_LAUNCH(kernel, grid, block, stream, ...) \
  (kernel)<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

// The error of the launches since the last call, as an int.
#define LRP_LAST_ERROR() static_cast<int>(cudaGetLastError())

namespace lrpkernels {

constexpr int64_t kMaxGridX = 2147483647;

inline int64_t max_grid_x() { return kMaxGridX; }

template <typename value_t>
__device__ __forceinline__ value_t read_global(const value_t* address) {
  return __ldg(address);
}

// The loads of a warp stay in step when some lanes have nothing to read: those get `fallback`.
template <typename value_t>
__device__ __forceinline__ value_t read_global_if(bool condition, const value_t* address, value_t fallback) {
  return condition ? __ldg(address) : fallback;
}

template <typename value_t>
__device__ __forceinline__ void write_global(value_t* address, value_t value) {
  *address = value;
}

// Copies 16 bytes to shared memory, past the registers where the hardware can; zeros when `condition` is false. The
// data is there after the async_wait that covers its group, for other threads after a later barrier.
__device__ __forceinline__ void async_copy16(void* shared, const void* address, bool condition) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(address), "r"(condition ? 16 : 0));
#else
  const uint4 zero = {0, 0, 0, 0};
  *static_cast<uint4*>(shared) = condition ? __ldg(static_cast<const uint4*>(address)) : zero;
#endif
}

// Closes the group of the copies issued so far.
__device__ __forceinline__ void async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::);
#endif
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// Adds to a counter in shared memory; returns what it held.
__device__ __forceinline__ int count_up(int* counter, int by) { return atomicAdd(counter, by); }

// float32 rounded to tf32 (10 bits of mantissa), as the bits of a float.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// One warp-wide d += a b on tensor cores: a 16 x 8 words, b 8 words x 8 columns, where a word is one tf32 number or two
// neighbouring 16-bit numbers; d 16 x 8 in float32. With group = lane / 4 and place = lane % 4 a lane holds
//   a: rows group and group + 8 of word `place`, then of word place + 4;  b: words place and place + 4 of column group;
//   d: row group, columns 2 place and 2 place + 1; then row group + 8 (PTX ISA, m16n8k8 tf32 and m16n8k16).
template <typename scalar_t>
__device__ __forceinline__ void multiply_tiles(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define LRP_MULTIPLY_TILES(type, instruction)                                                     \
  template <>                                                                                     \
  __device__ __forceinline__ void multiply_tiles<type>(float (&d)[4], const uint32_t (&a)[4],     \
                                                       const uint32_t (&b)[2]) {                  \
    asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));             \
  }
LRP_MULTIPLY_TILES(float, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
LRP_MULTIPLY_TILES(__half, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
LRP_MULTIPLY_TILES(__nv_bfloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
#undef LRP_MULTIPLY_TILES

}  // namespace lrpkernels

#else

#include "cuda_shim.h"

#endif
