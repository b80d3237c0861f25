// The ops of ONNX Runtime's CUDA provider, registered for the CPU provider: with the kernels on the host they run in a real session.
#include <string>
#include <vector>

#include "mra2_attention_op.h"
#include "yoso_attention_op.h"

namespace {

// Adds copies of `given` to the domain, as the CPU provider's.
template <typename AnyOp, std::size_t kCount>
OrtStatus* add(OrtCustomOpDomain* domain, const AnyOp (&given)[kCount]) {
  using namespace mra::ort;
  static std::vector<AnyOp> ops(given, given + kCount);
  for (AnyOp& op : ops) {
    if (std::string(op.provider) != "CUDAExecutionProvider") return invalid_argument("the op is not the CUDA provider's");
    op.provider = nullptr;
    MRA_RETURN_IF_ERROR(api->CustomOpDomain_Add(domain, &op));
  }
  return nullptr;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                           const OrtApiBase* base) {
  using namespace mra::ort;
  static OrtCustomOpDomain* domain = nullptr;
  if (domain == nullptr) {
    api = base->GetApi(kApiVersion);
    MRA_RETURN_IF_ERROR(api->CreateCustomOpDomain(mra::kOpDomain, &domain));
    MRA_RETURN_IF_ERROR(add(domain, cuda_ops()));
    MRA_RETURN_IF_ERROR(add(domain, yoso_cuda_ops()));
  }
  return api->AddCustomOpDomain(options, domain);
}
