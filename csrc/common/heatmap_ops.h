// Host side of the heatmap loss's sums. A Backend as in pointwise_ops.h.
#pragma once
#include "dispatch.h"

namespace lrpkernels {

template <typename Backend>
struct HeatmapOps {
  // heatmap [B, M, C, N], mask [B, 1 or C, N] -> (foreground [B, M], signed_foreground [B, M], background [B, M, C],
  // order [B, M, C, kept])
  static FourTensors heatmap_scores(const Tensor& heatmap, const Tensor& mask, int64_t kept, double decay) {
    constexpr const char* kOp = "heatmap_scores";
    const LrpDtype dtype = storage_dtype(kOp, heatmap, Backend::kDtypes);
    const LrpHeatmap shape = check(kOp, heatmap, mask, kept, decay);
    const typename Backend::Guard guard(heatmap);
    const ScalarType acc = arithmetic_dtype(heatmap.scalar_type());
    const std::vector<int64_t> maps = {shape.images, shape.maps};
    const std::vector<int64_t> rows = {shape.images, shape.maps, shape.channels};
    Tensor foreground = new_dense(heatmap, maps, Layout::kContiguous, acc);
    Tensor signed_foreground = new_dense(heatmap, maps, Layout::kContiguous, acc);
    Tensor background = new_dense(heatmap, rows, Layout::kContiguous, acc);
    Tensor order =
        new_dense(heatmap, {shape.images, shape.maps, shape.channels, kept}, Layout::kContiguous, ScalarType::Int);
    if (background.numel() == 0) {
      zero(foreground, signed_foreground);
      return {foreground, signed_foreground, background, order};
    }
    const Tensor r = to_layout(heatmap, Layout::kContiguous), m = to_layout(mask, Layout::kContiguous);
    Tensor workspace = new_bytes(heatmap, Backend::heatmap_scores_workspace(shape));
    Backend::heatmap_scores(dtype, data(r), data(m), out(foreground), out(signed_foreground), out(background),
                            out(order), out(workspace), shape, guard.stream());
    return {foreground, signed_foreground, background, order};
  }

  // -> grad_heatmap [B, M, C, N]
  static Tensor heatmap_scores_backward(const Tensor& heatmap, const Tensor& mask, const Tensor& order,
                                        const Tensor& grad_foreground, const Tensor& grad_signed_foreground,
                                        const Tensor& grad_background, double decay) {
    constexpr const char* kOp = "heatmap_scores_backward";
    const LrpDtype dtype = storage_dtype(kOp, heatmap, Backend::kDtypes);
    if (order.dim() != 4) fail(kOp, ": order must have shape [B, M, C, kept], got ", format_sizes(sizes_of(order)));
    const LrpHeatmap shape = check(kOp, heatmap, mask, order.size(3), decay);
    const std::vector<int64_t> maps = {shape.images, shape.maps};
    const std::vector<int64_t> rows = {shape.images, shape.maps, shape.channels};
    check_scores(kOp, "grad_foreground", grad_foreground, heatmap, maps);
    check_scores(kOp, "grad_signed_foreground", grad_signed_foreground, heatmap, maps);
    check_scores(kOp, "grad_background", grad_background, heatmap, rows);
    if (order.scalar_type() != ScalarType::Int)
      fail(kOp, ": order must have dtype int32, got ", dtype_name(order.scalar_type()));
    const typename Backend::Guard guard(heatmap);
    Tensor result = new_like(heatmap, Layout::kContiguous);
    if (result.numel() == 0) return result;
    const Tensor r = to_layout(heatmap, Layout::kContiguous), m = to_layout(mask, Layout::kContiguous);
    const Tensor o = to_layout(order, Layout::kContiguous), f = to_layout(grad_foreground, Layout::kContiguous);
    const Tensor s = to_layout(grad_signed_foreground, Layout::kContiguous);
    const Tensor b = to_layout(grad_background, Layout::kContiguous);
    Backend::heatmap_scores_backward(dtype, data(r), data(m), data(o), data(f), data(s), data(b), out(result), shape,
                                     guard.stream());
    return result;
  }

 private:
  static LrpHeatmap check(const char* op, const Tensor& heatmap, const Tensor& mask, int64_t kept, double decay) {
    if (heatmap.dim() != 4) fail(op, ": heatmap must have shape [B, M, C, N], got ", format_sizes(sizes_of(heatmap)));
    check_same_device(op, "mask", mask, heatmap);
    check_dtype(op, "mask", mask, heatmap.scalar_type());
    const bool fits = mask.dim() == 3 && mask.size(0) == heatmap.size(0) && mask.size(2) == heatmap.size(3) &&
                      (mask.size(1) == 1 || mask.size(1) == heatmap.size(2));
    if (!fits)
      fail(op, ": mask must have shape [B, 1 or C, N] beside [B, M, C, N] = ", format_sizes(sizes_of(heatmap)),
           ", got ", format_sizes(sizes_of(mask)));
    if (heatmap.size(3) < 1 || heatmap.size(3) >= int64_t(1) << 30)
      fail(op, ": heatmap must have 1 to 2^30 - 1 positions, got ", heatmap.size(3));
    if (kept < 0 || kept > heatmap.size(3)) fail(op, ": kept must be 0 to ", heatmap.size(3), ", got ", kept);
    if (!(decay >= 0.0 && decay <= 1.0)) fail(op, ": decay must lie in [0, 1], got ", decay);
    return {heatmap.size(0), heatmap.size(1), heatmap.size(2), heatmap.size(3), mask.size(1), kept, decay};
  }

  static void check_scores(const char* op, const char* name, const Tensor& scores, const Tensor& heatmap,
                           const std::vector<int64_t>& expected) {
    check_same_device(op, name, scores, heatmap);
    check_dtype(op, name, scores, arithmetic_dtype(heatmap.scalar_type()));
    const auto got = sizes_of(scores);
    if (expected != got) fail(op, ": ", name, " must have shape ", format_sizes(expected), ", got ", format_sizes(got));
  }
};

}  // namespace lrpkernels
