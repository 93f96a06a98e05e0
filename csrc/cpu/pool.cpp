// CPU kernels of the pooling ops. NCHW: one plane per task step, scattered into while it is in the cache.
// Channels-last: vectors along the channels. Sums do not depend on the number of threads.
#include "../common/pool_ops.h"

#include <atomic>
#include <memory>

#include <torch/csrc/stable/library.h>

#include "../common/geometry.h"
#include "partition.h"

namespace lrpkernels::cpu {
namespace {

// Channels of a position that are summed together, in the L1 cache.
constexpr int64_t kChannelBlock = 256;
// Channels of an image that are scattered together: whole cache lines, several tasks per image.
constexpr int64_t kScatterBlock = 64;

// One window along one dimension: the input positions in it, and its share of the divisor.
struct Window {
  int begin;
  int end;
  int weight;
};

struct PoolGeometry {
  PoolDimension dimension[3];
  std::vector<Window> windows[3];             // by output position; average pooling only
  std::vector<lrpkernels::Span> covering[3];  // by input position: the windows that may cover it
  int64_t in = 1, out = 1;
  int64_t channels, planes, images, targets;
  int divisor;
  bool adaptive;

  PoolGeometry(const LrpPool& pool, bool average)
      : channels(pool.channels),
        planes(pool.batch * pool.channels),
        images(pool.batch),
        targets(pool.targets),
        divisor(pool.divisor_override != 0 ? static_cast<int>(pool.divisor_override) : 1),
        adaptive(pool.adaptive != 0) {
    for (int d = 0; d < 3; ++d) {
      dimension[d] = {static_cast<int>(pool.input[d]),   static_cast<int>(pool.output[d]),
                      static_cast<int>(pool.kernel[d]),  static_cast<int>(pool.stride[d]),
                      static_cast<int>(pool.padding[d]), static_cast<int>(pool.dilation[d])};
      in *= pool.input[d];
      out *= pool.output[d];
      for (int i = 0; pool.channels_last != 0 && i < dimension[d].input; ++i)
        covering[d].push_back(adaptive ? dimension[d].adaptive_covering(i) : dimension[d].covering(i));
      for (int o = 0; average && o < dimension[d].output; ++o) {
        const lrpkernels::Span padded = adaptive ? dimension[d].adaptive_window(o) : dimension[d].padded_window(o);
        const lrpkernels::Span inside = dimension[d].inside(padded);
        const int weight = pool.divisor_override != 0 ? 1 : (pool.count_include_pad ? padded : inside).length();
        windows[d].push_back({inside.begin, inside.end, weight});
      }
    }
  }

  int64_t flat_in(int d, int h, int w) const {
    return (static_cast<int64_t>(d) * dimension[1].input + h) * dimension[2].input + w;
  }
  int64_t flat_out(int d, int h, int w) const {
    return (static_cast<int64_t>(d) * dimension[1].output + h) * dimension[2].output + w;
  }
};

// A position of a plane and its image, moved along without divisions.
class Cursor {
 public:
  Cursor(int64_t step, int64_t depth, int64_t height, int64_t width)
      : depth_(depth), height_(height), width_(width), w(step % width), h(step / width % height) {
    d = step / (width * height) % depth;
    image = step / (width * height * depth);
  }

  LRP_ALWAYS_INLINE void next() {
    if (++w < width_) return;
    w = 0;
    if (++h < height_) return;
    h = 0;
    if (++d < depth_) return;
    d = 0;
    ++image;
  }

 private:
  int64_t depth_, height_, width_;

 public:
  int64_t w, h, d, image;
};

// Sums in the arithmetic type: the plane itself, or a buffer that is rounded once at the end.
template <typename scalar_t>
class PlaneSum {
 public:
  using acc_t = arithmetic_t<scalar_t>;
  static constexpr bool kBuffered = !std::is_same_v<scalar_t, acc_t>;

  explicit PlaneSum(int64_t size) : size_(size), buffer_(kBuffered ? new acc_t[size] : nullptr) {}

  LRP_ALWAYS_INLINE acc_t* begin(scalar_t* plane) {
    acc_t* sums;
    if constexpr (kBuffered)
      sums = buffer_.get();
    else
      sums = plane;
    for (int64_t i = 0; i < size_; ++i) sums[i] = acc_t(0);
    return sums;
  }

