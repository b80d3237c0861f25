// kernel_api.h on a GPU: host pointers are copied to the device and back, guards included. scripts/gpu/build.py builds this.
//
// Also mra_cuda_enqueue and mra_yoso_enqueue, which take device pointers, for benchmarks; and with MRA_DEVICE_MAIN a program that runs a case file (arguments and
// file are those of cuda_host_runner.cc) under compute-sanitizer.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernel_api.inc"

namespace {

// A copy of host memory on the device, `guard` bytes before and after it included.
class DeviceCopy {
 public:
  DeviceCopy(const void* host, std::size_t bytes, std::size_t guard) : host_(host), bytes_(bytes), guard_(guard) {
    if (host == nullptr) return;
    // A pointer that is off its alignment on the host is off by as much on the device.
    offset_ = 256 + guard + reinterpret_cast<std::uintptr_t>(host) % mra::kCudaAlignment;
    error_ = cudaMalloc(&base_, offset_ + bytes + guard);
    if (error_ == cudaSuccess)
      error_ =
          cudaMemcpy(get() - guard_, static_cast<const unsigned char*>(host) - guard_, bytes_ + 2 * guard_, cudaMemcpyHostToDevice);
  }
  ~DeviceCopy() { cudaFree(base_); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;

  unsigned char* get() const { return host_ == nullptr ? nullptr : static_cast<unsigned char*>(base_) + offset_; }
  cudaError_t error() const { return error_; }
  cudaError_t copy_back() const {
    if (host_ == nullptr) return cudaSuccess;
    return cudaMemcpy(const_cast<unsigned char*>(static_cast<const unsigned char*>(host_)) - guard_, get() - guard_,
                      bytes_ + 2 * guard_, cudaMemcpyDeviceToHost);
  }

 private:
  const void* host_;
  std::size_t bytes_;
  std::size_t guard_;
  std::size_t offset_ = 0;
  void* base_ = nullptr;
  cudaError_t error_ = cudaSuccess;
};

cudaError_t enqueue(const MraCall& call, void* workspace, std::size_t bytes, cudaStream_t stream) {
  return mra::mra2_attention_cuda(call.params(), workspace, bytes, stream);
}
cudaError_t enqueue(const YosoCall& call, void* workspace, std::size_t bytes, cudaStream_t stream) {
  return mra::yoso_attention_cuda(call.params(), workspace, bytes, stream);
}

template <typename Call>
int run_copied(const Call& call, void* workspace, std::uint64_t workspace_bytes) {
  Call on_device = call;
  const bool valid = mra::validate(call.params(), nullptr, 0);
  std::unique_ptr<DeviceCopy> inputs[Call::kInputs];
  void* pointers[Call::kInputs];
  for (int i = 0; i < Call::kInputs; ++i) {
    inputs[i] = std::make_unique<DeviceCopy>(call.input(i), valid ? call.input_bytes(i) : 0, 0);
    if (inputs[i]->error() != cudaSuccess) return inputs[i]->error();
    pointers[i] = inputs[i]->get();
  }
  const DeviceCopy context(call.context, valid ? call.tensor_bytes() : 0, kGuard);
  const DeviceCopy scratch(workspace, valid ? workspace_bytes : 0, kGuard);
  for (const DeviceCopy* copy : {&context, &scratch})
    if (copy->error() != cudaSuccess) return copy->error();
  on_device.set_inputs(pointers);
  on_device.context = context.get();
  cudaError_t error = enqueue(on_device, scratch.get(), workspace_bytes, nullptr);
  const cudaError_t ran = cudaDeviceSynchronize();
  if (error == cudaSuccess) error = ran;
  if (error != cudaSuccess) return error;
  error = context.copy_back();
  return error != cudaSuccess ? error : scratch.copy_back();
}

}  // namespace

int mra_cuda_run(const MraCall* call, void* workspace, std::uint64_t workspace_bytes) {
  return run_copied(*call, workspace, workspace_bytes);
}
int mra_yoso_run(const YosoCall* call, void* workspace, std::uint64_t workspace_bytes) {
  return run_copied(*call, workspace, workspace_bytes);
}

// A cudaError_t; all pointers are the device's, and the work goes to `stream`.
MRA_TEST_API int mra_cuda_enqueue(const MraCall* call, void* workspace, std::uint64_t workspace_bytes, void* stream) {
  return enqueue(*call, workspace, workspace_bytes, static_cast<cudaStream_t>(stream));
}
MRA_TEST_API int mra_yoso_enqueue(const YosoCall* call, void* workspace, std::uint64_t workspace_bytes, void* stream) {
  return enqueue(*call, workspace, workspace_bytes, static_cast<cudaStream_t>(stream));
}

#if defined(MRA_DEVICE_MAIN)
namespace {

// No guards here but those of the sanitizer: device blocks of exactly the size.
template <typename Call>
int run_cases(std::FILE* cases, std::FILE* results, long& number) {
  Call call{};
  constexpr std::size_t kHead = 10 * 8;
  while (std::fread(&call.batch, 1, kHead, cases) == kHead) {
    void* inputs[Call::kInputs] = {};
    for (int i = 0; i < Call::kInputs; ++i) {
      std::vector<unsigned char> host(call.input_bytes(i));
      if (host.empty()) continue;
      if (std::fread(host.data(), 1, host.size(), cases) != host.size()) return 3;
      if (cudaMalloc(&inputs[i], host.size()) != cudaSuccess) return 4;
      cudaMemcpy(inputs[i], host.data(), host.size(), cudaMemcpyHostToDevice);
    }
    const std::size_t workspace_bytes = mra::cuda_workspace_size(call.params());
    void* workspace = nullptr;
    Call on_device = call;
    on_device.set_inputs(inputs);
    if (cudaMalloc(&workspace, workspace_bytes) != cudaSuccess ||
        cudaMalloc(&on_device.context, call.tensor_bytes()) != cudaSuccess)
      return 4;
    if (enqueue(on_device, workspace, workspace_bytes, nullptr) != cudaSuccess) return 5;
    std::vector<unsigned char> context(call.tensor_bytes());
    if (cudaMemcpy(context.data(), on_device.context, context.size(), cudaMemcpyDeviceToHost) != cudaSuccess) return 6;
    if (std::fwrite(context.data(), 1, context.size(), results) != context.size()) return 3;
    for (void* block : inputs) cudaFree(block);
    cudaFree(workspace);
    cudaFree(on_device.context);
    ++number;
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 3;
  std::FILE* cases = std::fopen(arguments[2], "rb");
  std::FILE* results = std::fopen(arguments[3], "wb");
  if (cases == nullptr || results == nullptr) return 3;
  long number = 0;
  const bool yoso = std::strcmp(arguments[1], "yoso") == 0;
  const int error = yoso ? run_cases<YosoCall>(cases, results, number) : run_cases<MraCall>(cases, results, number);
  if (error != 0) return error;
  std::fclose(results);
  std::printf("%ld cases\n", number);
  return 0;
}
#endif
