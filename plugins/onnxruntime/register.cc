// The library's only exported function: registers the operators with a session's options.
#include <cstdio>
#include <mutex>

#include "cpu_op.h"
#include "mra2_attention_op.h"
#include "yoso_attention_op.h"
#if defined(MRA_ONNXRUNTIME_CUDA)
#include "cuda_op.h"
#include "mra2_attention/cuda/mra2_attention_cuda.h"
#include "yoso_attention/cuda/yoso_attention_cuda.h"
#endif

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  using namespace mra;
  using namespace mra::ort;
  static std::mutex mutex;
  static OrtCustomOpDomain* domain = nullptr;  // outlives every session, as it must
  const std::lock_guard<std::mutex> lock(mutex);
  if (domain == nullptr) {
    api = base->GetApi(kApiVersion);
    if (api == nullptr) {
      char message[kMessageSize];
      std::snprintf(message, sizeof(message), "ONNX Runtime %s is too old for libmra_onnxruntime.so. Install 1.%u or newer.",
                    base->GetVersionString(), kApiVersion);
      return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message);  // members of the API keep their places
    }
    OrtCustomOpDomain* created = nullptr;
    MRA_RETURN_IF_ERROR(api->CreateCustomOpDomain(mra::kOpDomain, &created));
    OrtStatus* status = nullptr;
    const auto add = [&](const CustomOp(&ops)[3]) {
      for (const CustomOp& op : ops)
        if (status == nullptr) status = api->CustomOpDomain_Add(created, &op);
    };
    add(ops_of<CpuOp<Mra2AttentionOp, mra2_attention_cpu>>());
    add(ops_of<CpuOp<YosoAttentionOp, yoso_attention_cpu>>());
#if defined(MRA_ONNXRUNTIME_CUDA)
    add(ops_of<CudaOp<Mra2AttentionOp, mra2_attention_cuda>>());
    add(ops_of<CudaOp<YosoAttentionOp, yoso_attention_cuda>>());
#endif
    if (status != nullptr) {
      api->ReleaseCustomOpDomain(created);
      return status;
    }
    domain = created;
  }
  return api->AddCustomOpDomain(options, domain);
}
