// CPU kernels of layer, group, instance and RMS norm under the rule that takes the deviation as a constant. Row by row:
// the statistics, then the multiplier of each target. Parallel over fixed tasks, so that results do not depend on the
// number of threads.
#include "../common/sample_norm_ops.h"

#include <cmath>
#include <cstring>

#include <torch/csrc/stable/library.h>

#include "partition.h"

namespace lrpkernels::cpu {
namespace {

template <typename scalar_t>
struct Norm {
  using acc_t = arithmetic_t<scalar_t>;
  LrpNorm norm;
  int64_t rows_per_task;
  const scalar_t* multiplier;  // [T, numel]
  const scalar_t* input;       // [numel]
  const acc_t* weight;         // [channels] or null
  scalar_t* result;            // [T, numel]: G at the input, or the gradient of multiplier
  const scalar_t* grad;        // [T, numel]
  scalar_t* grad_input;        // [numel]
  double* partial;             // one per weight of a task, or per plane; null without a weight
};

// The statistics of one row.
template <typename acc_t>
struct Statistics {
  acc_t mean;     // 0 where the norm is not centred
  acc_t inverse;  // 1 / sqrt(variance + epsilon)
};

// kVector: a row meets as many weights as it has elements; else it consists of planes, each of one weight (or of none).
template <typename scalar_t, bool kVector>
struct Rows : Norm<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  // Calls visit(offset in the row, count, the weights from there on (kVector), the block's weight, its plane).
  template <typename Visit>
  LRP_ALWAYS_INLINE void blocks(int64_t row, const Visit& visit) const {
    const int64_t begin = row * this->norm.row, channels = this->norm.extent.channels;
    const int64_t span = kVector ? this->norm.row : this->norm.extent.inner;
    for (int64_t at = 0; at < this->norm.row; at += span) {
      const int64_t plane = (begin + at) / span;
      const acc_t* weights = kVector ? this->weight + begin % channels : nullptr;
      const acc_t constant = kVector || this->weight == nullptr ? acc_t(1) : this->weight[plane % channels];
      for (int64_t first = 0; first < span; first += kBlock)
        visit(at + first, std::min(kBlock, span - first), kVector ? weights + first : nullptr, constant, plane);
    }
  }

  // The sum over a row of term(i, weight), in blocks, which are added in double.
  template <typename Term>
  LRP_ALWAYS_INLINE double sum(int64_t row, const Term& term) const {
    double total = 0;
    blocks(row, [&](int64_t offset, int64_t count, const acc_t* __restrict w, acc_t constant, int64_t) LRP_INLINE {
      acc_t part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = 0; i < count; ++i) part += term(offset + i, kVector ? w[i] : constant);
      total += part;
    });
    return total;
  }

  LRP_ALWAYS_INLINE Statistics<acc_t> statistics(int64_t row, const scalar_t* __restrict x) const {
    const double size = static_cast<double>(this->norm.row);
    acc_t mean = 0;
    if (this->norm.centred)
      mean = static_cast<acc_t>(sum(row, [&](int64_t i, acc_t) LRP_INLINE { return load(x[i]); }) / size);
    const double squares = sum(row, [&](int64_t i, acc_t) LRP_INLINE {
      const acc_t away = load(x[i]) - mean;
      return away * away;
    });
    return {mean, static_cast<acc_t>(1 / std::sqrt(squares / size + this->norm.epsilon))};
  }
};

template <typename scalar_t, bool kVector>
struct Forward : Rows<scalar_t, kVector> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const int64_t size = this->norm.row, rows = this->norm.extent.numel / size;
    for (int64_t row = first * this->rows_per_task; row < std::min(rows, last * this->rows_per_task); ++row) {
      const Statistics<acc_t> found = this->statistics(row, this->input + row * size);
      for (int64_t target = 0; target < this->norm.extent.targets; ++target) {
        const int64_t at = target * this->norm.extent.numel + row * size;
        const scalar_t* __restrict g = this->multiplier + at;
        scalar_t* __restrict s = this->result + at;
        acc_t mean = 0;
        if (this->norm.centred)
          mean =
              static_cast<acc_t>(this->sum(row, [&](int64_t i, acc_t w) LRP_INLINE { return w * load(g[i]); }) / size);
        this->blocks(
            row, [&](int64_t offset, int64_t count, const acc_t* __restrict w, acc_t constant, int64_t) LRP_INLINE {
              for (int64_t i = 0; i < count; ++i)
                store(s[offset + i], found.inverse * ((kVector ? w[i] : constant) * load(g[offset + i]) - mean));
            });
      }
    }
  }
};

