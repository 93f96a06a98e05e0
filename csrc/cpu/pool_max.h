// Max pooling on the CPU: everything to the winner of each window, and the adjoint. `out_of_range` reports an index
// outside its plane, which is skipped.
#pragma once
#include <atomic>

#include "pool_geometry.h"

namespace lrpkernels::cpu {
namespace {

template <typename scalar_t>
struct MaxPool {
  const scalar_t* from;
  const int64_t* indices;
  scalar_t* to;
  const PoolGeometry& pool;
  std::atomic<bool>& out_of_range;
};

// Steps are planes.
template <typename scalar_t>
struct WinnerPlanes : MaxPool<scalar_t> {
  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const PoolGeometry& pool = this->pool;
    PlaneSum<scalar_t> plane_sum(pool.in);
    bool bad = false;
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t* winners = this->indices + plane * pool.out;
      for (int64_t target = 0; target < pool.targets; ++target) {
        const scalar_t* g = this->from + (target * pool.planes + plane) * pool.out;
        scalar_t* result = this->to + (target * pool.planes + plane) * pool.in;
        auto* sums = plane_sum.begin(result);
        for (int64_t o = 0; o < pool.out; ++o) {
          const bool inside = static_cast<uint64_t>(winners[o]) < static_cast<uint64_t>(pool.in);
          if (inside) sums[winners[o]] += load(g[o]);
          bad |= !inside;
        }
        plane_sum.finish(result);
      }
    }
    if (bad) this->out_of_range = true;
  }
};

// Steps are blocks of channels of images; channels-last.
template <typename scalar_t>
struct WinnerBlocks : MaxPool<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;
  static constexpr bool kBuffered = PlaneSum<scalar_t>::kBuffered;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const PoolGeometry& pool = this->pool;
    const int64_t channels = pool.channels, blocks = cpu::ceil_div(channels, kScatterBlock);
    const std::unique_ptr<acc_t[]> buffer(kBuffered ? new acc_t[pool.in * kScatterBlock] : nullptr);
    bool bad = false;
    for (int64_t step = first; step < last; ++step) {
      const int64_t image = step / blocks, begin = step % blocks * kScatterBlock;
      const int64_t count = std::min(kScatterBlock, channels - begin);
      const int64_t* winners = this->indices + image * pool.out * channels + begin;
      for (int64_t target = 0; target < pool.targets; ++target) {
        const scalar_t* g = this->from + (target * pool.images + image) * pool.out * channels + begin;
        scalar_t* result = this->to + (target * pool.images + image) * pool.in * channels + begin;
        acc_t* sums;
        if constexpr (kBuffered)
          sums = buffer.get();
        else
          sums = result;
        const int64_t row = kBuffered ? count : channels;
        for (int64_t i = 0; i < pool.in; ++i)
          for (int64_t c = 0; c < count; ++c) sums[i * row + c] = acc_t(0);
        for (int64_t o = 0; o < pool.out; ++o)
          for (int64_t c = 0; c < count; ++c) {
            const int64_t winner = winners[o * channels + c];
            const bool inside = static_cast<uint64_t>(winner) < static_cast<uint64_t>(pool.in);
            if (inside) sums[winner * row + c] += load(g[o * channels + c]);
            bad |= !inside;
          }
        if constexpr (kBuffered)
          for (int64_t i = 0; i < pool.in; ++i)
            for (int64_t c = 0; c < count; ++c) store(result[i * channels + c], sums[i * row + c]);
      }
    }
    if (bad) this->out_of_range = true;
  }
};

// Steps are planes; channels-last: output positions of images.
template <typename scalar_t, bool kChannelsLast>
struct WinnerBackward : MaxPool<scalar_t> {
  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const PoolGeometry& pool = this->pool;
    const int64_t row = kChannelsLast ? pool.channels : pool.out, step = kChannelsLast ? pool.channels : 1;
    bool bad = false;
    for (int64_t i = first; i < last; ++i) {
      const int64_t* winners = this->indices + i * row;
      const int64_t plane = kChannelsLast ? i / pool.out * pool.channels : i;
      for (int64_t target = 0; target < pool.targets; ++target) {
        const scalar_t* grad = this->from + (target * pool.planes + plane) * pool.in;
        scalar_t* result = this->to + target * pool.planes * pool.out + i * row;
        for (int64_t j = 0; j < row; ++j) {
          const bool inside = static_cast<uint64_t>(winners[j]) < static_cast<uint64_t>(pool.in);
          bad |= !inside;
          if (inside) result[j] = grad[winners[j] * step + (kChannelsLast ? j : 0)];
        }
      }
    }
    if (bad) this->out_of_range = true;
  }
};

}  // namespace
}  // namespace lrpkernels::cpu
