// An attention operator as a TensorRT plugin: IPluginV3 and its creator, for any operator that an `Operator` describes. TensorRT's
// headers only; no TensorRT library is linked.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/call.h"

namespace mra::trt {

constexpr std::size_t kMessageSize = 512;
constexpr char kPluginVersion[] = "1";
static_assert(kOpVersion == 1);

enum Input : std::int32_t { kQuery = 0, kKey, kValue, kAttentionMask, kFirstConstant, kMaxInputs = kFirstConstant + 2 };
enum Output : std::int32_t { kContext = 0, kNumOutputs };
constexpr int kMaxAttributes = 6;

// An attribute as TensorRT carries it. Integers beyond int32 become its maximum: to the operators that means the same.
union Value {
  std::int32_t integer;
  float real;
};

struct Sizes {
  std::int64_t batch;
  std::int64_t seq_len;
  std::int64_t hidden_size;
  DType dtype;
};

// An input after the mask; of type int32, or of the query's.
struct Constant {
  const char* name;
  nvinfer1::Dims dims;
  bool integer;
};

// What one operator is to TensorRT. The values are those of its attributes, in its own order; num_heads comes first.
struct Operator {
  const char* type;
  const char* const* attribute_names;
  const nvinfer1::PluginFieldType* attribute_types;  // kINT32 or kFLOAT32
  int num_attributes;

  // As the operator's own cuda_validate().
  bool (*validate)(const Value* values, const Sizes& sizes, char* message, std::size_t message_size) noexcept;
  // Describes constant number `index`; false if there are fewer.
  bool (*constant)(const Value* values, const Sizes& sizes, int index, Constant* constant) noexcept;
  // The others get values and sizes that validate() accepts.
  std::size_t (*workspace_size)(const Value* values, const Sizes& sizes) noexcept;
  // Loads the kernels for tensors of this type. What keeps it from that, enqueue will meet and say.
  void (*load)(const Value* values, DType dtype) noexcept;
  cudaError_t (*enqueue)(const Value* values, const Sizes& sizes, const void* const* inputs, void* context, void* workspace,
                         cudaStream_t stream) noexcept;
};

// Writes to the logger of TensorRT, or to standard error where there is none.
void log_error(const char* message) noexcept;
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Immutable once made, so that any number of contexts and streams may use it at once.
class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::v_1_0::IPluginV3OneCore,
                              public nvinfer1::v_1_0::IPluginV3OneBuild,
                              public nvinfer1::v_1_0::IPluginV3OneRuntime {
 public:
  AttentionPlugin(const Operator& op, const Value (&values)[kMaxAttributes], const char* name_space) noexcept;
  AttentionPlugin(const AttentionPlugin&) = delete;
  AttentionPlugin& operator=(const AttentionPlugin&) = delete;

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                               const nvinfer1::DynamicPluginTensorDesc* outputs, std::int32_t num_outputs) noexcept override;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t num_outputs, const nvinfer1::DataType* inputs,
                                  std::int32_t num_inputs) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t num_inputs, const nvinfer1::DimsExprs* shape_inputs,
                               std::int32_t num_shape_inputs, nvinfer1::DimsExprs* outputs, std::int32_t num_outputs,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, std::int32_t num_inputs,
                                 std::int32_t num_outputs) noexcept override;
  std::int32_t getNbOutputs() const noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                               const nvinfer1::DynamicPluginTensorDesc* outputs, std::int32_t num_outputs) const noexcept override;
  const char* getTimingCacheID() noexcept override;
  const char* getMetadataString() noexcept override;

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t num_inputs,
                             const nvinfer1::PluginTensorDesc* outputs, std::int32_t num_outputs) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                       const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  std::int32_t num_inputs() const noexcept;
  bool counts_match(std::int32_t inputs, std::int32_t outputs) const noexcept;
  // The sizes of these inputs. Logs and returns false where they or the constants' shapes are refused.
  bool read_sizes(const nvinfer1::Dims* inputs, nvinfer1::DataType type, Sizes* sizes) const noexcept;

  const Operator& operator_;
  Value values_[kMaxAttributes];
  const char* namespace_;  // of the creator; static
  nvinfer1::PluginField fields_[kMaxAttributes];
  nvinfer1::PluginFieldCollection collection_;
  char description_[512];
};

class AttentionCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  AttentionCreator(const Operator& op, const char* name_space) noexcept;
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  const Operator& operator_;
  const char* namespace_;
  nvinfer1::PluginField fields_[kMaxAttributes];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace mra::trt
