// Registers the CUDA launchers as implementations of the ops for CUDA tensors. Compiled with LRP_EMULATED_CUDA beside
// the CUDA sources under the CPU shim, the same file registers them as torch.ops.lrpkernels_emulated for CPU tensors.
#include <torch/csrc/stable/library.h>

#include "../common/affine_ops.h"
#include "../common/conv_ops.h"
#include "../common/heatmap_ops.h"
#include "../common/pointwise_ops.h"
#include "../common/sample_norm_ops.h"
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

// A launcher whose error becomes an exception that names the op.
template <auto kLauncher>
struct Launcher {
  const char* op;

  template <typename... Args>
  void operator()(const Args&... args) const {
    const int error = kLauncher(args...);
    if (error == 0) return;
    // 1, an invalid value, is also what launchers return themselves.
    const char* const reason = error == 1 ? ": the sizes exceed what the kernels can index or a grid can hold" : "";
    fail("lrpkernels: ", op, " failed with CUDA error ", error, reason);
  }
};

struct Backend {
  static constexpr StorageDtypes kDtypes{true, "float32, float64, float16 or bfloat16"};
  using Guard = cuda::Guard;

  static constexpr Launcher<lrp_epsilon_scale> epsilon_scale{"epsilon_scale"};
  static constexpr Launcher<lrp_epsilon_scale_backward> epsilon_scale_backward{"epsilon_scale_backward"};
  static constexpr Launcher<lrp_ratio> ratio{"ratio"};
  static constexpr Launcher<lrp_ratio_backward> ratio_backward{"ratio_backward"};
  static constexpr Launcher<lrp_max_pool_winner> max_pool_winner{"max_pool_winner"};
  static constexpr Launcher<lrp_max_pool_winner_backward> max_pool_winner_backward{"max_pool_winner_backward"};
  static constexpr Launcher<lrp_average_pool> average_pool{"average_pool"};
  static constexpr Launcher<lrp_average_pool_transpose> average_pool_transpose{"average_pool_transpose"};
  static constexpr Launcher<lrp_conv_relevance> conv_relevance{"conv_relevance"};
  static constexpr Launcher<lrp_conv> conv{"conv_apply"};
  static constexpr Launcher<lrp_conv_weight_gradient> conv_weight_gradient{"conv_weight_gradient"};
  static constexpr Launcher<lrp_affine> affine{"affine"};
  static constexpr Launcher<lrp_affine_backward> affine_backward{"affine_backward"};
  static constexpr Launcher<lrp_sample_norm> sample_norm{"sample_norm"};
  static constexpr Launcher<lrp_sample_norm_backward> sample_norm_backward{"sample_norm_backward"};
  static constexpr Launcher<lrp_sum_zplus> sum_zplus{"sum_zplus"};
  static constexpr Launcher<lrp_sum_zplus_backward> sum_zplus_backward{"sum_zplus_backward"};
  static constexpr Launcher<lrp_heatmap_scores> heatmap_scores{"heatmap_scores"};
  static constexpr Launcher<lrp_heatmap_scores_backward> heatmap_scores_backward{"heatmap_scores_backward"};

  static constexpr auto* epsilon_scale_backward_workspace = lrp_epsilon_scale_backward_workspace;
  static constexpr auto* conv_workspace = lrp_conv_workspace;
  static constexpr auto* conv_weight_gradient_workspace = lrp_conv_weight_gradient_workspace;
  static constexpr auto* affine_backward_workspace = lrp_affine_backward_workspace;
  static constexpr auto* sample_norm_backward_workspace = lrp_sample_norm_backward_workspace;
  static constexpr auto* heatmap_scores_workspace = lrp_heatmap_scores_workspace;
};

using Ops = PointwiseOps<Backend>;
using Pools = PoolOps<Backend>;
using Convs = ConvOps<Backend>;
using Affines = AffineOps<Backend>;
using SampleNorms = SampleNormOps<Backend>;
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
  m.impl("sample_norm", TORCH_BOX(&SampleNorms::sample_norm));
  m.impl("sample_norm_backward", TORCH_BOX(&SampleNorms::sample_norm_backward));
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
