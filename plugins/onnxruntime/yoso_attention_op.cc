// The attributes and inputs of mra::YosoAttention, translated to the params struct.
#include "yoso_attention_op.h"

namespace mra::ort {
namespace {

// The constants follow without gaps: hash_constants in mode lsh, then conv_weight if there is a convolution.
enum Name { kHashConstants = kFirstConstant, kConvWeight };  // in kYosoInputNames

}  // namespace

OrtStatus* YosoAttentionOp::read_attributes(const OrtKernelInfo& info, DType dtype, Params* params) {
  static constexpr std::int64_t Params::* kIntegers[] = {&Params::num_heads, &Params::mode,      &Params::hash_code_len,
                                                         &Params::num_hash,  &Params::fast_hash, &Params::conv_window};
  MRA_RETURN_IF_ERROR(read_integers(info, kYosoAttributeNames, kIntegers, params));
  params->dtype = dtype;
  return check_attributes(*params);
}

OrtStatus* YosoAttentionOp::read_tensors(OrtKernelContext& context, Params* params) {
  constexpr char kDifference[] = "%s has size %lld in dimension %zu; by query it must have %lld.";
  constexpr char kConstantDifference[] = "%s has size %lld in dimension %zu; by the attributes it must have %lld.";
  MRA_RETURN_IF_ERROR(read_call(context, kYosoInputNames, kDifference, params));

  std::size_t next = kFirstConstant;
  const auto read_constant = [&](Name name, int rank, const std::int64_t* dims, ONNXTensorElementDataType type, const void** data) {
    Tensor tensor;
    MRA_RETURN_IF_ERROR(read_input(context, next++, kYosoInputNames[name], &tensor));
    if (tensor.type != type)
      return invalid_argument("%s has element type %d; it must have %d (ONNX's numbers).", kYosoInputNames[name],
                              static_cast<int>(tensor.type), static_cast<int>(type));
    MRA_RETURN_IF_ERROR(check_dims(tensor, kYosoInputNames[name], static_cast<std::size_t>(rank), dims, kConstantDifference));
    *data = tensor.data;
    return static_cast<OrtStatus*>(nullptr);
  };
  std::int64_t dims[4];
  if (params->lsh()) {
    const void* constants = nullptr;
    const int rank = params->hash_constants_shape(dims);
    MRA_RETURN_IF_ERROR(read_constant(kHashConstants, rank, dims, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, &constants));
    params->hash_constants = static_cast<const std::int32_t*>(constants);
  }
  if (params->conv_window > 0) {
    dims[0] = params->num_heads;
    dims[1] = params->conv_window;
    MRA_RETURN_IF_ERROR(read_constant(kConvWeight, 2, dims, element_type(params->dtype), &params->conv_weight));
  }
  std::size_t count = 0;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetInputCount(&context, &count));
  for (std::size_t i = next; i < count; ++i) {
    const OrtValue* value = nullptr;
    MRA_RETURN_IF_ERROR(api->KernelContext_GetInput(&context, i, &value));
    if (value != nullptr)
      return invalid_argument("input %zu is one more than mode=%lld and conv_window=%lld have.", i,
                              static_cast<long long>(params->mode), static_cast<long long>(params->conv_window));
  }
  return allocate_context(context, params);
}

}  // namespace mra::ort
