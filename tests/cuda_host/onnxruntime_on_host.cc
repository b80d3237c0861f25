// The op of ONNX Runtime's CUDA provider, registered for the CPU provider: with the kernels on the host it runs in a real session.
#include <string>
#include <vector>

#include "mra2_attention_op.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                           const OrtApiBase* base) {
  using namespace mra::ort;
  static std::vector<Op> ops;
  static OrtCustomOpDomain* domain = nullptr;
  if (domain == nullptr) {
    api = base->GetApi(kApiVersion);
    MRA_RETURN_IF_ERROR(api->CreateCustomOpDomain(mra::kOpDomain, &domain));
    for (const Op& op : cuda_ops()) {
      if (std::string(op.provider) != "CUDAExecutionProvider") return invalid_argument("the op is not the CUDA provider's");
      ops.push_back(op);
    }
    for (Op& op : ops) {
      op.provider = nullptr;
      MRA_RETURN_IF_ERROR(api->CustomOpDomain_Add(domain, &op));
    }
  }
  return api->AddCustomOpDomain(options, domain);
}
