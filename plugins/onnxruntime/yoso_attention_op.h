// What mra::YosoAttention is to ONNX Runtime, whatever provider runs it.
#pragma once

#include "custom_op.h"
#include "yoso_attention/yoso_attention.h"

namespace mra::ort {

// An Operator as custom_op.h has it.
struct YosoAttentionOp {
  using Params = YosoAttentionParams;
  static constexpr auto& kType = kYosoOpType;
  static constexpr std::size_t kInputs = kFirstConstant + 2;

  static OrtStatus* read_attributes(const OrtKernelInfo& info, DType dtype, Params* params);
  static OrtStatus* read_tensors(OrtKernelContext& context, Params* params);
};

}  // namespace mra::ort