// With t the incoming gradient and a = r (t - mean t): dG = w a, dw = sum a G, and through r alone
// dx = -(sum w G a) r^2 (x - mean x) / row.
template <typename scalar_t, bool kVector>
struct Backward : Rows<scalar_t, kVector> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    const int64_t rows = this->norm.extent.numel / this->norm.row;
    for (int64_t task = first; task < last; ++task)
      for (int64_t row = task * this->rows_per_task; row < std::min(rows, (task + 1) * this->rows_per_task); ++row)
        backward(task, row);
  }

  LRP_ALWAYS_INLINE void backward(int64_t task, int64_t row) const {
    const int64_t size = this->norm.row, numel = this->norm.extent.numel;
    const scalar_t* __restrict x = this->input + row * size;
    const Statistics<acc_t> found = this->statistics(row, x);
    double through_deviation = 0;
    for (int64_t target = 0; target < this->norm.extent.targets; ++target) {
      const int64_t at = target * numel + row * size;
      const scalar_t* __restrict t = this->grad + at;
      const scalar_t* __restrict g = this->multiplier + at;
      scalar_t* __restrict dg = this->result + at;
      acc_t mean = 0;
      if (this->norm.centred)
        mean = static_cast<acc_t>(this->sum(row, [&](int64_t i, acc_t) LRP_INLINE { return load(t[i]); }) / size);
      this->blocks(
          row, [&](int64_t offset, int64_t count, const acc_t* __restrict w, acc_t constant, int64_t plane) LRP_INLINE {
            acc_t products[kBlock];
            acc_t part = 0;
            for (int64_t i = 0; i < count; ++i) {
              const acc_t a = found.inverse * (load(t[offset + i]) - mean);
              products[i] = a * load(g[offset + i]);
              store(dg[offset + i], a * (kVector ? w[i] : constant));
            }
            double* sums = this->partial;
            if constexpr (kVector) {
              double* __restrict mine = sums + task * this->norm.extent.channels + (w - this->weight);
              for (int64_t i = 0; i < count; ++i) mine[i] += products[i];
#pragma omp simd reduction(+ : part)
              for (int64_t i = 0; i < count; ++i) part += products[i] * w[i];
              through_deviation += part;
            } else {
#pragma omp simd reduction(+ : part)
              for (int64_t i = 0; i < count; ++i) part += products[i];
              if (sums != nullptr) sums[plane] += part;
              through_deviation += part * constant;
            }
          });
    }
    const acc_t factor = static_cast<acc_t>(-through_deviation / size) * found.inverse * found.inverse;
    scalar_t* __restrict dx = this->grad_input + row * size;
    for (int64_t i = 0; i < size; ++i) store(dx[i], factor * (load(x[i]) - found.mean));
  }
};

int64_t rows_per_task(const LrpNorm& norm) { return std::max<int64_t>(1, kTaskElements / norm.row); }

int64_t tasks_of(const LrpNorm& norm) { return ceil_div(norm.extent.numel / norm.row, rows_per_task(norm)); }

bool is_vector(const LrpNorm& norm, bool has_weight) { return has_weight && norm.extent.inner == 1; }

template <template <typename, bool> typename Body, typename scalar_t>
void run_rows(const Norm<scalar_t>& args) {
  const LrpNorm& norm = args.norm;
  const int64_t grain = std::max<int64_t>(1, kTaskElements / (norm.row * args.rows_per_task));
  with_flag(is_vector(norm, args.weight != nullptr), [&](auto vector) {
    const Body<scalar_t, vector()> body{args};
    torch::stable::parallel_for(0, tasks_of(norm), grain,
                                [&](int64_t first, int64_t last) { run_widest(body, first, last); });
  });
}

struct Backend : CpuBackend {
  static void sample_norm(LrpDtype dtype, In multiplier, In input, In weight, Out result, LrpNorm norm, void*) {
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      run_rows<Forward>(Norm<scalar_t>{norm, rows_per_task(norm), multiplier, input, weight, result});
    });
  }

  static int64_t sample_norm_backward_workspace(LrpDtype, const LrpNorm& norm, bool need_weight) {
    if (!need_weight) return 0;
    const int64_t sums =
        is_vector(norm, true) ? tasks_of(norm) * norm.extent.channels : norm.extent.numel / norm.extent.inner;
    return sums * static_cast<int64_t>(sizeof(double));
  }

  static void sample_norm_backward(LrpDtype dtype, In grad, In multiplier, In input, In weight, Out grad_multiplier,
                                   Out grad_input, Out grad_weight, Out workspace, LrpNorm norm, void*) {
    const int64_t bytes = sample_norm_backward_workspace(dtype, norm, weight.address != nullptr);
    if (bytes > 0) std::memset(workspace, 0, bytes);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      using acc_t = arithmetic_t<scalar_t>;
      double* const sums = weight.address == nullptr ? nullptr : static_cast<double*>(workspace.address);
      run_rows<Backward>(Norm<scalar_t>{norm, rows_per_task(norm), multiplier, input, weight, grad_multiplier, grad,
                                        grad_input, sums});
      if (sums == nullptr) return;
      const int64_t channels = norm.extent.channels;
      std::vector<double> totals(channels, 0.0);
      for (int64_t i = 0, n = bytes / static_cast<int64_t>(sizeof(double)); i < n; ++i) totals[i % channels] += sums[i];
      acc_t* const grads = grad_weight;
      for (int64_t c = 0; c < channels; ++c) grads[c] = static_cast<acc_t>(totals[c]);
    });
  }
};

using Ops = SampleNormOps<Backend>;

}  // namespace
}  // namespace lrpkernels::cpu

STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CPU, m) {
  using lrpkernels::cpu::Ops;
  m.impl("sample_norm", TORCH_BOX(&Ops::sample_norm));
  m.impl("sample_norm_backward", TORCH_BOX(&Ops::sample_norm_backward));
}
