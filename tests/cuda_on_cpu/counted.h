// Put ahead of a .cu file (-include) to count its arithmetic: from here on `float` is a class that counts. Comparisons,
// selections and conversions are free, and a multiplication with the addition behind it counts as two.
#pragma once
#include <type_traits>

#include "cuda_shim.h"

namespace shim {

struct Operations {
  int64_t simple, divisions;
};
inline Operations& operations() {
  static thread_local Operations value{};
  return value;
}

class Counted {
 public:
  Counted() = default;
  template <typename number_t, typename = std::enable_if_t<std::is_arithmetic_v<number_t>>>
  Counted(number_t x) : value_(static_cast<float>(x)) {}
  template <typename number_t, typename = std::enable_if_t<std::is_arithmetic_v<number_t>>>
  explicit operator number_t() const {
    return static_cast<number_t>(value_);
  }

  Counted operator-() const { return -value_; }
  friend Counted operator+(Counted a, Counted b) { return simple(a.value_ + b.value_); }
  friend Counted operator-(Counted a, Counted b) { return simple(a.value_ - b.value_); }
  friend Counted operator*(Counted a, Counted b) { return simple(a.value_ * b.value_); }
  friend Counted operator/(Counted a, Counted b) {
    ++operations().divisions;
    return a.value_ / b.value_;
  }
  Counted& operator+=(Counted b) { return *this = *this + b; }
  Counted& operator-=(Counted b) { return *this = *this - b; }
  Counted& operator*=(Counted b) { return *this = *this * b; }
  Counted& operator/=(Counted b) { return *this = *this / b; }
  friend bool operator==(Counted a, Counted b) { return a.value_ == b.value_; }
  friend bool operator<(Counted a, Counted b) { return a.value_ < b.value_; }
  friend bool operator>(Counted a, Counted b) { return a.value_ > b.value_; }
  friend bool operator<=(Counted a, Counted b) { return a.value_ <= b.value_; }
  friend bool operator>=(Counted a, Counted b) { return a.value_ >= b.value_; }

 private:
  static Counted simple(float result) {
    ++operations().simple;
    return result;
  }

  float value_;
};

}  // namespace shim

inline __half __float2half_rn(shim::Counted x) { return __float2half_rn(static_cast<float>(x)); }
inline __nv_bfloat16 __float2bfloat16_rn(shim::Counted x) { return __float2bfloat16_rn(static_cast<float>(x)); }

namespace lrpkernels {

inline uint32_t to_tf32(shim::Counted x) { return to_tf32(static_cast<float>(x)); }

// A lane's share of the products.
template <typename scalar_t>
void multiply_tiles(shim::Counted (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using plain_t = std::conditional_t<std::is_same_v<scalar_t, shim::Counted>, float, scalar_t>;
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = static_cast<float>(d[i]);
  multiply_tiles<plain_t>(sum, a, b);
  for (int i = 0; i < 4; ++i) d[i] = sum[i];
  shim::operations().simple += 2 * 16 * 8 * 8 * (4 / static_cast<int>(sizeof(plain_t))) / shim::kWarp;
}

}  // namespace lrpkernels

// The operations since the last call.
extern "C" __attribute__((weak, visibility("default"))) void shim_operations(shim::Operations* result) {
  *result = shim::operations();
  shim::operations() = {};
}

#define float ::shim::Counted
