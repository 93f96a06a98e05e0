// Dense memory layouts and output allocation for torch::stable tensors.
#pragma once
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include "types.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // PyTorch 2.11 has it under its older name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace lrpkernels {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

enum class Layout { kContiguous, kChannelsLast };

template <typename... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string format_sizes(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  for (size_t d = 0; d < sizes.size(); ++d) text << (d == 0 ? "[" : ", ") << sizes[d];
  text << (sizes.empty() ? "[]" : "]");
  return text.str();
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "device:") + std::to_string(tensor.get_device_index());
}

// Strides of a dense tensor of `sizes` in `layout`; sizes of 0 count as 1, as in torch.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, Layout layout) {
  const auto dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> strides(sizes.size());
  int64_t next = 1;
  const auto place = [&](int64_t d) {
    strides[d] = next;
    next *= sizes[d] > 0 ? sizes[d] : 1;
  };
  if (layout == Layout::kChannelsLast) place(1);
  for (int64_t d = dims - 1; d >= 0; --d)
    if (layout == Layout::kContiguous || d != 1) place(d);
  return strides;
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// Channels-last exists for [N, C, H, W] and [N, C, D, H, W]. Strides of dimensions of size 1 do not matter.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 && tensor.dim() != 5) return false;
  const std::vector<int64_t> sizes = sizes_of(tensor);
  const std::vector<int64_t> wanted = dense_strides(sizes, Layout::kChannelsLast);
  const auto strides = tensor.strides();
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1 && strides[d] != wanted[d]) return false;
  return true;
}

inline bool has_layout(const Tensor& tensor, Layout layout) {
  return layout == Layout::kContiguous ? tensor.is_contiguous() : is_channels_last(tensor);
}

// The layout in which a kernel runs: the one of `leader`, contiguous where it has both (or neither).
inline Layout layout_of(const Tensor& leader) {
  return !leader.is_contiguous() && is_channels_last(leader) ? Layout::kChannelsLast : Layout::kContiguous;
}

// `tensor` itself when it already has `layout`, else a copy.
inline Tensor to_layout(const Tensor& tensor, Layout layout) {
  if (has_layout(tensor, layout)) return tensor;
  const MemoryFormat format = layout == Layout::kContiguous ? MemoryFormat::Contiguous
                              : tensor.dim() == 4           ? MemoryFormat::ChannelsLast
                                                            : MemoryFormat::ChannelsLast3d;
  try {
    return torch::stable::contiguous(tensor, format);
  } catch (const std::exception&) {  // its text names a line of torch
    fail("lrpkernels: a dense copy of a tensor of shape ", format_sizes(sizes_of(tensor)), " could not be made on ",
         device_name(tensor));
  }
}

inline OptionalTensor to_layout(const OptionalTensor& tensor, Layout layout) {
  return tensor ? OptionalTensor(to_layout(*tensor, layout)) : std::nullopt;
}

// Uninitialised, on the device of `like`.
inline Tensor new_dense(const Tensor& like, const std::vector<int64_t>& sizes, Layout layout, ScalarType dtype) {
  const std::vector<int64_t> strides = dense_strides(sizes, layout);
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype_code,
                               device_type, like.get_device_index(), &handle) != 0)
    fail("lrpkernels: a tensor of shape ", format_sizes(sizes), " could not be allocated on ", device_name(like));
  return Tensor(handle);
}

inline Tensor new_like(const Tensor& like, Layout layout) {
  return new_dense(like, sizes_of(like), layout, like.scalar_type());
}

inline Tensor new_bytes(const Tensor& like, int64_t count) {
  return new_dense(like, {count}, Layout::kContiguous, ScalarType::Byte);
}

// Stands for an optional result that was not requested.
inline Tensor no_tensor(const Tensor& like) { return new_dense(like, {0}, Layout::kContiguous, like.scalar_type()); }

// Null for a missing tensor.
inline In data(const Tensor& tensor) { return {tensor.const_data_ptr()}; }
inline In data(const OptionalTensor& tensor) { return {tensor ? tensor->const_data_ptr() : nullptr}; }
inline Out out(const Tensor& tensor) { return {tensor.mutable_data_ptr()}; }

template <typename... Tensors>
void zero(Tensors&... tensors) {
  (torch::stable::zero_(tensors), ...);
}

}  // namespace lrpkernels
