// What the ops of ONNX Runtime's CUDA provider share: the session's stream and device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <new>

#include "common/cuda/explain.h"
#include "custom_op.h"

namespace mra::ort {

// The three functions of an op. `run` is the operator's launch function.
template <typename AnyOperator, auto run>
struct CudaOp {
  using Operator = AnyOperator;
  static constexpr const char* kProvider = "CUDAExecutionProvider";

  struct Kernel {
    typename Operator::Params attributes;
    OrtAllocator* allocator = nullptr;  // the provider's, of device memory

    ~Kernel() {
      if (allocator != nullptr) api->ReleaseAllocator(allocator);
    }
  };

  static OrtStatusPtr ORT_API_CALL create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    auto* created = new (std::nothrow) Kernel;
    if (created == nullptr) return api->CreateStatus(ORT_FAIL, "Out of memory.");
    OrtStatus* status = Operator::read_attributes(*info, static_cast<const CustomOp*>(op)->dtype, &created->attributes);
    if (status == nullptr) status = api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &created->allocator);
    if (status != nullptr) {
      delete created;
      return status;
    }
    cuda_load(created->attributes);  // what keeps it from that, the first call will meet and say
    *kernel = created;
    return nullptr;
  }

  static OrtStatusPtr ORT_API_CALL compute(void* kernel, OrtKernelContext* context) {
    const auto& self = *static_cast<const Kernel*>(kernel);
    typename Operator::Params params = self.attributes;
    MRA_RETURN_IF_ERROR(Operator::read_tensors(*context, &params));
    char message[kMessageSize];
    if (!cuda_validate(params, message, sizeof(message))) return invalid_argument(message);
    if (params.batch == 0) return nullptr;
    void* stream = nullptr;
    MRA_RETURN_IF_ERROR(api->KernelContext_GetGPUComputeStream(context, &stream));
    const std::size_t bytes = cuda_workspace_size(params);
    void* workspace = nullptr;
    MRA_RETURN_IF_ERROR(allocate(self.allocator, *context, stream, bytes, &workspace));
    if (workspace == nullptr) {
      std::snprintf(message, sizeof(message), "No device memory for the operator's workspace of %zu bytes.", bytes);
      return api->CreateStatus(ORT_FAIL, message);
    }
    const cudaError_t error = run(params, workspace, bytes, static_cast<cudaStream_t>(stream));
    // The allocator gives it out again at once, but only for work that this stream does later.
    self.allocator->Free(self.allocator, workspace);
    if (error == cudaSuccess) return nullptr;
    std::snprintf(
        message, sizeof(message),
        "%s (%s) at batch=%lld, seq_len=%lld, hidden_size=%lld, num_heads=%lld. The library holds code for GPU architectures %s.%s",
        cudaGetErrorString(error), cudaGetErrorName(error), static_cast<long long>(params.batch),
        static_cast<long long>(params.seq_len), static_cast<long long>(params.hidden_size),
        static_cast<long long>(params.num_heads), MRA_CUDA_ARCHITECTURES, cuda::Explanation(error).text());
    return api->CreateStatus(ORT_EP_FAIL, message);
  }

  static void ORT_API_CALL destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

 private:
  // Memory that belongs to the call's stream. Concurrent runs of a session have a stream each, and what was allocated for no stream
  // goes to any of them once it is freed, which is before the kernels have run. Where the device has no memory left the process may
  // end: ONNX Runtime throws there, out of a function that it declares noexcept.
  static OrtStatus* allocate(OrtAllocator* allocator, const OrtKernelContext& context, void* stream, std::size_t bytes,
                             void** memory) {
    if (stream == nullptr) {  // all work is in one order; and GetScratchBuffer takes a stream for granted
      *memory = allocator->Alloc(allocator, bytes);
      return nullptr;
    }
    const OrtMemoryInfo* place = nullptr;
    MRA_RETURN_IF_ERROR(api->AllocatorGetInfo(allocator, &place));
    return api->KernelContext_GetScratchBuffer(&context, place, bytes, memory);
  }
};

}  // namespace mra::ort
