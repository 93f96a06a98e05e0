// Registers the CUDA launchers as implementations of the ops for CUDA tensors. Compiled with LRP_EMULATED_CUDA beside
// the CUDA sources under the CPU shim, the same file registers them as torch.ops.lrpkernels_emulated for CPU tensors.
#include <torch/csrc/stable/library.h>

#include "../common/affine_ops.h"
#include "../common/conv_ops.h"
#include "../common/heatmap_ops.h"
#include "../common/pointwise_ops.h"
#include "launchers.h"

#if !defined(LRP_EMULATED_CUDA)
#include <dlfcn.h>

#include <torch/csrc/stable/accelerator.h>
#endif

namespace lrpkernels::cuda {
namespace {

#if defined(LRP_EMULATED_CUDA)

// Emulated kernels run at once on host memory: no device to select, no stream.
struct Guard {
  explicit Guard(const Tensor&) {}
  void* stream() const { return nullptr; }
};

#else

// torch's current CUDA stream on `device`. torch is loaded with RTLD_LOCAL, so its CUDA library is looked up by name;
// linking it instead would tie the build to CUDA versions of torch.
void* current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (getter == nullptr) fail("lrpkernels: this torch has no CUDA streams; install a CUDA build of torch");
  void* stream = nullptr;
  if (getter(device, &stream) != 0) fail("lrpkernels: no current CUDA stream on device ", device);
  return stream;
}

// Makes the tensor's device current while an op runs.
struct Guard {
  explicit Guard(const Tensor& tensor) : device(tensor.get_device_index()), guard(device) {}
  void* stream() const { return current_stream(device); }
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
};

#endif

void check_launch(const char* launcher, int error) {
  // 1, an invalid value, is also what launchers return themselves.
  const char* const reason = error == 1 ? ": the sizes exceed what the kernels can index or a grid can hold" : "";
  if (error != 0) fail("lrpkernels: ", launcher, " failed with CUDA error ", error, reason);
}

struct Backend {
  static constexpr StorageDtypes kDtypes{true, "float32, float64, float16 or bfloat16"};
  using Guard = cuda::Guard;

  template <typename... Args>
  static void epsilon_scale(Args... args) {
    check_launch("epsilon_scale", lrp_epsilon_scale(args...));
  }

  static int64_t epsilon_scale_backward_workspace(LrpDtype dtype, LrpExtent extent) {
    return lrp_epsilon_scale_backward_workspace(dtype, extent);
  }

  template <typename... Args>
  static void epsilon_scale_backward(Args... args) {
    check_launch("epsilon_scale_backward", lrp_epsilon_scale_backward(args...));
  }

  template <typename... Args>
  static void ratio(Args... args) {
    check_launch("ratio", lrp_ratio(args...));
  }

  template <typename... Args>
  static void ratio_backward(Args... args) {
    check_launch("ratio_backward", lrp_ratio_backward(args...));
  }

  static void max_pool_winner(LrpDtype dtype, const void* multiplier, const int64_t* indices, void* result,
                              LrpPool pool, void* stream) {
    check_launch("max_pool_winner", lrp_max_pool_winner(dtype, multiplier, indices, result, pool, stream));
  }

  static void max_pool_winner_backward(LrpDtype dtype, const void* grad, const int64_t* indices, void* result,
                                       LrpPool pool, void* stream) {
    check_launch("max_pool_winner_backward", lrp_max_pool_winner_backward(dtype, grad, indices, result, pool, stream));
  }

  static void average_pool(LrpDtype dtype, const void* input, void* result, LrpPool pool, void* stream) {
    check_launch("average_pool", lrp_average_pool(dtype, input, result, pool, stream));
  }

  static void average_pool_transpose(LrpDtype dtype, const void* multiplier, void* result, LrpPool pool, void* stream) {
    check_launch("average_pool_transpose", lrp_average_pool_transpose(dtype, multiplier, result, pool, stream));
  }

  static int64_t conv_workspace(LrpDtype dtype, LrpConv conv, LrpConvWeights weights, int transposed) {
    return lrp_conv_workspace(dtype, conv, weights, transposed);
  }

