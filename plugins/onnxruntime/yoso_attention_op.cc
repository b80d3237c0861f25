// The translation between ONNX Runtime and the params struct of mra::YosoAttention, shared by all providers.
#include "yoso_attention_op.h"

#include <cstdio>
#include <initializer_list>

namespace mra::ort {
namespace {

// The constants follow without gaps: hash_constants in mode lsh, then conv_weight if there is a convolution.
enum Input : std::size_t { kQuery, kKey, kValue, kAttentionMask, kFirstConstant, kInputCount = kFirstConstant + 2 };
enum Attribute { kNumHeads, kMode, kHashCodeLen, kNumHash, kFastHash, kConvWindow };
enum Name { kHashConstants = 4, kConvWeight = 5 };  // in kYosoInputNames

constexpr ONNXTensorElementDataType kElementTypes[] = {  // by DType
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};

ONNXTensorElementDataType element_type(const OrtCustomOp* op) {
  return kElementTypes[static_cast<int>(static_cast<const YosoOp*>(op)->dtype)];
}

struct Tensor {
  const void* data = nullptr;
  std::size_t rank = 0;
  std::int64_t dims[4] = {};
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

template <typename... Values>
OrtStatus* fail(const char* format, Values... values) {
  char message[kMessageSize];
  std::snprintf(message, sizeof(message), format, values...);
  return invalid_argument(message);
}

OrtStatus* read_input(const OrtKernelContext& context, std::size_t index, const char* name, Tensor* tensor) {
  const OrtValue* value = nullptr;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetInput(&context, index, &value));
  if (value == nullptr) return fail("%s is missing: it must be input %zu. Export the model again.", name, index);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  MRA_RETURN_IF_ERROR(api->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api->GetDimensionsCount(info, &tensor->rank);
  if (status == nullptr && tensor->rank <= 4) status = api->GetDimensions(info, tensor->dims, tensor->rank);
  if (status == nullptr) status = api->GetTensorElementType(info, &tensor->type);
  api->ReleaseTensorTypeAndShapeInfo(info);
  MRA_RETURN_IF_ERROR(status);
  return api->GetTensorMutableData(const_cast<OrtValue*>(value), const_cast<void**>(&tensor->data));
}

OrtStatus* check_dims(const Tensor& tensor, const char* name, std::size_t rank, const std::int64_t* dims, const char* source) {
  if (tensor.rank != rank) return fail("%s has %zu dimensions; it must have %zu.", name, tensor.rank, rank);
  for (std::size_t i = 0; i < rank; ++i)
    if (tensor.dims[i] != dims[i])
      return fail("%s has size %lld in dimension %zu; by %s it must have %lld.", name, static_cast<long long>(tensor.dims[i]), i,
                  source, static_cast<long long>(dims[i]));
  return nullptr;
}

OrtStatusPtr ORT_API_CALL infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* query = nullptr;  // stays the context's
  MRA_RETURN_IF_ERROR(api->ShapeInferContext_GetInputTypeShape(context, kQuery, &query));
  return api->ShapeInferContext_SetOutputTypeShape(context, 0, query);
}

}  // namespace

OrtStatus* read_yoso_attributes(const OrtKernelInfo& info, DType dtype, YosoAttentionParams* params) {
  const auto read = [&](Attribute attribute, std::int64_t* value) {
    return api->KernelInfoGetAttribute_int64(&info, kYosoAttributeNames[attribute], value);
  };
  MRA_RETURN_IF_ERROR(read(kNumHeads, &params->num_heads));
  MRA_RETURN_IF_ERROR(read(kMode, &params->mode));
  MRA_RETURN_IF_ERROR(read(kHashCodeLen, &params->hash_code_len));
  MRA_RETURN_IF_ERROR(read(kNumHash, &params->num_hash));
  MRA_RETURN_IF_ERROR(read(kFastHash, &params->fast_hash));
  MRA_RETURN_IF_ERROR(read(kConvWindow, &params->conv_window));
  params->dtype = dtype;

  YosoAttentionParams smallest = *params;
  smallest.batch = 1;
  smallest.seq_len = 1;
  // A num_heads that no tensor can have is left for the call to refuse: its product must not overflow here.
  smallest.hidden_size = params->num_heads < (1 << 30) ? params->num_heads * kHeadDimMultiple : params->num_heads;
  char message[kMessageSize];
  return validate(smallest, message, sizeof(message)) ? nullptr : invalid_argument(message);
}

OrtStatus* read_yoso_tensors(OrtKernelContext& context, YosoAttentionParams* params) {
  Tensor inputs[kFirstConstant];
  for (std::size_t i = 0; i < kFirstConstant; ++i) MRA_RETURN_IF_ERROR(read_input(context, i, kYosoInputNames[i], &inputs[i]));
  const Tensor& query = inputs[kQuery];
  MRA_RETURN_IF_ERROR(check_dims(query, kYosoInputNames[kQuery], 3, query.dims, "itself"));
  for (const std::size_t i : {kKey, kValue, kAttentionMask})
    MRA_RETURN_IF_ERROR(check_dims(inputs[i], kYosoInputNames[i], i == kAttentionMask ? 2 : 3, query.dims, "query"));
  params->query = query.data;
  params->key = inputs[kKey].data;
  params->value = inputs[kValue].data;
  params->attention_mask = static_cast<const std::int32_t*>(inputs[kAttentionMask].data);
  params->batch = query.dims[0];
  params->seq_len = query.dims[1];
  params->hidden_size = query.dims[2];
  char message[kMessageSize];
  if (!validate(*params, message, sizeof(message))) return invalid_argument(message);

  std::size_t next = kFirstConstant;
  const auto read_constant = [&](Name name, int rank, const std::int64_t* dims, ONNXTensorElementDataType type, const void** data) {
    Tensor tensor;
    MRA_RETURN_IF_ERROR(read_input(context, next++, kYosoInputNames[name], &tensor));
    if (tensor.type != type)
      return fail("%s has element type %d; it must have %d (ONNX's numbers).", kYosoInputNames[name], static_cast<int>(tensor.type),
                  static_cast<int>(type));
    MRA_RETURN_IF_ERROR(check_dims(tensor, kYosoInputNames[name], static_cast<std::size_t>(rank), dims, "the attributes"));
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
    MRA_RETURN_IF_ERROR(
        read_constant(kConvWeight, 2, dims, kElementTypes[static_cast<int>(params->dtype)], &params->conv_weight));
  }
  std::size_t count = 0;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetInputCount(&context, &count));
  for (std::size_t i = next; i < count; ++i) {
    const OrtValue* value = nullptr;
    MRA_RETURN_IF_ERROR(api->KernelContext_GetInput(&context, i, &value));
    if (value != nullptr) return fail("input %zu is one more than mode=%lld and conv_window=%lld have.", i, static_cast<long long>(params->mode), static_cast<long long>(params->conv_window));
  }
  OrtValue* output = nullptr;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetOutput(&context, 0, query.dims, 3, &output));
  return api->GetTensorMutableData(output, &params->context);
}

YosoOp::YosoOp(const char* op_provider, DType op_dtype, Create create, Compute compute, Destroy destroy)
    : OrtCustomOp{}, provider(op_provider), dtype(op_dtype) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp*) { return kYosoOpType; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return static_cast<const YosoOp*>(op)->provider; };
  GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return kInputCount; };
  GetInputType = [](const OrtCustomOp* op, std::size_t index) {
    if (index == kAttentionMask) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    // The first constant is the one or the other: read_yoso_tensors looks at its type.
    return index < kAttentionMask ? element_type(op) : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  };
  GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  GetOutputType = [](const OrtCustomOp* op, std::size_t) { return element_type(op); };
  GetInputCharacteristic = [](const OrtCustomOp*, std::size_t index) {
    return index < kFirstConstant ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  InferOutputShapeFn = infer_shape;
  GetStartVersion = GetEndVersion = [](const OrtCustomOp*) { return kOpVersion; };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = destroy;
}

}  // namespace mra::ort
