// The operator as a TensorRT plugin: IPluginV3 and its creator. TensorRT's headers only; no TensorRT library is linked.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "mra2_attention_cuda.h"

namespace mra::trt {

constexpr std::size_t kMessageSize = 512;
constexpr char kPluginVersion[] = "1";
static_assert(kOpVersion == 1);

enum Input : std::int32_t { kQuery = 0, kKey, kValue, kAttentionMask, kNumInputs };
enum Output : std::int32_t { kContext = 0, kNumOutputs };

// The attributes as TensorRT carries them. Block counts beyond int32 mean the same as its maximum: a sequence has fewer.
struct Attributes {
  std::int32_t num_heads;
  std::int32_t num_blocks;
  std::int32_t approx_mode;
  std::int32_t initial_prior_first_n_blocks;
  std::int32_t initial_prior_diagonal_n_blocks;
  float scale;
};

// Writes to the logger of TensorRT, or to standard error where there is none.
void log_error(const char* message) noexcept;
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Immutable once made, so that any number of contexts and streams may use it at once.
class Mra2AttentionPlugin final : public nvinfer1::IPluginV3,
                                  public nvinfer1::v_1_0::IPluginV3OneCore,
                                  public nvinfer1::v_1_0::IPluginV3OneBuild,
                                  public nvinfer1::v_1_0::IPluginV3OneRuntime {
 public:
  Mra2AttentionPlugin(const Attributes& attributes, const char* name_space) noexcept;
  Mra2AttentionPlugin(const Mra2AttentionPlugin&) = delete;
  Mra2AttentionPlugin& operator=(const Mra2AttentionPlugin&) = delete;

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
  // The operator's params for these sizes, attributes included. Logs and returns false where they are refused.
  bool make_params(const nvinfer1::Dims* inputs, nvinfer1::DataType type, Mra2AttentionParams* params) const noexcept;

  Attributes attributes_;
  const char* namespace_;  // of the creator; static
  nvinfer1::PluginField fields_[6];
  nvinfer1::PluginFieldCollection collection_;
  char description_[256];
};

class Mra2AttentionCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Mra2AttentionCreator(const char* name_space) noexcept;
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  const char* namespace_;
  nvinfer1::PluginField fields_[6];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace mra::trt
