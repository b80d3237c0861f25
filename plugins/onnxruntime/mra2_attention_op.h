// What mra::Mra2Attention is to ONNX Runtime, whatever provider runs it.
#pragma once

#include "custom_op.h"
#include "mra2_attention/mra2_attention.h"

namespace mra::ort {

// An Operator as custom_op.h has it.
struct Mra2AttentionOp {
  using Params = Mra2AttentionParams;
  static constexpr auto& kType = kOpType;
  static constexpr std::size_t kInputs = kFirstConstant;

  static OrtStatus* read_attributes(const OrtKernelInfo& info, DType dtype, Params* params);
  static OrtStatus* read_tensors(OrtKernelContext& context, Params* params);
};

}  // namespace mra::ort
