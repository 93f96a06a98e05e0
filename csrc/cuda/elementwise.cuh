// One kernel for every elementwise op. A Body is a struct of pointers with `scalar_t` and
//   template <int kVec> __device__ void run(int64_t i) const;   // elements i .. i + kVec - 1 of the forward values
// Elements of the T targets stand at i + t * numel; the forward values are read once for all of them.
#pragma once
#include "memory.cuh"

namespace lrpkernels::cuda {

// Blocks that must fit a multiprocessor; a Body that needs more than 64 registers specialises it.
template <typename Body>
constexpr int kResidentBlocks = kBlocksPerSm;

// One thread: one 16-byte vector (or one element) of the forward values per step, all targets. Neighbouring threads
// read neighbouring vectors. The launcher guarantees the alignment; the last, partial vector is done element by
// element.
template <int kVec, typename Body>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Body>) elementwise_kernel(Body body, int64_t numel) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kVec;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec; i < numel; i += stride) {
    if (i + kVec <= numel) {
      body.template run<kVec>(i);
    } else {
      for (int64_t j = i; j < numel; ++j) body.template run<1>(j);
    }
  }
}

// Calls body with a value of the storage type, unless there is nothing to do or more than indices hold.
template <typename Body>
int with_storage(LrpDtype dtype, const LrpExtent& extent, const Body& body) {
  if (!fits(extent)) return kInvalidValue;
  return extent.numel == 0 || extent.targets == 0 ? 0 : with_storage(dtype, body);
}

// Vectors need aligned bases, and every target's slice aligned too.
template <typename scalar_t, typename... Pointers>
bool vectorizable(const LrpExtent& extent, Pointers... pointers) {
  return all_aligned(pointers...) && (extent.targets == 1 || extent.numel % kVectorWidth<scalar_t> == 0);
}

template <int kVec, typename Body>
int launch_elementwise(const Body& body, int64_t numel, bool vectors, void* stream) {
  if (numel == 0) return 0;
  if (vectors) {
    LRP_LAUNCH((elementwise_kernel<kVec, Body>), grid_for(numel, kThreads * kVec), kThreads, stream, body, numel);
  } else {
    LRP_LAUNCH((elementwise_kernel<1, Body>), grid_for(numel, kThreads), kThreads, stream, body, numel);
  }
  return LRP_LAST_ERROR();
}

// The same with vectors of 16 bytes.
template <typename Body>
int launch_elementwise(const Body& body, int64_t numel, bool vectors, void* stream) {
  return launch_elementwise<kVectorWidth<typename Body::scalar_t>>(body, numel, vectors, stream);
}

// The channel of element i is (i / inner) % channels.
struct ChannelMap {
  FastDivisor inner;
  FastDivisor channels;

  explicit ChannelMap(const LrpExtent& extent) : inner(extent.inner), channels(extent.channels) {}

  // Per-channel values of the elements i .. i + kVec - 1.
  template <int kVec, typename acc_t>
  __device__ __forceinline__ Pack<acc_t, kVec> gather(const acc_t* table, int64_t i) const {
    const int64_t row = inner.quotient(i);
    int64_t channel = channels.remainder(row);
    if constexpr (kVec == 1) {
      return load<1>(table + channel);
    } else {
      // Channels-last: the channels of a vector are neighbours, and 16-byte aligned when kVec divides their number.
      if (inner.divisor() == 1 && channels.divisor() % kVec == 0 && reinterpret_cast<uintptr_t>(table) % 16 == 0)
        return load<kVec>(table + channel);
      int64_t position = i - row * inner.divisor();
      acc_t current = read_global(table + channel);
      Pack<acc_t, kVec> pack;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if (position == inner.divisor()) {
          position = 0;
          channel = channel + 1 == channels.divisor() ? 0 : channel + 1;
          current = read_global(table + channel);
        }
        pack[j] = current;
        ++position;
      }
      return pack;
    }
  }
};

}  // namespace lrpkernels::cuda
