// The translation between ONNX Runtime and the params struct, shared by all providers.
#include "mra2_attention_op.h"

#include <cstdio>

namespace mra::ort {
namespace {

enum Input : std::size_t { kQuery, kKey, kValue, kAttentionMask, kInputCount };
enum Attribute { kNumHeads, kNumBlocks, kApproxMode, kFirstN, kDiagonalN, kScale };

constexpr ONNXTensorElementDataType kElementTypes[] = {  // by DType
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};

ONNXTensorElementDataType element_type(const OrtCustomOp* op) {
  return kElementTypes[static_cast<int>(static_cast<const Op*>(op)->dtype)];
}

// An input's data, and its dimensions: `rank` of them.
OrtStatus* read_input(const OrtKernelContext& context, Input index, std::size_t rank, const void** data, std::int64_t* dims) {
  const OrtValue* value = nullptr;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetInput(&context, index, &value));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  MRA_RETURN_IF_ERROR(api->GetTensorTypeAndShape(value, &info));
  std::size_t actual = 0;
  OrtStatus* status = api->GetDimensionsCount(info, &actual);
  if (status == nullptr && actual == rank) status = api->GetDimensions(info, dims, rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  MRA_RETURN_IF_ERROR(status);
  if (actual != rank) {
    char message[kMessageSize];
    std::snprintf(message, sizeof(message), "%s has %zu dimensions; it must have %zu.", kInputNames[index], actual, rank);
    return invalid_argument(message);
  }
  return api->GetTensorMutableData(const_cast<OrtValue*>(value), const_cast<void**>(data));
}

OrtStatus* check_dims(Input index, std::size_t rank, const std::int64_t* dims, const std::int64_t* query_dims) {
  for (std::size_t i = 0; i < rank; ++i) {
    if (dims[i] == query_dims[i]) continue;
    char message[kMessageSize];
    std::snprintf(message, sizeof(message), "%s has size %lld in dimension %zu, and query has %lld; they must be equal.",
                  kInputNames[index], static_cast<long long>(dims[i]), i, static_cast<long long>(query_dims[i]));
    return invalid_argument(message);
  }
  return nullptr;
}

OrtStatusPtr ORT_API_CALL infer_shape(const OrtCustomOp*, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* query = nullptr;  // stays the context's
  MRA_RETURN_IF_ERROR(api->ShapeInferContext_GetInputTypeShape(context, kQuery, &query));
  return api->ShapeInferContext_SetOutputTypeShape(context, 0, query);
}

}  // namespace

const OrtApi* api = nullptr;

OrtStatus* invalid_argument(const char* message) { return api->CreateStatus(ORT_INVALID_ARGUMENT, message); }

void run_in_session_pool(void* pool, void (*task)(void*, std::size_t), void* argument, std::size_t count) {
  // As many batches as tasks: threads take the next one when they are free, for tasks differ in length.
  OrtStatus* status = api->KernelContext_ParallelFor(static_cast<OrtKernelContext*>(pool), task, count, count, argument);
  if (status == nullptr) return;
  // It fails only where the runtime was built without it, before any task has run.
  api->ReleaseStatus(status);
  for (std::size_t i = 0; i < count; ++i) task(argument, i);
}

OrtStatus* read_attributes(const OrtKernelInfo& info, DType dtype, Mra2AttentionParams* params) {
  const auto read = [&](Attribute attribute, std::int64_t* value) {
    return api->KernelInfoGetAttribute_int64(&info, kAttributeNames[attribute], value);
  };
  MRA_RETURN_IF_ERROR(read(kNumHeads, &params->num_heads));
  MRA_RETURN_IF_ERROR(read(kNumBlocks, &params->num_blocks));
  MRA_RETURN_IF_ERROR(read(kApproxMode, &params->approx_mode));
  MRA_RETURN_IF_ERROR(read(kFirstN, &params->initial_prior_first_n_blocks));
  MRA_RETURN_IF_ERROR(read(kDiagonalN, &params->initial_prior_diagonal_n_blocks));
  MRA_RETURN_IF_ERROR(api->KernelInfoGetAttribute_float(&info, kAttributeNames[kScale], &params->scale));
  params->dtype = dtype;

  Mra2AttentionParams smallest = *params;
  smallest.batch = 1;
  smallest.seq_len = 1;
  // A num_heads that no tensor can have is left for the call to refuse: its product must not overflow here.
  smallest.hidden_size = params->num_heads < (1 << 30) ? params->num_heads * kHeadDimMultiple : params->num_heads;
  char message[kMessageSize];
  return validate(smallest, message, sizeof(message)) ? nullptr : invalid_argument(message);
}

OrtStatus* read_tensors(OrtKernelContext& context, Mra2AttentionParams* params) {
  std::int64_t query_dims[3], dims[3];
  MRA_RETURN_IF_ERROR(read_input(context, kQuery, 3, &params->query, query_dims));
  MRA_RETURN_IF_ERROR(read_input(context, kKey, 3, &params->key, dims));
  MRA_RETURN_IF_ERROR(check_dims(kKey, 3, dims, query_dims));
  MRA_RETURN_IF_ERROR(read_input(context, kValue, 3, &params->value, dims));
  MRA_RETURN_IF_ERROR(check_dims(kValue, 3, dims, query_dims));
  const void* mask = nullptr;
  MRA_RETURN_IF_ERROR(read_input(context, kAttentionMask, 2, &mask, dims));
  MRA_RETURN_IF_ERROR(check_dims(kAttentionMask, 2, dims, query_dims));
  params->attention_mask = static_cast<const std::int32_t*>(mask);
  params->batch = query_dims[0];
  params->seq_len = query_dims[1];
  params->hidden_size = query_dims[2];
  char message[kMessageSize];
  if (!validate(*params, message, sizeof(message))) return invalid_argument(message);
  OrtValue* output = nullptr;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetOutput(&context, 0, query_dims, 3, &output));
  return api->GetTensorMutableData(output, &params->context);
}

Op::Op(const char* op_provider, DType op_dtype, Create create, Compute compute, Destroy destroy)
    : OrtCustomOp{}, provider(op_provider), dtype(op_dtype) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp*) { return kOpType; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->provider; };
  GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return kInputCount; };
  GetInputType = [](const OrtCustomOp* op, std::size_t index) {
    return index == kAttentionMask ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : element_type(op);
  };
  GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  GetOutputType = [](const OrtCustomOp* op, std::size_t) { return element_type(op); };
  GetInputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
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