  template <typename... Args>
  static void conv_relevance(Args... args) {
    check_launch("conv_relevance", lrp_conv_relevance(args...));
  }

  template <typename... Args>
  static void conv(Args... args) {
    check_launch("conv_apply", lrp_conv(args...));
  }

  static int64_t conv_weight_gradient_workspace(LrpDtype dtype, LrpConv conv) {
    return lrp_conv_weight_gradient_workspace(dtype, conv);
  }

  template <typename... Args>
  static void conv_weight_gradient(Args... args) {
    check_launch("conv_weight_gradient", lrp_conv_weight_gradient(args...));
  }

  template <typename... Args>
  static void affine(Args... args) {
    check_launch("affine", lrp_affine(args...));
  }

  static int64_t affine_backward_workspace(LrpDtype dtype, LrpExtent extent) {
    return lrp_affine_backward_workspace(dtype, extent);
  }

  template <typename... Args>
  static void affine_backward(Args... args) {
    check_launch("affine_backward", lrp_affine_backward(args...));
  }

  template <typename... Args>
  static void sum_zplus(Args... args) {
    check_launch("sum_zplus", lrp_sum_zplus(args...));
  }

  template <typename... Args>
  static void sum_zplus_backward(Args... args) {
    check_launch("sum_zplus_backward", lrp_sum_zplus_backward(args...));
  }

  static int64_t heatmap_scores_workspace(LrpHeatmap shape) { return lrp_heatmap_scores_workspace(shape); }

  template <typename... Args>
  static void heatmap_scores(Args... args) {
    check_launch("heatmap_scores", lrp_heatmap_scores(args...));
  }

  template <typename... Args>
  static void heatmap_scores_backward(Args... args) {
    check_launch("heatmap_scores_backward", lrp_heatmap_scores_backward(args...));
  }
};

using Ops = PointwiseOps<Backend>;
using Pools = PoolOps<Backend>;
using Convs = ConvOps<Backend>;
using Affines = AffineOps<Backend>;
using Heatmaps = HeatmapOps<Backend>;

void register_all(torch::stable::detail::StableLibrary& m) {
  m.impl("epsilon_scale", TORCH_BOX(&Ops::epsilon_scale));
  m.impl("epsilon_scale_backward", TORCH_BOX(&Ops::epsilon_scale_backward));
  m.impl("ratio", TORCH_BOX(&Ops::ratio));
  m.impl("ratio_backward", TORCH_BOX(&Ops::ratio_backward));
  m.impl("max_pool_winner", TORCH_BOX(&Pools::max_pool_winner));
  m.impl("max_pool_winner_backward", TORCH_BOX(&Pools::max_pool_winner_backward));
  m.impl("average_pool", TORCH_BOX(&Pools::average_pool));
  m.impl("average_pool_transpose", TORCH_BOX(&Pools::average_pool_transpose));
  m.impl("conv_relevance", TORCH_BOX(&Convs::conv_relevance));
  m.impl("conv_apply", TORCH_BOX(&Convs::conv_apply));
  m.impl("conv_weight_gradient", TORCH_BOX(&Convs::conv_weight_gradient));
  m.impl("affine", TORCH_BOX(&Affines::affine));
  m.impl("affine_backward", TORCH_BOX(&Affines::affine_backward));
  m.impl("sum_zplus", TORCH_BOX(&Affines::sum_zplus));
  m.impl("sum_zplus_backward", TORCH_BOX(&Affines::sum_zplus_backward));
  m.impl("heatmap_scores", TORCH_BOX(&Heatmaps::heatmap_scores));
  m.impl("heatmap_scores_backward", TORCH_BOX(&Heatmaps::heatmap_scores_backward));
}

}  // namespace
}  // namespace lrpkernels::cuda

#if defined(LRP_EMULATED_CUDA)
STABLE_TORCH_LIBRARY_IMPL(lrpkernels_emulated, CPU, m) { lrpkernels::cuda::register_all(m); }
#else
STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CUDA, m) { lrpkernels::cuda::register_all(m); }
#endif
