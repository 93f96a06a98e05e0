// Storage types and their arithmetic types. The conversions are branch-free, so that loops over them vectorise.
#pragma once
#include <cstdint>
#include <cstring>

#include "instruction_set.h"

namespace lrpkernels::cpu {

struct bfloat16 {
  uint16_t bits;
};

template <typename scalar_t>
struct Arithmetic {
  using type = scalar_t;
};
template <>
struct Arithmetic<bfloat16> {
  using type = float;
};
template <typename scalar_t>
using arithmetic_t = typename Arithmetic<scalar_t>::type;

template <typename scalar_t>
LRP_ALWAYS_INLINE scalar_t load(const scalar_t& x) {
  return x;
}

LRP_ALWAYS_INLINE float load(const bfloat16& x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename scalar_t>
LRP_ALWAYS_INLINE void store(scalar_t& x, scalar_t value) {
  x = value;
}

// Round to nearest even; every NaN becomes the quiet NaN 0x7FC0 (rounding could carry a NaN's mantissa into the sign).
LRP_ALWAYS_INLINE void store(bfloat16& x, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  x.bits = static_cast<uint16_t>(is_nan ? 0x7FC0u : rounded);
}

}  // namespace lrpkernels::cpu
