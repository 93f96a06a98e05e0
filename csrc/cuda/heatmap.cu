// What the heatmap loss reads from a heatmap, in one kernel: foreground sums and, per row, the global weighted rank
// pooling (GWRP) of the background by partial selection: a radix select finds the smallest value that counts, only what
// is above is sorted. Positions with the same value rank in ascending order, so results and gradients are
// deterministic.
#include "elementwise.cuh"
#include "reduce.cuh"

namespace lrpkernels::cuda {
namespace {

constexpr int kSharedKeys = 2048;  // 32 KiB; more ranks are sorted in global memory
constexpr int kDigits = 256;

// Orders by value, then by position; both grow with the rank's importance. Values are not negative, so that their bits
// order them; a NaN is larger than all numbers.
struct Key {
  unsigned long long value;
  unsigned long long position;  // complement of the 32-bit position
};

__device__ __forceinline__ bool above(const Key& a, const Key& b) {
  return a.value > b.value || (a.value == b.value && a.position > b.position);
}

template <typename acc_t>
using bits_t = std::conditional_t<sizeof(acc_t) == 8, unsigned long long, unsigned>;

template <typename acc_t>
__device__ __forceinline__ bits_t<acc_t> bits_of(acc_t x) {
  bits_t<acc_t> bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
template <typename acc_t>
__device__ __forceinline__ acc_t value_of(unsigned long long bits) {
  const auto narrow = static_cast<bits_t<acc_t>>(bits);
  acc_t x;
  memcpy(&x, &narrow, sizeof x);
  return x;
}

// One channel of one map.
template <typename scalar_t>
struct Row {
  using acc_t = arithmetic_t<scalar_t>;
  const scalar_t* heatmap;
  const scalar_t* mask;
  int positions;

  __device__ __forceinline__ Row(const scalar_t* heatmaps, const scalar_t* masks, int64_t row, const LrpHeatmap& shape)
      : positions(static_cast<int>(shape.positions)) {
    const int64_t image = row / (shape.maps * shape.channels), channel = row % shape.channels;
    heatmap = heatmaps + row * shape.positions;
    mask = masks + (image * shape.mask_channels + (shape.mask_channels == 1 ? 0 : channel)) * shape.positions;
  }

  __device__ __forceinline__ acc_t background(int i) const {
    const acc_t r = to_arithmetic(read_global(heatmap + i)), m = to_arithmetic(read_global(mask + i));
    return m != acc_t(0) ? acc_t(0) : (r < acc_t(0) ? -r : r);
  }

  // False for zeros, which add nothing whatever their rank.
  __device__ __forceinline__ bool key(int i, Key* key) const {
    const acc_t x = background(i);
    *key = {bits_of(x == x ? x : acc_t(NAN)), ~static_cast<unsigned>(i)};
    return !(x <= acc_t(0));
  }
};

// The smallest key of the `kept` largest, for all threads; {0, 0} when there are no more than `kept`. Eight bits at a
// time, from the highest: a histogram of those that agree with the digits found so far tells the next digit.
template <typename scalar_t>
__device__ Key smallest_kept(const Row<scalar_t>& row, int positives, int kept) {
  LRP_SHARED(int, above_digit, [kDigits + 1]);  // suffix sums of the histogram
  LRP_SHARED(Key, found, [1]);
  LRP_SHARED(int, remaining, [2]);  // to be found below the digits so far, and whether they are all of them
  if (positives <= kept) return {0, 0};
  if (threadIdx.x == 0) {
    found[0] = {0, 0};
    remaining[0] = kept;
    remaining[1] = 0;
  }
  constexpr int kValueBits = 8 * static_cast<int>(sizeof(arithmetic_t<scalar_t>));
  for (int shift = kValueBits + 24; shift >= 0; shift -= 8) {
    const bool in_value = shift >= 32;
    above_digit[threadIdx.x] = 0;
    if (threadIdx.x == 0) above_digit[kDigits] = 0;
    __syncthreads();
    if (remaining[1] != 0) break;
    const Key prefix = found[0];
    const int wanted = remaining[0];
    for (int i = threadIdx.x; i < row.positions; i += kThreads) {
      Key key;
      if (!row.key(i, &key)) continue;
      const int low = in_value ? shift - 32 : shift;  // of this digit in its number
      const unsigned long long digits = in_value ? key.value >> low : key.position >> low;
      const unsigned long long known = (in_value ? prefix.value : prefix.position) >> low;
      if ((digits ^ known) >> 8 == 0 && (in_value || key.value == prefix.value))
        count_up(&above_digit[static_cast<int>(digits & 255)], 1);
    }
    __syncthreads();
    for (int distance = 1; distance < kDigits; distance *= 2) {
      const int digit = threadIdx.x;
      const int more = digit + distance < kDigits ? above_digit[digit + distance] : 0;
      __syncthreads();
      above_digit[digit] += more;
      __syncthreads();
    }
    const int digit = threadIdx.x, with = above_digit[digit], without = above_digit[digit + 1];
    if (with >= wanted && without < wanted) {  // one thread
      const auto bits = static_cast<unsigned long long>(digit);
      if (in_value)
        found[0].value |= bits << (shift - 32);
      else
        found[0].position |= bits << shift;
      remaining[0] = wanted - without;
      remaining[1] = with == wanted;
    }
    __syncthreads();
  }
  __syncthreads();
  return found[0];
}

// Bitonic, descending; `size` is a power of two.
__device__ void sort_keys(Key* keys, int size) {
  for (int width = 2; width <= size; width *= 2)
    for (int distance = width / 2; distance > 0; distance /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const int i = pair / distance * 2 * distance + pair % distance, j = i + distance;
        const Key a = keys[i], b = keys[j];
        if (((i & width) == 0) == above(b, a)) {
          keys[i] = b;
          keys[j] = a;
        }
      }
      __syncthreads();
    }
}

// Sum of an int over the block, for all threads.
__device__ __forceinline__ int block_count(int x) {
  LRP_SHARED(int, total, [1]);
  if (threadIdx.x == 0) total[0] = 0;
  __syncthreads();
  count_up(total, x);
  __syncthreads();
  const int result = total[0];
  __syncthreads();
  return result;
}

LRP_HD int sorted_size(int64_t kept) {
  int size = 1;
  while (size < kept) size *= 2;
  return size;
}

// (1 - decay) / (1 - decay^positions): one over the sum of all weights.
LRP_HD double weight_scale(const LrpHeatmap& shape) {
  if (shape.kept == 0) return 1.0 / static_cast<double>(shape.positions);
  return (1.0 - shape.decay) / (1.0 - pow(shape.decay, static_cast<double>(shape.positions)));
}

// Block: one row after the other. sums [2][rows]: of A m and of R m.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    heatmap_scores_kernel(const scalar_t* heatmap, const scalar_t* mask, double* sums,
                          arithmetic_t<scalar_t>* background, int32_t* order, Key* workspace, LrpHeatmap shape,
                          int64_t rows) {
  using acc_t = arithmetic_t<scalar_t>;
  LRP_SHARED(Key, shared_keys, [kSharedKeys]);
  LRP_SHARED(int, selected, [1]);
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const Row<scalar_t> row(heatmap, mask, r, shape);
    acc_t inside = 0, with_sign = 0, outside = 0;
    int positives = 0;
    for (int i = threadIdx.x; i < row.positions; i += kThreads) {
      const acc_t x = to_arithmetic(read_global(row.heatmap + i)), m = to_arithmetic(read_global(row.mask + i));
      const acc_t magnitude = x < acc_t(0) ? -x : x;
      if (m != acc_t(0)) {
        inside += magnitude * m;  // m is 1, except for a NaN
        with_sign += x * m;
      } else {
        outside += magnitude;
        positives += !(magnitude <= acc_t(0));
      }
    }
    const double total = block_sum(inside), total_with_sign = block_sum(with_sign), total_outside = block_sum(outside);
    if (threadIdx.x == 0) {
      sums[r] = total;
      sums[rows + r] = total_with_sign;
      if (shape.kept == 0) write_global(background + r, static_cast<acc_t>(total_outside * weight_scale(shape)));
    }
    if (shape.kept == 0) continue;

    const auto kept = static_cast<int>(shape.kept);
    const Key smallest = smallest_kept(row, block_count(positives), kept);
    const int size = sorted_size(kept);
    Key* const keys = size <= kSharedKeys ? shared_keys : workspace + blockIdx.x * static_cast<int64_t>(size);
    for (int i = threadIdx.x; i < size; i += kThreads) keys[i] = {0, 0};
    if (threadIdx.x == 0) selected[0] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.positions; i += kThreads) {
      Key key;
      if (row.key(i, &key) && !above(smallest, key)) keys[count_up(selected, 1)] = key;
    }
    __syncthreads();
    sort_keys(keys, size);
    double sum = 0;
    for (int rank = threadIdx.x; rank < kept; rank += kThreads) {
      const Key key = keys[rank];
      if (rank < selected[0])
        sum += static_cast<double>(value_of<acc_t>(key.value)) * pow(shape.decay, static_cast<double>(rank));
      write_global(order + r * kept + rank,
                   rank < selected[0] ? static_cast<int32_t>(~static_cast<unsigned>(key.position)) : -1);
    }
    const double pooled = block_sum(sum) * weight_scale(shape);
    if (threadIdx.x == 0) write_global(background + r, static_cast<acc_t>(pooled));
    __syncthreads();
  }
}

