// Run-time dtype and layout -> what kernels take. Nothing else may build such switches.
#pragma once
#include "checks.h"
#include "types.h"

namespace lrpkernels {

// The storage dtypes that a backend computes.
struct StorageDtypes {
  bool float16;
  const char* names;  // for the error text
};

inline LrpDtype storage_dtype(const char* op, const Tensor& multiplier, StorageDtypes allowed) {
  switch (multiplier.scalar_type()) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      if (allowed.float16) return kFloat16;
      [[fallthrough]];
    default:
      fail(op, ": multiplier must have dtype ", allowed.names, ", got ", dtype_name(multiplier.scalar_type()));
  }
}

// `value` is any forward value, or the multiplier itself where there is none (then targets = 1).
inline LrpExtent extent_of(const Tensor& multiplier, const Tensor& value, Layout layout) {
  LrpExtent extent{value.numel(), 1, 1, 1};
  if (extent.numel == 0) return extent;
  extent.targets = multiplier.numel() / extent.numel;
  if (value.dim() >= 2) extent.channels = value.size(1);
  if (layout == Layout::kContiguous)
    for (int64_t d = 2; d < value.dim(); ++d) extent.inner *= value.size(d);
  return extent;
}

}  // namespace lrpkernels
