// The library's function for ONNX Runtime: registers the operators with a session's options.
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

namespace mra::ort {
namespace {

// The session's config entry that names the level of parse_accuracy. It has to be there before the library is registered: ops of
// ONNX Runtime 1.21 cannot read it later.
constexpr char kAccuracyKey[] = "mra.accuracy";

OrtStatus* read_accuracy(const OrtSessionOptions* options, Accuracy* accuracy) {
  int present = 0;
  MRA_RETURN_IF_ERROR(api->HasSessionConfigEntry(options, kAccuracyKey, &present));
  if (present == 0) return nullptr;
  char message[kMessageSize], value[kMessageSize] = "";
  std::size_t size = 0;
  MRA_RETURN_IF_ERROR(api->GetSessionConfigEntry(options, kAccuracyKey, nullptr, &size));
  // A longer value is no level: told apart by its beginning alone, it could be taken for one.
  if (size > sizeof(value)) return invalid_argument("%s has %zu characters; it must be fp32 or bf16.", kAccuracyKey, size - 1);
  MRA_RETURN_IF_ERROR(api->GetSessionConfigEntry(options, kAccuracyKey, value, &size));
  return parse_accuracy(kAccuracyKey, value, accuracy, message, sizeof(message)) ? nullptr : invalid_argument(message);
}

template <Accuracy accuracy>
OrtStatus* create_domain(OrtCustomOpDomain** domain) {
  OrtCustomOpDomain* created = nullptr;
  MRA_RETURN_IF_ERROR(api->CreateCustomOpDomain(kOpDomain, &created));
  OrtStatus* status = nullptr;
  const auto add = [&](const CustomOp(&ops)[3]) {
    for (const CustomOp& op : ops)
      if (status == nullptr) status = api->CustomOpDomain_Add(created, &op);
  };
  add(ops_of<CpuOp<Mra2AttentionOp, mra2_attention_cpu, accuracy>>());
  add(ops_of<CpuOp<YosoAttentionOp, yoso_attention_cpu, accuracy>>());
#if defined(MRA_ONNXRUNTIME_CUDA)
  add(ops_of<CudaOp<Mra2AttentionOp, mra2_attention_cuda>>());
  add(ops_of<CudaOp<YosoAttentionOp, yoso_attention_cuda>>());
#endif
  if (status != nullptr) {
    api->ReleaseCustomOpDomain(created);
    return status;
  }
  *domain = created;
  return nullptr;
}

}  // namespace
}  // namespace mra::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  using namespace mra;
  using namespace mra::ort;
  static std::mutex mutex;
  static OrtCustomOpDomain* domains[2] = {};  // of each Accuracy; they outlive every session, as they must
  const std::lock_guard<std::mutex> lock(mutex);
  if (api == nullptr) {
    api = base->GetApi(kApiVersion);
    if (api == nullptr) {
      char message[kMessageSize];
      std::snprintf(message, sizeof(message), "ONNX Runtime %s is too old for libmra_onnxruntime.so. Install 1.%u or newer.",
                    base->GetVersionString(), kApiVersion);
      return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message);  // members of the API keep their places
    }
  }
  Accuracy accuracy = Accuracy::kFp32;
  MRA_RETURN_IF_ERROR(read_accuracy(options, &accuracy));
  OrtCustomOpDomain*& domain = domains[static_cast<int>(accuracy)];
  if (domain == nullptr)
    MRA_RETURN_IF_ERROR(accuracy == Accuracy::kBf16 ? create_domain<Accuracy::kBf16>(&domain)
                                                    : create_domain<Accuracy::kFp32>(&domain));
  return api->AddCustomOpDomain(options, domain);
}