// Thread: one map, the sum of its channels.
template <typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    map_sums_kernel(const double* sums, acc_t* foreground, acc_t* signed_foreground, int64_t maps, int64_t channels) {
  for (int64_t map = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; map < maps;
       map += static_cast<int64_t>(gridDim.x) * kThreads) {
    double sum = 0, with_sign = 0;
    for (int64_t c = 0; c < channels; ++c) {
      sum += read_global(sums + map * channels + c);
      with_sign += read_global(sums + (maps + map) * channels + c);
    }
    write_global(foreground + map, static_cast<acc_t>(sum));
    write_global(signed_foreground + map, static_cast<acc_t>(with_sign));
  }
}

template <typename acc_t>
__device__ __forceinline__ acc_t sign_of(acc_t x) {
  return x > acc_t(0) ? acc_t(1) : (x < acc_t(0) ? acc_t(-1) : x);  // 0 at 0, NaN at NaN
}

// dR = m (sgn R dF + dF_signed), and in the background sgn R dg / positions when every position weighs the same.
template <typename storage_t>
struct HeatmapBackward {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* heatmap;
  const scalar_t* mask;
  const acc_t* grad_foreground;
  const acc_t* grad_signed_foreground;
  const acc_t* grad_background;  // null unless every position weighs the same
  scalar_t* grad_heatmap;
  LrpHeatmap shape;
  FastDivisor positions, channels, maps;
  acc_t scale;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    // A vector lies within a row.
    const int64_t row = positions.quotient(i), map = channels.quotient(row), image = maps.quotient(map);
    const int64_t channel = shape.mask_channels == 1 ? 0 : row - map * shape.channels;
    const Pack<acc_t, kVec> r = load<kVec>(heatmap + i);
    const Pack<acc_t, kVec> m =
        load<kVec>(mask + (image * shape.mask_channels + channel) * shape.positions + i - row * shape.positions);
    const acc_t inside = read_global(grad_foreground + map), with_sign = read_global(grad_signed_foreground + map);
    const acc_t outside = grad_background ? read_global(grad_background + row) * scale : acc_t(0);
    Pack<acc_t, kVec> grad;
#pragma unroll
    for (int j = 0; j < kVec; ++j)
      grad[j] = m[j] != acc_t(0) ? m[j] * (sign_of(r[j]) * inside + with_sign) : sign_of(r[j]) * outside;
    store<kVec>(grad_heatmap + i, grad);
  }
};

