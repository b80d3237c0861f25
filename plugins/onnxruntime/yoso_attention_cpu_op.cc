// mra::YosoAttention for ONNX Runtime's CPU provider: scratch memory from the session's allocator, threads from its pool.
#include <cstdlib>
#include <new>

#include "yoso_attention_op.h"

namespace mra::ort {
namespace {

struct CpuKernel {
  YosoAttentionParams attributes;
  CpuIsa isa = CpuIsa::kPortable;
  OrtAllocator* allocator = nullptr;

  ~CpuKernel() {
    if (allocator != nullptr) api->ReleaseAllocator(allocator);
  }
};

OrtStatusPtr ORT_API_CALL create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  auto* created = new (std::nothrow) CpuKernel;
  if (created == nullptr) return api->CreateStatus(ORT_FAIL, "Out of memory.");
  OrtStatus* status = read_yoso_attributes(*info, static_cast<const YosoOp*>(op)->dtype, &created->attributes);
  char message[kMessageSize];
  if (status == nullptr && !choose_cpu_isa(std::getenv("MRA_CPU_ISA"), &created->isa, message, sizeof(message)))
    status = invalid_argument(message);
  if (status == nullptr) status = api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &created->allocator);
  if (status != nullptr) {
    delete created;
    return status;
  }
  *kernel = created;
  return nullptr;
}

OrtStatusPtr ORT_API_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& self = *static_cast<const CpuKernel*>(kernel);
  YosoAttentionParams params = self.attributes;
  MRA_RETURN_IF_ERROR(read_yoso_tensors(*context, &params));
  if (params.batch == 0) return nullptr;
  void* workspace = self.allocator->Alloc(self.allocator, cpu_workspace_size(params));
  if (workspace == nullptr) return api->CreateStatus(ORT_FAIL, "No memory for the operator's workspace.");
  yoso_attention_cpu(params, workspace, self.isa, {run_in_session_pool, context});
  self.allocator->Free(self.allocator, workspace);
  return nullptr;
}

void ORT_API_CALL destroy(void* kernel) { delete static_cast<CpuKernel*>(kernel); }

}  // namespace

const YosoOp (&yoso_cpu_ops())[3] {
  static const YosoOp ops[] = {{nullptr, DType::kFloat32, create, compute, destroy},
                               {nullptr, DType::kFloat16, create, compute, destroy},
                               {nullptr, DType::kBFloat16, create, compute, destroy}};
  return ops;
}

}  // namespace mra::ort
