// What mra::YosoAttention is to ONNX Runtime, whatever provider runs it: types, attributes, inputs, shapes and errors, translated
// to the params struct. A provider adds a kernel of its own (as yoso_attention_cpu_op.cc does) and a line in register.cc.
#pragma once

#include "mra2_attention_op.h"
#include "yoso_attention.h"

namespace mra::ort {

// Reads the attributes of a node and validates them with the smallest of sizes, so that a bad one fails where the session
// is made.
OrtStatus* read_yoso_attributes(const OrtKernelInfo& info, DType dtype, YosoAttentionParams* params);

// Completes `params`, which holds the attributes, with one call's sizes and pointers, and validates it. The output is
// allocated.
OrtStatus* read_yoso_tensors(OrtKernelContext& context, YosoAttentionParams* params);

// One op: a provider's kernel for one element type. ONNX Runtime merges the ops of one name into one schema.
struct YosoOp : OrtCustomOp {
  using Create = Op::Create;
  using Compute = Op::Compute;
  using Destroy = Op::Destroy;

  // `provider` as in GetExecutionProviderType: null is the CPU provider.
  YosoOp(const char* provider, DType dtype, Create create, Compute compute, Destroy destroy);

  const char* provider;
  DType dtype;
};

// The ops of the CPU provider, one for each DType.
const YosoOp (&yoso_cpu_ops())[3];

// The ops of the CUDA provider, likewise; only where the library is built with MRA_CUDA.
const YosoOp (&yoso_cuda_ops())[3];

}  // namespace mra::ort
