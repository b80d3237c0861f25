// The op's table, and the translation between ONNX Runtime's tensors and ours, for every operator and provider.
#include "custom_op.h"

namespace mra::ort {
namespace {

ONNXTensorElementDataType element_type(const OrtCustomOp* op) { return ort::element_type(static_cast<const CustomOp*>(op)->dtype); }

OrtStatusPtr ORT_API_CALL infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* query = nullptr;  // stays the context's
  MRA_RETURN_IF_ERROR(api->ShapeInferContext_GetInputTypeShape(context, kQuery, &query));
  return api->ShapeInferContext_SetOutputTypeShape(context, 0, query);
}

}  // namespace

const OrtApi* api = nullptr;

OrtStatus* invalid_argument(const char* message) { return api->CreateStatus(ORT_INVALID_ARGUMENT, message); }

CustomOp::CustomOp(const char* op_type, std::size_t op_inputs, const char* op_provider, DType op_dtype, Create create,
                   Compute compute, Destroy destroy)
    : OrtCustomOp{}, type(op_type), inputs(op_inputs), provider(op_provider), dtype(op_dtype) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return static_cast<const CustomOp*>(op)->type; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return static_cast<const CustomOp*>(op)->provider; };
  GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<const CustomOp*>(op)->inputs; };
  GetInputType = [](const OrtCustomOp* op, std::size_t index) {
    if (index == kAttentionMask) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    // The first constant may be one or another: the operator looks at its type.
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

ONNXTensorElementDataType element_type(DType dtype) {
  constexpr ONNXTensorElementDataType kTypes[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};
  return kTypes[static_cast<int>(dtype)];
}

OrtStatus* read_input(const OrtKernelContext& context, std::size_t index, const char* name, Tensor* tensor) {
  const OrtValue* value = nullptr;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetInput(&context, index, &value));
  if (value == nullptr) return invalid_argument("%s is missing: it must be input %zu. Export the model again.", name, index);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  MRA_RETURN_IF_ERROR(api->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api->GetDimensionsCount(info, &tensor->rank);
  if (status == nullptr && tensor->rank <= 4) status = api->GetDimensions(info, tensor->dims, tensor->rank);
  if (status == nullptr) status = api->GetTensorElementType(info, &tensor->type);
  api->ReleaseTensorTypeAndShapeInfo(info);
  MRA_RETURN_IF_ERROR(status);
  return api->GetTensorMutableData(const_cast<OrtValue*>(value), const_cast<void**>(&tensor->data));
}

OrtStatus* check_dims(const Tensor& tensor, const char* name, std::size_t rank, const std::int64_t* dims, const char* difference) {
  if (tensor.rank != rank) return invalid_argument("%s has %zu dimensions; it must have %zu.", name, tensor.rank, rank);
  for (std::size_t i = 0; i < rank; ++i)
    if (tensor.dims[i] != dims[i])
      return invalid_argument(difference, name, static_cast<long long>(tensor.dims[i]), i, static_cast<long long>(dims[i]));
  return nullptr;
}

OrtStatus* read_common_inputs(const OrtKernelContext& context, const char* const* names, const char* difference,
                              Tensor (&inputs)[kFirstConstant]) {
  for (std::size_t i = 0; i < kFirstConstant; ++i) MRA_RETURN_IF_ERROR(read_input(context, i, names[i], &inputs[i]));
  for (std::size_t i = 0; i < kFirstConstant; ++i)
    MRA_RETURN_IF_ERROR(check_dims(inputs[i], names[i], i == kAttentionMask ? 2 : 3, inputs[kQuery].dims, difference));
  return nullptr;
}

}  // namespace mra::ort