// Block: the selected positions of one row after the other. They are different, and in the background.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    selected_backward_kernel(const scalar_t* heatmap, const int32_t* order,
                             const arithmetic_t<scalar_t>* grad_background, scalar_t* grad_heatmap, LrpHeatmap shape,
                             int64_t rows) {
  using acc_t = arithmetic_t<scalar_t>;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const double coefficient = static_cast<double>(read_global(grad_background + row)) * weight_scale(shape);
    for (int64_t rank = threadIdx.x; rank < shape.kept; rank += kThreads) {
      const int32_t position = read_global(order + row * shape.kept + rank);
      if (position < 0 || position >= shape.positions) continue;
      const int64_t at = row * shape.positions + position;
      const acc_t weight = static_cast<acc_t>(coefficient * pow(shape.decay, static_cast<double>(rank)));
      write_global(grad_heatmap + at, to_storage<scalar_t>(sign_of(to_arithmetic(read_global(heatmap + at))) * weight));
    }
  }
}

constexpr int64_t kMaxBlocks = 2048;  // of the kernel that needs scratch memory per block

int64_t rows_of(const LrpHeatmap& shape) { return shape.images * shape.maps * shape.channels; }

unsigned blocks_of(const LrpHeatmap& shape) {
  const int64_t rows = rows_of(shape);
  return grid_for(rows < kMaxBlocks ? rows : kMaxBlocks, 1);
}

