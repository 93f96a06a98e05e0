// As much of the CUDA runtime as the launchers use, without a GPU: host code that nvcc has compiled links with it and
// runs. A launch is checked as the runtime would check it, and written down; no kernel runs.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct Size {  // dim3
  unsigned x, y, z;
};

struct Launch {
  char kernel[512];
  Size grid, block;
  uint64_t shared;
  void* stream;
};

namespace {

constexpr int kInvalidConfiguration = 9;
constexpr int kInvalidDeviceFunction = 98;
constexpr uint64_t kSharedMemory = 48 << 10;  // without asking for more

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> registered;
  return registered;
}

std::vector<Launch> launches;
std::vector<Launch> configurations;
int forced = 0, last = 0;

int checked(const void* kernel, Size grid, Size block, uint64_t shared, void* stream) {
  const auto found = kernels().find(kernel);
  if (found == kernels().end()) return kInvalidDeviceFunction;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool fits = threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.x <= 2147483647u &&
                    grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 && shared <= kSharedMemory;
  if (!fits) return kInvalidConfiguration;
  Launch launch{{}, grid, block, shared, stream};
  found->second.copy(launch.kernel, sizeof(launch.kernel) - 1);
  launches.push_back(launch);
  return forced;
}

}  // namespace

extern "C" {
// For the tests: what has been launched since the last call, and the error of launches to come.
int64_t fake_launches(Launch* into, int64_t room) {
  const int64_t count = static_cast<int64_t>(launches.size());
  for (int64_t i = 0; i < count && i < room; ++i) into[i] = launches[i];
  launches.clear();
  return count;
}
void fake_error(int error) { forced = error; }

// For nvcc's host code (crt/host_runtime.h, crt/device_functions.h, cuda_runtime_api.h).
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, void*, void*, void*, void*,
                            int*) {
  kernels()[host] = device;
}
unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void* stream) {
  configurations.push_back({{}, grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(Size* grid, Size* block, size_t* shared, void* stream) {
  const Launch pushed = configurations.back();
  configurations.pop_back();
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return 0;
}
int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, Size grid, Size block, void**, size_t shared, void* stream) {
  return last = checked(kernel, grid, block, shared, stream);
}
int cudaLaunchKernel(const void* host, Size grid, Size block, void**, size_t shared, void* stream) {  // CUDA 12
  return last = checked(host, grid, block, shared, stream);
}
int cudaGetLastError() {
  const int error = last;
  last = 0;
  return error;
}
}
