// Describes mra::YosoAttention to the plugin: attributes and sizes to params, and the constants that the attributes ask for.
#include "yoso_attention_plugin.h"

#include "yoso_attention/cuda/yoso_attention_cuda.h"

namespace mra::trt {
namespace {

using nvinfer1::PluginFieldType;

constexpr PluginFieldType kTypes[] = {PluginFieldType::kINT32, PluginFieldType::kINT32, PluginFieldType::kINT32,
                                      PluginFieldType::kINT32, PluginFieldType::kINT32, PluginFieldType::kINT32};
static_assert(sizeof(kYosoAttributeNames) / sizeof(kYosoAttributeNames[0]) == kMaxAttributes,
              "op_spec.h changed: so must make_params");
constexpr int kHashConstants = 4;  // in kYosoInputNames
constexpr int kConvWeight = 5;

YosoAttentionParams make_params(const Value* values, const Sizes& sizes) {
  YosoAttentionParams params;
  params.batch = sizes.batch;
  params.seq_len = sizes.seq_len;
  params.hidden_size = sizes.hidden_size;
  params.dtype = sizes.dtype;
  params.num_heads = values[0].integer;
  params.mode = values[1].integer;
  params.hash_code_len = values[2].integer;
  params.num_hash = values[3].integer;
  params.fast_hash = values[4].integer;
  params.conv_window = values[5].integer;
  return params;
}

bool check(const Value* values, const Sizes& sizes, char* message, std::size_t message_size) noexcept {
  return cuda_validate(make_params(values, sizes), message, message_size);
}

bool constant(const Value* values, const Sizes& sizes, int index, Constant* constant) noexcept {
  const YosoAttentionParams params = make_params(values, sizes);
  if (index == 0 && params.lsh()) {
    std::int64_t dims[4];
    *constant = {kYosoInputNames[kHashConstants], {}, true};
    constant->dims.nbDims = params.hash_constants_shape(dims);
    for (int i = 0; i < constant->dims.nbDims; ++i) constant->dims.d[i] = dims[i];
    return true;
  }
  if (index != (params.lsh() ? 1 : 0) || params.conv_window == 0) return false;
  *constant = {kYosoInputNames[kConvWeight], {}, false};
  constant->dims.nbDims = 2;
  constant->dims.d[0] = params.num_heads;
  constant->dims.d[1] = params.conv_window;
  return true;
}

std::size_t workspace_size(const Value* values, const Sizes& sizes) noexcept {
  return cuda_workspace_size(make_params(values, sizes));
}

void load(const Value* values, DType dtype) noexcept { cuda_load(make_params(values, {1, 1, 1, dtype})); }

cudaError_t enqueue(const Value* values, const Sizes& sizes, const void* const* inputs, void* context, void* workspace,
                    cudaStream_t stream) noexcept {
  YosoAttentionParams params = make_params(values, sizes);
  params.query = inputs[kQuery];
  params.key = inputs[kKey];
  params.value = inputs[kValue];
  params.attention_mask = static_cast<const std::int32_t*>(inputs[kAttentionMask]);
  int next = kFirstConstant;
  if (params.lsh()) params.hash_constants = static_cast<const std::int32_t*>(inputs[next++]);
  if (params.conv_window > 0) params.conv_weight = inputs[next];
  params.context = context;
  return yoso_attention_cuda(params, workspace, cuda_workspace_size(params), stream);
}

}  // namespace

const Operator kYosoAttention = {kYosoOpType, kYosoAttributeNames, kTypes, kMaxAttributes, check,
                                 constant,    workspace_size,      load,   enqueue};

}  // namespace mra::trt
