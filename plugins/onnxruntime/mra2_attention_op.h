// What the operator is to ONNX Runtime, whatever provider runs it: types, attributes, inputs, shapes and errors, translated
// to the params struct. A provider adds a kernel of its own (as mra2_attention_cpu_op.cc does) and a line in register.cc.
#pragma once

#include <onnxruntime_c_api.h>

#include "mra2_attention.h"

namespace mra::ort {

// The API that the ops ask for and state: newer runtimes serve it unchanged, whatever the headers' own version.
constexpr std::uint32_t kApiVersion = 21;
static_assert(ORT_API_VERSION >= kApiVersion, "ONNX Runtime headers of 1.21 or newer are needed");

constexpr std::size_t kMessageSize = 512;

#define MRA_RETURN_IF_ERROR(expression)                    \
  do {                                                     \
    if (OrtStatus* status_ = (expression)) return status_; \
  } while (false)

// The runtime's API. Set once, by RegisterCustomOps: shape inference is called without it.
extern const OrtApi* api;

// Reads the attributes of a node and validates them with the smallest of sizes, so that a bad one fails where the session
// is made.
OrtStatus* read_attributes(const OrtKernelInfo& info, DType dtype, Mra2AttentionParams* params);

// Completes `params`, which holds the attributes, with one call's sizes and pointers, and validates it. The output is
// allocated.
OrtStatus* read_tensors(OrtKernelContext& context, Mra2AttentionParams* params);

// An error whose text is `message`.
OrtStatus* invalid_argument(const char* message);

// ParallelFor::run over the session's threads; `pool` is the OrtKernelContext of the call.
void run_in_session_pool(void* pool, void (*task)(void*, std::size_t), void* argument, std::size_t count);

// One op: a provider's kernel for one element type. ONNX Runtime merges the ops of one name into one schema.
struct Op : OrtCustomOp {
  using Create = OrtStatusPtr(ORT_API_CALL*)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  using Compute = OrtStatusPtr(ORT_API_CALL*)(void*, OrtKernelContext*);
  using Destroy = void(ORT_API_CALL*)(void*);

  // `provider` as in GetExecutionProviderType: null is the CPU provider.
  Op(const char* provider, DType dtype, Create create, Compute compute, Destroy destroy);

  const char* provider;
  DType dtype;
};

// The ops of the CPU provider, one for each DType.
const Op (&cpu_ops())[3];

// The ops of the CUDA provider, likewise; only where the library is built with MRA_CUDA.
const Op (&cuda_ops())[3];

}  // namespace mra::ort
