// One build for every x86-64 machine: hot loops are compiled three times and the widest version the CPU has is chosen
// at run time. A Body is an object whose operator() is LRP_ALWAYS_INLINE, so that it takes on the caller's instruction
// set.
#pragma once
#include <cstdlib>
#include <cstring>

#define LRP_ALWAYS_INLINE inline __attribute__((always_inline))
#define LRP_INLINE __attribute__((always_inline))  // for lambdas

namespace lrpkernels::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// LRPKERNELS_CPU_CAPABILITY=default|avx2|avx512 lowers the choice (never beyond what the CPU has); read once.
inline InstructionSet instruction_set() {
  static const InstructionSet chosen = [] {
    InstructionSet best = InstructionSet::kBaseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      best = InstructionSet::kAvx2;
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        best = InstructionSet::kAvx512;
    }
#endif
    const char* limit = std::getenv("LRPKERNELS_CPU_CAPABILITY");
    if (limit == nullptr) return best;
    if (std::strcmp(limit, "default") == 0) return InstructionSet::kBaseline;
    if (std::strcmp(limit, "avx2") == 0 && best == InstructionSet::kAvx512) return InstructionSet::kAvx2;
    return best;
  }();
  return chosen;
}

inline const char* instruction_set_name() {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

#if defined(__x86_64__)
template <typename Body, typename... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void run_avx512(const Body& body, Args... args) {
  body(args...);
}

template <typename Body, typename... Args>
__attribute__((target("avx2,fma"))) void run_avx2(const Body& body, Args... args) {
  body(args...);
}
#endif

template <typename Body, typename... Args>
void run_widest(const Body& body, Args... args) {
#if defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return run_avx512(body, args...);
    case InstructionSet::kAvx2:
      return run_avx2(body, args...);
    case InstructionSet::kBaseline:
      break;
  }
#endif
  body(args...);
}

}  // namespace lrpkernels::cpu