bool valid(const LrpHeatmap& shape) {
  return shape.positions > 0 && shape.positions < (1ll << 30) && shape.kept >= 0 && shape.kept <= shape.positions &&
         bounded_product({shape.images, shape.maps, shape.channels, shape.positions}) < kMostElements;
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int64_t lrp_heatmap_scores_workspace(LrpHeatmap shape) {
  if (!valid(shape)) return 0;
  const int64_t rows = rows_of(shape), size = sorted_size(shape.kept);
  const int64_t keys = size <= kSharedKeys ? 0 : (rows < kMaxBlocks ? rows : kMaxBlocks) * size;
  return keys * static_cast<int64_t>(sizeof(Key)) + 2 * rows * static_cast<int64_t>(sizeof(double));
}

int lrp_heatmap_scores(LrpDtype dtype, const void* heatmap, const void* mask, void* foreground, void* signed_foreground,
                       void* background, int32_t* order, void* workspace, LrpHeatmap shape, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    if (!valid(shape)) return kInvalidValue;
    const int64_t rows = rows_of(shape);
    if (rows == 0) return 0;
    auto* const sums = static_cast<double*>(workspace);
    auto* const keys = reinterpret_cast<Key*>(sums + 2 * rows);
    LRP_LAUNCH(heatmap_scores_kernel<scalar_t>, blocks_of(shape), kThreads, stream, In{heatmap}, In{mask}, sums,
               Out{background}, order, keys, shape, rows);
    const int64_t maps = shape.images * shape.maps;
    LRP_LAUNCH(map_sums_kernel<acc_t>, grid_for(maps, kThreads), kThreads, stream, sums, Out{foreground},
               Out{signed_foreground}, maps, shape.channels);
    return LRP_LAST_ERROR();
  });
}

int lrp_heatmap_scores_backward(LrpDtype dtype, const void* heatmap, const void* mask, const int32_t* order,
                                const void* grad_foreground, const void* grad_signed_foreground,
                                const void* grad_background, void* grad_heatmap, LrpHeatmap shape, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    if (!valid(shape)) return kInvalidValue;
    const int64_t rows = rows_of(shape);
    if (rows == 0) return 0;
    const acc_t* const pooled = In{grad_background};
    const bool mean = shape.kept == 0;
    const FastDivisor positions(shape.positions), channels(shape.channels), maps(shape.maps);
    const In r{heatmap}, m{mask}, inside{grad_foreground}, with_sign{grad_signed_foreground};
    const auto scale = static_cast<acc_t>(weight_scale(shape));
    const HeatmapBackward<scalar_t> body{
        r, m, inside, with_sign, mean ? pooled : nullptr, Out{grad_heatmap}, shape, positions, channels, maps, scale};
    const bool vectors = shape.positions % kVectorWidth<scalar_t> == 0 && all_aligned(heatmap, mask, grad_heatmap);
    const int error = launch_elementwise(body, rows * shape.positions, vectors, stream);
    if (error != 0 || mean) return error;
    LRP_LAUNCH(selected_backward_kernel<scalar_t>, grid_for(rows, 1), kThreads, stream, In{heatmap}, order, pooled,
               Out{grad_heatmap}, shape, rows);
    return LRP_LAST_ERROR();
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda
