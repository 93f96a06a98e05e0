// Average and adaptive average pooling on the CPU, and the transposed map.
#pragma once
#include "pool_geometry.h"

namespace lrpkernels::cpu {
namespace {

template <typename scalar_t>
struct Average {
  const scalar_t* from;
  scalar_t* to;
  const PoolGeometry& pool;
};

// Steps are planes. The rows of a window are added first, then along the row.
template <typename scalar_t>
struct AveragePlanes : Average<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const PoolGeometry& pool = this->pool;
    const int64_t width = pool.dimension[2].input;
    const std::unique_ptr<acc_t[]> buffer(new acc_t[width]);
    acc_t* __restrict row = buffer.get();
    for (int64_t plane = first; plane < last; ++plane) {
      const scalar_t* x = this->from + plane * pool.in;
      scalar_t* result = this->to + plane * pool.out;
      for (const Window& deep : pool.windows[0])
        for (const Window& high : pool.windows[1]) {
          for (int64_t w = 0; w < width; ++w) row[w] = 0;
          for (int d = deep.begin; d < deep.end; ++d)
            for (int h = high.begin; h < high.end; ++h) {
              const scalar_t* __restrict line = x + pool.flat_in(d, h, 0);
              for (int64_t w = 0; w < width; ++w) row[w] += load(line[w]);
            }
          for (const Window& wide : pool.windows[2]) {
            acc_t sum = 0;
            for (int w = wide.begin; w < wide.end; ++w) sum += row[w];
            store(*result++, sum / static_cast<acc_t>(pool.divisor * deep.weight * high.weight * wide.weight));
          }
        }
    }
  }
};

// Steps are planes. A row of shares is made once and added to every input row of its windows.
template <typename scalar_t>
struct AverageTransposePlanes : Average<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const PoolGeometry& pool = this->pool;
    const int64_t width = pool.dimension[2].input;
    const std::unique_ptr<acc_t[]> buffer(new acc_t[width]);
    acc_t* __restrict row = buffer.get();
    PlaneSum<scalar_t> plane_sum(pool.in);
    for (int64_t plane = first; plane < last; ++plane) {
      const scalar_t* g = this->from + plane * pool.out;
      scalar_t* result = this->to + plane * pool.in;
      acc_t* sums = plane_sum.begin(result);
      for (const Window& deep : pool.windows[0])
        for (const Window& high : pool.windows[1]) {
          for (int64_t w = 0; w < width; ++w) row[w] = 0;
          for (const Window& wide : pool.windows[2]) {
            const acc_t share = load(*g++) / static_cast<acc_t>(pool.divisor * deep.weight * high.weight * wide.weight);
            for (int w = wide.begin; w < wide.end; ++w) row[w] += share;
          }
          for (int d = deep.begin; d < deep.end; ++d)
            for (int h = high.begin; h < high.end; ++h) {
              acc_t* __restrict line = sums + pool.flat_in(d, h, 0);
              for (int64_t w = 0; w < width; ++w) line[w] += row[w];
            }
        }
      plane_sum.finish(result);
    }
  }
};

// Steps are output positions (transposed: input positions) of images; channels-last.
template <typename scalar_t, bool kTranspose>
struct AveragePositions : Average<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const PoolGeometry& pool = this->pool;
    constexpr bool kBuffered = PlaneSum<scalar_t>::kBuffered;
    const int64_t other = kTranspose ? pool.out : pool.in;
    acc_t buffer[kBuffered ? kChannelBlock : 1];
    const PoolDimension* size = pool.dimension;
    Cursor at = kTranspose ? Cursor(first, size[0].input, size[1].input, size[2].input)
                           : Cursor(first, size[0].output, size[1].output, size[2].output);
    for (int64_t step = first; step < last; ++step, at.next()) {
      lrpkernels::Span span[3];
      int divisor = pool.divisor;
      if constexpr (kTranspose) {
        span[0] = pool.covering[0][at.d];
        span[1] = pool.covering[1][at.h];
        span[2] = pool.covering[2][at.w];
      } else {
        const Window windows[3] = {pool.windows[0][at.d], pool.windows[1][at.h], pool.windows[2][at.w]};
        for (int d = 0; d < 3; ++d) {
          span[d] = {windows[d].begin, windows[d].end};
          divisor *= windows[d].weight;
        }
      }
      acc_t share = acc_t(1) / static_cast<acc_t>(divisor);
      for (int64_t begin = 0; begin < pool.channels; begin += kChannelBlock) {
        const int64_t count = std::min(kChannelBlock, pool.channels - begin);
        const scalar_t* from = this->from + at.image * other * pool.channels + begin;
        scalar_t* result = this->to + step * pool.channels + begin;
        acc_t* __restrict sums;
        if constexpr (kBuffered)
          sums = buffer;
        else
          sums = result;
        bool first_place = true;
        for (int d = span[0].begin; d < span[0].end; ++d)
          for (int h = span[1].begin; h < span[1].end; ++h)
            for (int w = span[2].begin; w < span[2].end; ++w) {
              const int64_t place = kTranspose ? pool.flat_out(d, h, w) : pool.flat_in(d, h, w);
              const scalar_t* __restrict x = from + place * pool.channels;
              if constexpr (kTranspose)
                share = acc_t(1) / static_cast<acc_t>(pool.divisor * pool.windows[0][d].weight *
                                                      pool.windows[1][h].weight * pool.windows[2][w].weight);
              if (first_place)
                for (int64_t c = 0; c < count; ++c) sums[c] = load(x[c]) * share;
              else
                for (int64_t c = 0; c < count; ++c) sums[c] += load(x[c]) * share;
              first_place = false;
            }
        if (first_place)
          for (int64_t c = 0; c < count; ++c) sums[c] = acc_t(0);
        if constexpr (kBuffered)
          for (int64_t c = 0; c < count; ++c) store(result[c], sums[c]);
      }
    }
  }
};

}  // namespace
}  // namespace lrpkernels::cpu
