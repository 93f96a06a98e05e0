// CPU kernels of the pooling ops. NCHW: one plane per task step, scattered into while it is in the cache.
// Channels-last: vectors along the channels. Sums do not depend on the number of threads.
#include <torch/csrc/stable/library.h>

#include "pool_average.h"
#include "pool_max.h"

namespace lrpkernels::cpu {
namespace {

struct Backend : CpuBackend {
  static void max_pool_winner(LrpDtype dtype, In multiplier, In indices, Out result, LrpPool pool, void*) {
    const PoolGeometry geometry(pool, false);
    std::atomic<bool> out_of_range{false};
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const MaxPool<scalar_t> args{multiplier, indices, result, geometry, out_of_range};
      if (pool.channels_last)
        run_steps(geometry.images * cpu::ceil_div(geometry.channels, kScatterBlock), geometry.in * kScatterBlock,
                  WinnerBlocks<scalar_t>{args});
      else
        run_steps(geometry.planes, geometry.in, WinnerPlanes<scalar_t>{args});
    });
    check_range("max_pool_winner", out_of_range, geometry);
  }

  static void max_pool_winner_backward(LrpDtype dtype, In grad, In indices, Out grad_multiplier, LrpPool pool, void*) {
    const PoolGeometry geometry(pool, false);
    std::atomic<bool> out_of_range{false};
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const MaxPool<scalar_t> args{grad, indices, grad_multiplier, geometry, out_of_range};
      if (pool.channels_last)
        run_steps(geometry.images * geometry.out, geometry.channels, WinnerBackward<scalar_t, true>{args});
      else
        run_steps(geometry.planes, geometry.out, WinnerBackward<scalar_t, false>{args});
    });
    check_range("max_pool_winner_backward", out_of_range, geometry);
  }

  static void average_pool(LrpDtype dtype, In input, Out result, LrpPool pool, void*) {
    run_average<false>(dtype, input, result, pool);
  }

  static void average_pool_transpose(LrpDtype dtype, In multiplier, Out result, LrpPool pool, void*) {
    run_average<true>(dtype, multiplier, result, pool);
  }

 private:
  template <bool kTranspose>
  static void run_average(LrpDtype dtype, In from, Out to, const LrpPool& pool) {
    const PoolGeometry geometry(pool, true);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      using Planes = std::conditional_t<kTranspose, AverageTransposePlanes<scalar_t>, AveragePlanes<scalar_t>>;
      const Average<scalar_t> args{from, to, geometry};
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
