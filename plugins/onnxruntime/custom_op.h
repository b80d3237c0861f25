// What every op is to ONNX Runtime, whatever operator it is and whatever provider runs it: the runtime's API, the op's table, and
// the reading of attributes and tensors into the operator's params struct.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "common/call.h"

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

// An error whose text is `message`; or formatted.
OrtStatus* invalid_argument(const char* message);
template <typename... Values>
OrtStatus* invalid_argument(const char* format, Values... values) {
  char message[kMessageSize];
  std::snprintf(message, sizeof(message), format, values...);
  return invalid_argument(message);
}

// Every operator has these inputs. Those that only some attributes ask for follow without gaps.
enum Input : std::size_t { kQuery, kKey, kValue, kAttentionMask, kFirstConstant };

// One op: a provider's kernel of an operator for one element type. ONNX Runtime merges the ops of one name into one schema.
struct CustomOp : OrtCustomOp {
  using Create = OrtStatusPtr(ORT_API_CALL*)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  using Compute = OrtStatusPtr(ORT_API_CALL*)(void*, OrtKernelContext*);
  using Destroy = void(ORT_API_CALL*)(void*);

  // `type` is the operator's name, `inputs` how many it has at most; `provider` as in GetExecutionProviderType: null is the CPU
  // provider.
  CustomOp(const char* type, std::size_t inputs, const char* provider, DType dtype, Create create, Compute compute,
           Destroy destroy);

  const char* type;
  std::size_t inputs;
  const char* provider;
  DType dtype;
};

// A provider's ops of an operator, one for each DType. F, which is CpuOp or CudaOp, has kProvider, the functions create, compute and
// destroy, and Operator. That has
//   Params           the params struct
//   kType, kInputs   as CustomOp
//   read_attributes  reads the attributes of a node and validates them, with check_attributes
//   read_tensors     completes params, which hold the attributes, with one call's sizes and pointers, validates them, and allocates
//                    the output
template <typename F>
const CustomOp (&ops_of())[3] {
  const auto op = [](DType dtype) {
    return CustomOp(F::Operator::kType, F::Operator::kInputs, F::kProvider, dtype, F::create, F::compute, F::destroy);
  };
  static const CustomOp ops[] = {op(DType::kFloat32), op(DType::kFloat16), op(DType::kBFloat16)};
  return ops;
}

// ---------------------------------------------------------------------------------------------------------------------
// Attributes.

// Reads integer attributes: `members` are those of `names`, in its order.
template <typename Params, std::size_t kCount>
OrtStatus* read_integers(const OrtKernelInfo& info, const char* const* names, std::int64_t Params::* const (&members)[kCount],
                         Params* params) {
  for (std::size_t i = 0; i < kCount; ++i)
    MRA_RETURN_IF_ERROR(api->KernelInfoGetAttribute_int64(&info, names[i], &(params->*members[i])));
  return nullptr;
}

// Validates the attributes with the smallest of sizes, so that a bad one fails where the session is made.
template <typename Params>
OrtStatus* check_attributes(const Params& params) {
  Params smallest = params;
  smallest.batch = 1;
  smallest.seq_len = 1;
  // A num_heads that no tensor can have is left for the call to refuse: its product must not overflow here.
  smallest.hidden_size = params.num_heads < (1 << 30) ? params.num_heads * kHeadDimMultiple : params.num_heads;
  char message[kMessageSize];
  return validate(smallest, message, sizeof(message)) ? nullptr : invalid_argument(message);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors.

struct Tensor {
  const void* data = nullptr;
  std::size_t rank = 0;
  std::int64_t dims[4] = {};  // where the rank is at most 4
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

ONNXTensorElementDataType element_type(DType dtype);

OrtStatus* read_input(const OrtKernelContext& context, std::size_t index, const char* name, Tensor* tensor);

// Refuses other dimensions than `dims`, of which there are `rank`. The `difference` is told with the tensor's name, its size, the
// dimension's number and the size that it must have.
OrtStatus* check_dims(const Tensor& tensor, const char* name, std::size_t rank, const std::int64_t* dims, const char* difference);

// The inputs that every operator has; the sizes that they share must be equal. `names` are those of all its inputs.
OrtStatus* read_common_inputs(const OrtKernelContext& context, const char* const* names, const char* difference,
                              Tensor (&inputs)[kFirstConstant]);

// Completes `params`, which holds the attributes, with one call's sizes and the pointers of read_common_inputs, and validates it.
template <typename Params>
OrtStatus* read_call(const OrtKernelContext& context, const char* const* names, const char* difference, Params* params) {
  Tensor inputs[kFirstConstant];
  MRA_RETURN_IF_ERROR(read_common_inputs(context, names, difference, inputs));
  params->query = inputs[kQuery].data;
  params->key = inputs[kKey].data;
  params->value = inputs[kValue].data;
  params->attention_mask = static_cast<const std::int32_t*>(inputs[kAttentionMask].data);
  params->batch = inputs[kQuery].dims[0];
  params->seq_len = inputs[kQuery].dims[1];
  params->hidden_size = inputs[kQuery].dims[2];
  char message[kMessageSize];
  return validate(*params, message, sizeof(message)) ? nullptr : invalid_argument(message);
}

// Allocates the output, which has the sizes of query.
template <typename Params>
OrtStatus* allocate_context(OrtKernelContext& context, Params* params) {
  const std::int64_t dims[] = {params->batch, params->seq_len, params->hidden_size};
  OrtValue* output = nullptr;
  MRA_RETURN_IF_ERROR(api->KernelContext_GetOutput(&context, 0, dims, 3, &output));
  return api->GetTensorMutableData(output, &params->context);
}

}  // namespace mra::ort
