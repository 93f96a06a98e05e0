// The factor per channel of a batch norm in evaluation mode in one pass; in PyTorch it takes three calls.
#include <cmath>

#include <torch/csrc/stable/library.h>

#include "../common/checks.h"
#include "storage.h"

namespace lrpkernels::cpu {
namespace {

constexpr const char* kOp = "batch_norm_scale";

template <typename scalar_t>
void fill(const Tensor& variance, const OptionalTensor& gamma, double epsilon, Tensor& result) {
  const auto* v = static_cast<const scalar_t*>(variance.const_data_ptr());
  const auto* g = gamma ? static_cast<const scalar_t*>(gamma->const_data_ptr()) : nullptr;
  auto* k = static_cast<scalar_t*>(result.mutable_data_ptr());
  const auto eps = static_cast<scalar_t>(epsilon);
  for (int64_t c = 0; c < variance.numel(); ++c) {
    const scalar_t inverse = scalar_t(1) / std::sqrt(v[c] + eps);  // as PyTorch's rsqrt: the same bits
    k[c] = g == nullptr ? inverse : g[c] * inverse;
  }
}

// variance, gamma [C], float32 or float64 -> gamma * (variance + epsilon)^(-1/2), [C]
Tensor batch_norm_scale(const Tensor& variance, const OptionalTensor& gamma, double epsilon) {
  const ScalarType dtype = variance.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double)
    fail(kOp, ": variance must have dtype float32 or float64, got ", dtype_name(dtype));
  if (variance.dim() != 1) fail(kOp, ": variance must have shape [C], got ", format_sizes(sizes_of(variance)));
  check_epsilon(kOp, epsilon);
  if (gamma) {
    check_same_device(kOp, "gamma", *gamma, variance);
    check_dtype(kOp, "gamma", *gamma, dtype);
    const auto expected = sizes_of(variance), got = sizes_of(*gamma);
    if (expected != got)
      fail(kOp, ": gamma must have shape [C] = ", format_sizes(expected), ", got ", format_sizes(got));
  }
  Tensor result = new_dense(variance, sizes_of(variance), Layout::kContiguous, dtype);
  const Tensor v = to_layout(variance, Layout::kContiguous);
  OptionalTensor g;
  if (gamma) g = to_layout(*gamma, Layout::kContiguous);
  if (dtype == ScalarType::Float)
    fill<float>(v, g, epsilon, result);
  else
    fill<double>(v, g, epsilon, result);
  return result;
}

}  // namespace
}  // namespace lrpkernels::cpu

STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CPU, m) {
  m.impl("batch_norm_scale", TORCH_BOX(&lrpkernels::cpu::batch_norm_scale));
}
