// Describes mra::Mra2Attention to the plugin: attributes and sizes to params.
#include "mra2_attention_plugin.h"

#include "mra2_attention/cuda/mra2_attention_cuda.h"

namespace mra::trt {
namespace {

using nvinfer1::PluginFieldType;

constexpr PluginFieldType kTypes[] = {PluginFieldType::kINT32, PluginFieldType::kINT32, PluginFieldType::kINT32,
                                      PluginFieldType::kINT32, PluginFieldType::kINT32, PluginFieldType::kFLOAT32};
static_assert(sizeof(kAttributeNames) / sizeof(kAttributeNames[0]) == kMaxAttributes, "op_spec.h changed: so must make_params");

Mra2AttentionParams make_params(const Value* values, const Sizes& sizes) {
  Mra2AttentionParams params;
  params.batch = sizes.batch;
  params.seq_len = sizes.seq_len;
  params.hidden_size = sizes.hidden_size;
  params.dtype = sizes.dtype;
  params.num_heads = values[0].integer;
  params.num_blocks = values[1].integer;
  params.approx_mode = values[2].integer;
  params.initial_prior_first_n_blocks = values[3].integer;
  params.initial_prior_diagonal_n_blocks = values[4].integer;
  params.scale = values[5].real;
  return params;
}

bool check(const Value* values, const Sizes& sizes, char* message, std::size_t message_size) noexcept {
  return cuda_validate(make_params(values, sizes), message, message_size);
}

bool constant(const Value*, const Sizes&, int, Constant*) noexcept { return false; }

std::size_t workspace_size(const Value* values, const Sizes& sizes) noexcept {
  return cuda_workspace_size(make_params(values, sizes));
}

void load(const Value* values, DType dtype) noexcept { cuda_load(make_params(values, {1, 1, 1, dtype})); }

cudaError_t enqueue(const Value* values, const Sizes& sizes, const void* const* inputs, void* context, void* workspace,
                    cudaStream_t stream) noexcept {
  Mra2AttentionParams params = make_params(values, sizes);
  params.query = inputs[kQuery];
  params.key = inputs[kKey];
  params.value = inputs[kValue];
  params.attention_mask = static_cast<const std::int32_t*>(inputs[kAttentionMask]);
  params.context = context;
  return mra2_attention_cuda(params, workspace, cuda_workspace_size(params), stream);
}

}  // namespace

const Operator kMra2Attention = {kOpType, kAttributeNames, kTypes, kMaxAttributes, check, constant, workspace_size, load, enqueue};

}  // namespace mra::trt