  LRP_ALWAYS_INLINE void finish(scalar_t* plane) {
    if constexpr (kBuffered)
      for (int64_t i = 0; i < size_; ++i) store(plane[i], buffer_[i]);
  }

 private:
  int64_t size_;
  std::unique_ptr<acc_t[]> buffer_;
};

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

// `elements`: what one step reads and writes, about.
template <typename Body>
void run_steps(int64_t steps, int64_t elements, const Body& body) {
  torch::stable::parallel_for(0, steps, std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, elements)),
                              [&](int64_t first, int64_t last) { run_widest(body, first, last); });
}

struct Backend {
  static constexpr StorageDtypes kDtypes{false, "float32, float64 or bfloat16 on CPU"};

  struct Guard {
    explicit Guard(const Tensor&) {}
    void* stream() const { return nullptr; }
  };

  static void max_pool_winner(LrpDtype dtype, const void* multiplier, const int64_t* indices, void* result,
                              LrpPool pool, void*) {
    const PoolGeometry geometry(pool, false);
    std::atomic<bool> out_of_range{false};
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const MaxPool<scalar_t> args{static_cast<const scalar_t*>(multiplier), indices, static_cast<scalar_t*>(result),
                                   geometry, out_of_range};
      if (pool.channels_last)
        run_steps(geometry.images * cpu::ceil_div(geometry.channels, kScatterBlock), geometry.in * kScatterBlock,
                  WinnerBlocks<scalar_t>{args});
      else
        run_steps(geometry.planes, geometry.in, WinnerPlanes<scalar_t>{args});
    });
    check_range("max_pool_winner", out_of_range, geometry);
  }

  static void max_pool_winner_backward(LrpDtype dtype, const void* grad, const int64_t* indices, void* grad_multiplier,
                                       LrpPool pool, void*) {
    const PoolGeometry geometry(pool, false);
    std::atomic<bool> out_of_range{false};
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const MaxPool<scalar_t> args{static_cast<const scalar_t*>(grad), indices, static_cast<scalar_t*>(grad_multiplier),
                                   geometry, out_of_range};
      if (pool.channels_last)
        run_steps(geometry.images * geometry.out, geometry.channels, WinnerBackward<scalar_t, true>{args});
      else
        run_steps(geometry.planes, geometry.out, WinnerBackward<scalar_t, false>{args});
    });
    check_range("max_pool_winner_backward", out_of_range, geometry);
  }

  static void average_pool(LrpDtype dtype, const void* input, void* result, LrpPool pool, void*) {
    run_average<false>(dtype, input, result, pool);
  }

  static void average_pool_transpose(LrpDtype dtype, const void* multiplier, void* result, LrpPool pool, void*) {
    run_average<true>(dtype, multiplier, result, pool);
  }

 private:
  template <bool kTranspose>
  static void run_average(LrpDtype dtype, const void* from, void* to, const LrpPool& pool) {
    const PoolGeometry geometry(pool, true);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      using Planes = std::conditional_t<kTranspose, AverageTransposePlanes<scalar_t>, AveragePlanes<scalar_t>>;
      const Average<scalar_t> args{static_cast<const scalar_t*>(from), static_cast<scalar_t*>(to), geometry};
      if (pool.channels_last)
        run_steps(geometry.images * (kTranspose ? geometry.in : geometry.out), geometry.channels,
                  AveragePositions<scalar_t, kTranspose>{args});
      else
        run_steps(geometry.planes, geometry.in, Planes{args});
    });
  }

  static void check_range(const char* op, bool out_of_range, const PoolGeometry& geometry) {
    if (out_of_range) fail(op, ": indices must be >= 0 and below the plane's ", geometry.in, " positions");
  }
};

using Ops = PoolOps<Backend>;

}  // namespace
}  // namespace lrpkernels::cpu

STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CPU, m) {
  using lrpkernels::cpu::Ops;
  m.impl("max_pool_winner", TORCH_BOX(&Ops::max_pool_winner));
  m.impl("max_pool_winner_backward", TORCH_BOX(&Ops::max_pool_winner_backward));
  m.impl("average_pool", TORCH_BOX(&Ops::average_pool));
  m.impl("average_pool_transpose", TORCH_BOX(&Ops::average_pool_transpose));
}
