// The Python module lrpkernels._C: the configuration of this build. The ops register themselves when it is loaded.
#include <pybind11/pybind11.h>

#include "build_info.h"  // written by setup.py
#include "cpu/instruction_set.h"

namespace {

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = LRP_VERSION;
  info["compiler"] = compiler();
  info["cxx_flags"] = LRP_CXX_FLAGS;
  info["torch"] = LRP_TORCH_VERSION;
#if defined(LRP_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_reason"] = LRP_CUDA_REASON;
  info["nvcc"] = LRP_NVCC_VERSION;
  info["cuda_architectures"] = LRP_CUDA_ARCHITECTURES;
  info["cpu_capability"] = lrpkernels::cpu::instruction_set_name();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of lrpkernels; the ops are in torch.ops.lrpkernels.";
  m.def("build_info", &build_info, "Versions, flags and targets of this build.");
}
