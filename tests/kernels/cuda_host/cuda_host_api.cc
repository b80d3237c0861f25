// kernel_api.h on the host: the pointers are used as they are.
#include "kernel_api.inc"

int mra_cuda_run(const MraCall* call, void* workspace, std::uint64_t workspace_bytes) {
  return static_cast<int>(mra::mra2_attention_cuda(call->params(), workspace, workspace_bytes, nullptr));
}

int mra_yoso_run(const YosoCall* call, void* workspace, std::uint64_t workspace_bytes) {
  return static_cast<int>(mra::yoso_attention_cuda(call->params(), workspace, workspace_bytes, nullptr));
}

MRA_TEST_API long mra_host_launches() { return cuda_host::launches(); }
