// The library's only exported function: registers the operators with a session's options.
#include <cstdio>
#include <mutex>

#include "mra2_attention_op.h"
#include "yoso_attention_op.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                           const OrtApiBase* base) {
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
    for (const Op& op : cpu_ops())
      if (status == nullptr) status = api->CustomOpDomain_Add(created, &op);
    for (const YosoOp& op : yoso_cpu_ops())
      if (status == nullptr) status = api->CustomOpDomain_Add(created, &op);
#if defined(MRA_ONNXRUNTIME_CUDA)
    for (const Op& op : cuda_ops())
      if (status == nullptr) status = api->CustomOpDomain_Add(created, &op);
    for (const YosoOp& op : yoso_cuda_ops())
      if (status == nullptr) status = api->CustomOpDomain_Add(created, &op);
#endif
    if (status != nullptr) {
      api->ReleaseCustomOpDomain(created);
      return status;
    }
    domain = created;
  }
  return api->AddCustomOpDomain(options, domain);
}
