// Layer, group, instance and RMS norm under the rule that takes the deviation as a constant. A row, the neighbouring
// elements that share a mean and a deviation, belongs to a warp if it is short, else to a block; what is read twice
// comes from the cache. The backward pass has two kernels: the rows' statistics, then one elementwise pass with channel
// sums.
#include "channel_sum.cuh"

namespace lrpkernels::cuda {
namespace {

constexpr int64_t kWarpRow = 1024;  // elements; longer rows get a block

template <typename storage_t>
struct Norm {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* input;       // [numel]
  const acc_t* weight;         // [channels] or null
  LrpNorm norm;
  ChannelMap channels;

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kVec> weights(int64_t i) const {
    return weight ? channels.template gather<kVec>(weight, i) : filled<kVec>(acc_t(1));
  }
};

// What a row's threads are: a warp, or the whole block.
template <bool kWarp>
struct Team {
  static constexpr int kSize = kWarp ? 32 : kThreads;
  static constexpr int kPerBlock = kThreads / kSize;

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kSize; }
  __device__ __forceinline__ static int64_t row() {
    return static_cast<int64_t>(blockIdx.x) * kPerBlock + static_cast<int64_t>(threadIdx.x) / kSize;
  }

  // The sum over the team, for all of it. All threads of the block call, those without a row as well.
  __device__ __forceinline__ static double sum(double x) {
    if constexpr (kWarp) {
      return lane_group_sum(x, 32);
    } else {
      LRP_SHARED(double, total, [1]);
      const double found = block_sum(x);
      if (threadIdx.x == 0) total[0] = found;
      __syncthreads();
      const double result = total[0];
      __syncthreads();
      return result;
    }
  }
};

// The sum over a row of term(element, j of the vector), by a team; 0 without a row.
template <int kVec, bool kWarp, typename Term>
__device__ __forceinline__ double row_sum(int64_t size, const Term& term) {
  double sum = 0;
  for (int64_t i = Team<kWarp>::lane() * kVec; i < size; i += Team<kWarp>::kSize * kVec) sum += term(i);
  return Team<kWarp>::sum(sum);
}

template <typename acc_t>
struct Statistics {
  acc_t mean;     // 0 where the norm is not centred
  acc_t inverse;  // 1 / sqrt(variance + epsilon)
};

template <int kVec, bool kWarp, typename scalar_t>
__device__ __forceinline__ Statistics<arithmetic_t<scalar_t>> statistics(const scalar_t* x, int64_t size,
                                                                         const LrpNorm& norm) {
  using acc_t = arithmetic_t<scalar_t>;
  acc_t mean = 0;
  if (norm.centred) {
    const double sum = row_sum<kVec, kWarp>(size, [&](int64_t i) {
      const Pack<acc_t, kVec> value = load<kVec>(x + i);
      acc_t part = 0;
#pragma unroll
      for (int j = 0; j < kVec; ++j) part += value[j];
      return static_cast<double>(part);
    });
    mean = static_cast<acc_t>(sum / static_cast<double>(norm.row));
  }
  const double squares = row_sum<kVec, kWarp>(size, [&](int64_t i) {
    const Pack<acc_t, kVec> value = load<kVec>(x + i);
    acc_t part = 0;
#pragma unroll
    for (int j = 0; j < kVec; ++j) part += (value[j] - mean) * (value[j] - mean);
    return static_cast<double>(part);
  });
  return {mean, static_cast<acc_t>(1 / sqrt(squares / static_cast<double>(norm.row) + norm.epsilon))};
}

// Team: one row after the other, all targets.
template <int kVec, bool kWarp, typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    sample_norm_kernel(Norm<scalar_t> args, scalar_t* result, int64_t rows) {
  using acc_t = arithmetic_t<scalar_t>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * Team<kWarp>::kPerBlock;
  // The bound is the same for the whole block, because the sums need every thread.
  for (int64_t base = 0; base < rows; base += step) {
    const int64_t row = base + Team<kWarp>::row(), size = row < rows ? args.norm.row : 0, begin = row * args.norm.row;
    const Statistics<acc_t> found = statistics<kVec, kWarp>(args.input + begin, size, args.norm);
#pragma unroll 1
    for (int64_t target = 0; target < args.norm.extent.targets; ++target) {
      const int64_t at = target * args.norm.extent.numel + begin;
      acc_t mean = 0;
      if (args.norm.centred) {
        const double sum = row_sum<kVec, kWarp>(size, [&](int64_t i) {
          const Pack<acc_t, kVec> g = load<kVec>(args.multiplier + at + i);
          const Pack<acc_t, kVec> w = args.template weights<kVec>(begin + i);
          acc_t part = 0;
#pragma unroll
          for (int j = 0; j < kVec; ++j) part += w[j] * g[j];
          return static_cast<double>(part);
        });
        mean = static_cast<acc_t>(sum / static_cast<double>(args.norm.row));
      }
      for (int64_t i = Team<kWarp>::lane() * kVec; i < size; i += Team<kWarp>::kSize * kVec) {
        Pack<acc_t, kVec> g = load<kVec>(args.multiplier + at + i);
        const Pack<acc_t, kVec> w = args.template weights<kVec>(begin + i);
#pragma unroll
        for (int j = 0; j < kVec; ++j) g[j] = found.inverse * (w[j] * g[j] - mean);
        store<kVec>(result + at + i, g);
      }
    }
  }
}

// What the elementwise pass needs of each row, in the arithmetic type.
template <typename acc_t>
struct RowTable {
  acc_t* mean;     // [rows]: of x, 0 where the norm is not centred
  acc_t* inverse;  // [rows]: r
  acc_t* factor;   // [rows]: dx / (x - mean)
  acc_t* shift;    // [targets, rows]: mean of the incoming gradient
};

// Team: one row after the other. factor = -(sum over targets of sum w G r (t - mean t)) r^2 / row.
template <int kVec, bool kWarp, typename scalar_t>
__global__ void __launch_bounds__(kThreads, kSumBlocksPerSm)
    row_table_kernel(Norm<scalar_t> args, const scalar_t* grad, RowTable<arithmetic_t<scalar_t>> table, int64_t rows) {
  using acc_t = arithmetic_t<scalar_t>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * Team<kWarp>::kPerBlock;
  const double elements = static_cast<double>(args.norm.row);
  for (int64_t base = 0; base < rows; base += step) {
    const int64_t row = base + Team<kWarp>::row(), size = row < rows ? args.norm.row : 0, begin = row * args.norm.row;
    const bool writes = row < rows && Team<kWarp>::lane() == 0;
    const Statistics<acc_t> found = statistics<kVec, kWarp>(args.input + begin, size, args.norm);
    double through_deviation = 0;
#pragma unroll 1
    for (int64_t target = 0; target < args.norm.extent.targets; ++target) {
      const int64_t at = target * args.norm.extent.numel + begin;
      acc_t shift = 0;
      if (args.norm.centred) {
        const double sum = row_sum<kVec, kWarp>(size, [&](int64_t i) {
          const Pack<acc_t, kVec> t = load<kVec>(grad + at + i);
          acc_t part = 0;
#pragma unroll
          for (int j = 0; j < kVec; ++j) part += t[j];
          return static_cast<double>(part);
        });
        shift = static_cast<acc_t>(sum / elements);
      }
      through_deviation += row_sum<kVec, kWarp>(size, [&](int64_t i) {
        const Pack<acc_t, kVec> t = load<kVec>(grad + at + i), g = load<kVec>(args.multiplier + at + i);
        const Pack<acc_t, kVec> w = args.template weights<kVec>(begin + i);
        acc_t part = 0;
#pragma unroll
        for (int j = 0; j < kVec; ++j) part += w[j] * g[j] * (t[j] - shift);
        return static_cast<double>(part);
      });
      if (writes) write_global(table.shift + target * rows + row, shift);
    }
    if (!writes) continue;
    const acc_t cube = found.inverse * found.inverse * found.inverse;
    write_global(table.mean + row, found.mean);
    write_global(table.inverse + row, found.inverse);
    write_global(table.factor + row, static_cast<acc_t>(-through_deviation / elements) * cube);
  }
}

// With a = r (t - mean t): dG = w a, dw = sum a G, dx = factor (x - mean x). A vector lies within a row.
template <typename storage_t>
struct NormBackward : Norm<storage_t> {
  static constexpr int kSums = 1;  // dw
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* grad;       // [targets, numel]
  scalar_t* grad_multiplier;  // [targets, numel]
  scalar_t* grad_input;       // [numel]
  RowTable<acc_t> table;
  FastDivisor row;
  int64_t rows;

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kSums * kVec> run(int64_t i) const {
    const int64_t r = row.quotient(i);
    const acc_t inverse = read_global(table.inverse + r);
    const Pack<acc_t, kVec> w = this->template weights<kVec>(i);
    Pack<acc_t, kVec> products = filled<kVec>(acc_t(0));
#pragma unroll 1
    for (int64_t target = 0; target < this->norm.extent.targets; ++target) {
      const int64_t at = target * this->norm.extent.numel + i;
      const acc_t shift = read_global(table.shift + target * rows + r);
      Pack<acc_t, kVec> t = load<kVec>(grad + at);
      const Pack<acc_t, kVec> g = load<kVec>(this->multiplier + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const acc_t a = inverse * (t[j] - shift);
        products[j] += a * g[j];
        t[j] = w[j] * a;
      }
      store<kVec>(grad_multiplier + at, t);
    }
    const acc_t mean = read_global(table.mean + r), factor = read_global(table.factor + r);
    Pack<acc_t, kVec> x = load<kVec>(this->input + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) x[j] = factor * (x[j] - mean);
    store<kVec>(grad_input + i, x);
    return products;
  }
};

int64_t rows_of(const LrpNorm& norm) { return norm.extent.numel / norm.row; }

int64_t table_elements(const LrpNorm& norm) { return rows_of(norm) * (3 + norm.extent.targets); }

int64_t table_bytes(LrpDtype dtype, const LrpNorm& norm) {
  const int64_t bytes = table_elements(norm) * (dtype == kFloat64 ? 8 : 4);
  return ceil_div<int64_t>(bytes, kVectorBytes) * kVectorBytes;
}

// Vectors within rows, by warps or by blocks.
template <typename scalar_t, typename Launch>
void with_team(const LrpNorm& norm, bool vectors, const Launch& launch) {
  constexpr int kWidth = kVectorWidth<scalar_t>;
  with_flag(norm.row <= kWarpRow, [&](auto warp) {
    if (vectors)
      launch(std::integral_constant<int, kWidth>{}, warp);
    else
      launch(std::integral_constant<int, 1>{}, warp);
  });
}

template <bool kWarp>
unsigned blocks_for(const LrpNorm& norm) {
  return grid_for(rows_of(norm), Team<kWarp>::kPerBlock);
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int lrp_sample_norm(LrpDtype dtype, const void* multiplier, const void* input, const void* weight, void* result,
                    LrpNorm norm, void* stream) {
  return with_storage(dtype, norm.extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    const Norm<scalar_t> args{In{multiplier}, In{input}, In{weight}, norm, ChannelMap(norm.extent)};
    const bool vectors = norm.row % kVectorWidth<scalar_t> == 0 && all_aligned(multiplier, input, result);
    with_team<scalar_t>(norm, vectors, [&](auto vec, auto warp) {
      LRP_LAUNCH((sample_norm_kernel<vec(), warp(), scalar_t>), blocks_for<warp()>(norm), kThreads, stream, args,
                 Out{result}, rows_of(norm));
    });
    return LRP_LAST_ERROR();
  });
}

int64_t lrp_sample_norm_backward_workspace(LrpDtype dtype, LrpNorm norm, bool need_weight) {
  if (!fits(norm.extent) || norm.extent.numel == 0) return 0;
  return table_bytes(dtype, norm) + (need_weight ? channel_sum_workspace(dtype, norm.extent, 1) : 0);
}

int lrp_sample_norm_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* input,
                             const void* weight, void* grad_multiplier, void* grad_input, void* grad_weight,
                             void* workspace, LrpNorm norm, void* stream) {
  return with_storage(dtype, norm.extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    const int64_t rows = rows_of(norm);
    acc_t* const first = Out{workspace};
    const RowTable<acc_t> table{first, first + rows, first + 2 * rows, first + 3 * rows};
    const Norm<scalar_t> args{In{multiplier}, In{input}, In{weight}, norm, ChannelMap(norm.extent)};
    const bool vectors =
        norm.row % kVectorWidth<scalar_t> == 0 && all_aligned(grad, multiplier, input, grad_multiplier, grad_input);
    with_team<scalar_t>(norm, vectors, [&](auto vec, auto warp) {
      LRP_LAUNCH((row_table_kernel<vec(), warp(), scalar_t>), blocks_for<warp()>(norm), kThreads, stream, args,
                 In{grad}, table, rows);
    });
    const NormBackward<scalar_t> body{
        args, In{grad}, Out{grad_multiplier}, Out{grad_input}, table, FastDivisor(norm.row), rows};
    if (grad_weight == nullptr)
      return launch_elementwise(WithoutSum<NormBackward<scalar_t>>{body}, norm.extent.numel, vectors, stream);
    void* const sums = static_cast<char*>(workspace) + table_bytes(dtype, norm);
    return launch_channel_sum(body, norm.extent, vectors, sums, {grad_weight}, stream);
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda
