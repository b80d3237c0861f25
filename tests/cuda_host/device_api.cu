// kernel_api.h on a GPU: host pointers are copied to the device and back, guards included. scripts/gpu_check.py builds this.
//
// Also mra_cuda_enqueue, which takes device pointers, for benchmarks; and with MRA_DEVICE_MAIN a program that runs a case file (that of
// cuda_host_runner.cc) under compute-sanitizer.
#include <cstdio>
#include <cstdlib>
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
      error_ = cudaMemcpy(get() - guard_, static_cast<const unsigned char*>(host) - guard_, bytes_ + 2 * guard_, cudaMemcpyHostToDevice);
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

}  // namespace

int mra_cuda_run(const MraCall* call, void* workspace, std::uint64_t workspace_bytes) {
  MraCall on_device = *call;
  const bool valid = mra::validate(call->params(), nullptr, 0);
  const std::size_t bytes = valid ? call->tensor_bytes() : 0;
  const DeviceCopy query(call->query, bytes, 0);
  const DeviceCopy key(call->key, bytes, 0);
  const DeviceCopy value(call->value, bytes, 0);
  const DeviceCopy mask(call->attention_mask, valid ? call->mask_bytes() : 0, 0);
  const DeviceCopy context(call->context, bytes, kGuard);
  const DeviceCopy scratch(workspace, valid ? workspace_bytes : 0, kGuard);
  for (const DeviceCopy* copy : {&query, &key, &value, &mask, &context, &scratch})
    if (copy->error() != cudaSuccess) return copy->error();
  on_device.query = query.get();
  on_device.key = key.get();
  on_device.value = value.get();
  on_device.attention_mask = reinterpret_cast<const std::int32_t*>(mask.get());
  on_device.context = context.get();
  cudaError_t error = mra::mra2_attention_cuda(on_device.params(), scratch.get(), workspace_bytes, nullptr);
  const cudaError_t ran = cudaDeviceSynchronize();
  if (error == cudaSuccess) error = ran;
  if (error != cudaSuccess) return error;
  error = context.copy_back();
  return error != cudaSuccess ? error : scratch.copy_back();
}

// A cudaError_t; all pointers are the device's, and the work goes to `stream`.
MRA_TEST_API int mra_cuda_enqueue(const MraCall* call, void* workspace, std::uint64_t workspace_bytes, void* stream) {
  return mra::mra2_attention_cuda(call->params(), workspace, workspace_bytes, static_cast<cudaStream_t>(stream));
}

#if defined(MRA_DEVICE_MAIN)
int main(int count, char** arguments) {
  if (count != 3) return 3;
  std::FILE* cases = std::fopen(arguments[1], "rb");
  std::FILE* results = std::fopen(arguments[2], "wb");
  if (cases == nullptr || results == nullptr) return 3;
  long number = 0;
  MraCall call{};
  constexpr std::size_t kHead = 10 * 8;
  while (std::fread(&call.batch, 1, kHead, cases) == kHead) {
    std::vector<unsigned char> tensors[4];
    for (int i = 0; i < 4; ++i) {
      tensors[i].resize(i == 3 ? call.mask_bytes() : call.tensor_bytes());
      if (std::fread(tensors[i].data(), 1, tensors[i].size(), cases) != tensors[i].size()) return 3;
    }
    call.query = tensors[0].data();
    call.key = tensors[1].data();
    call.value = tensors[2].data();
    call.attention_mask = reinterpret_cast<const std::int32_t*>(tensors[3].data());
    // No guards here but those of the sanitizer: device blocks of exactly the size.
    void* device[6] = {};
    std::size_t sizes[6] = {tensors[0].size(), tensors[1].size(), tensors[2].size(), tensors[3].size(), call.tensor_bytes(),
                            mra_cuda_workspace_size(&call)};
    for (int i = 0; i < 6; ++i)
      if (cudaMalloc(&device[i], sizes[i]) != cudaSuccess) return 4;
    for (int i = 0; i < 4; ++i) cudaMemcpy(device[i], tensors[i].data(), sizes[i], cudaMemcpyHostToDevice);
    MraCall on_device = call;
    on_device.query = device[0];
    on_device.key = device[1];
    on_device.value = device[2];
    on_device.attention_mask = static_cast<const std::int32_t*>(device[3]);
    on_device.context = device[4];
    if (mra::mra2_attention_cuda(on_device.params(), device[5], sizes[5], nullptr) != cudaSuccess) return 5;
    std::vector<unsigned char> context(sizes[4]);
    if (cudaMemcpy(context.data(), device[4], sizes[4], cudaMemcpyDeviceToHost) != cudaSuccess) return 6;
    if (std::fwrite(context.data(), 1, context.size(), results) != context.size()) return 3;
    for (void* block : device) cudaFree(block);
    ++number;
  }
  std::fclose(results);
  std::printf("%ld cases\n", number);
  return 0;
}
#endif
