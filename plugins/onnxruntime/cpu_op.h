// What the ops of ONNX Runtime's CPU provider share: scratch memory from the session's allocator, threads from its intra-op pool.
#pragma once

#include <cstdlib>
#include <new>

#include "custom_op.h"

namespace mra::ort {

// The three functions of an op. `run` is the operator's own for the CPU; `accuracy` is what the session asked for.
template <typename AnyOperator, auto run, Accuracy accuracy>
struct CpuOp {
  using Operator = AnyOperator;
  static constexpr const char* kProvider = nullptr;

  struct Kernel {
    typename Operator::Params attributes;
    CpuIsa isa = CpuIsa::kPortable;
    OrtAllocator* allocator = nullptr;

    ~Kernel() {
      if (allocator != nullptr) api->ReleaseAllocator(allocator);
    }
  };

  static OrtStatusPtr ORT_API_CALL create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    auto* created = new (std::nothrow) Kernel;
    if (created == nullptr) return api->CreateStatus(ORT_FAIL, "Out of memory.");
    OrtStatus* status = Operator::read_attributes(*info, static_cast<const CustomOp*>(op)->dtype, &created->attributes);
    char message[kMessageSize];
    if (status == nullptr && !choose_cpu_isa(std::getenv("MRA_CPU_ISA"), accuracy, &created->isa, message, sizeof(message)))
      status = invalid_argument(message);
    if (status == nullptr) status = api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &created->allocator);
    if (status != nullptr) {
      delete created;
      return status;
    }
    *kernel = created;
    return nullptr;
  }

  static OrtStatusPtr ORT_API_CALL compute(void* kernel, OrtKernelContext* context) {
    const auto& self = *static_cast<const Kernel*>(kernel);
    typename Operator::Params params = self.attributes;
    MRA_RETURN_IF_ERROR(Operator::read_tensors(*context, &params));
    if (params.batch == 0) return nullptr;
    void* workspace = self.allocator->Alloc(self.allocator, cpu_workspace_size(params, self.isa));
    if (workspace == nullptr) return api->CreateStatus(ORT_FAIL, "No memory for the operator's workspace.");
    run(params, workspace, self.isa, {run_in_session_pool, context});
    self.allocator->Free(self.allocator, workspace);
    return nullptr;
  }

  static void ORT_API_CALL destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

 private:
  // ParallelFor::run over the session's threads; `pool` is the OrtKernelContext of the call.
  static void run_in_session_pool(void* pool, void (*task)(void*, std::size_t), void* argument, std::size_t count) {
    // As many batches as tasks: threads take the next one when they are free, for tasks differ in length.
    OrtStatus* status = api->KernelContext_ParallelFor(static_cast<OrtKernelContext*>(pool), task, count, count, argument);
    if (status == nullptr) return;
    // It fails only where the runtime was built without it, before any task has run.
    api->ReleaseStatus(status);
    for (std::size_t i = 0; i < count; ++i) task(argument, i);
  }
};

}  // namespace mra::ort
