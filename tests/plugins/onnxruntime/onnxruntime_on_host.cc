// The ops of ONNX Runtime's CUDA provider, registered for the CPU provider: with the kernels on the host they run in a real session.
#include <iterator>
#include <string>
#include <vector>

#include "cuda_op.h"
#include "mra2_attention/cuda/mra2_attention_cuda.h"
#include "mra2_attention_op.h"
#include "yoso_attention/cuda/yoso_attention_cuda.h"
#include "yoso_attention_op.h"

namespace {

// Adds copies of an operator's ops to the domain, as the CPU provider's.
template <typename Operator, auto run>
OrtStatus* add(OrtCustomOpDomain* domain) {
  using namespace mra::ort;
  const auto& given = ops_of<CudaOp<Operator, run>>();
  static std::vector<CustomOp> ops(std::begin(given), std::end(given));
  for (CustomOp& op : ops) {
    if (std::string(op.provider) != "CUDAExecutionProvider") return invalid_argument("the op is not the CUDA provider's");
    op.provider = nullptr;
    MRA_RETURN_IF_ERROR(api->CustomOpDomain_Add(domain, &op));
  }
  return nullptr;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  using namespace mra;
  using namespace mra::ort;
  static OrtCustomOpDomain* domain = nullptr;
  if (domain == nullptr) {
    api = base->GetApi(kApiVersion);
    MRA_RETURN_IF_ERROR(api->CreateCustomOpDomain(mra::kOpDomain, &domain));
    MRA_RETURN_IF_ERROR((add<Mra2AttentionOp, mra2_attention_cuda>(domain)));
    MRA_RETURN_IF_ERROR((add<YosoAttentionOp, yoso_attention_cuda>(domain)));
  }
  return api->AddCustomOpDomain(options, domain);
}
