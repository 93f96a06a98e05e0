// What the CPU pooling kernels share: a layer's windows, a walk over positions, sums in the arithmetic type, tasks.
#pragma once
#include "../common/pool_ops.h"

#include <memory>
#include <vector>

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

// `elements`: roughly what one step reads and writes.
template <typename Body>
void run_steps(int64_t steps, int64_t elements, const Body& body) {
  torch::stable::parallel_for(0, steps, std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, elements)),
                              [&](int64_t first, int64_t last) { run_widest(body, first, last); });
}

}  // namespace
}  // namespace lrpkernels::cpu
