// Translates between TensorRT and the operators: fields to attributes, tensor descriptions to sizes, cudaError_t to log messages.
#include "attention_plugin.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>

#include "common/cuda/explain.h"
#include "logger_slot.h"

namespace mra::trt {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

template <typename... Values>
void log_formatted(const char* format, Values... values) noexcept {
  char message[2 * kMessageSize];  // a message of validate(), and what is put around it
  std::snprintf(message, sizeof(message), format, values...);
  log_error(message);
}

std::int32_t clamp(std::int64_t value) {
  constexpr std::int64_t low = std::numeric_limits<std::int32_t>::min();
  constexpr std::int64_t high = std::numeric_limits<std::int32_t>::max();
  return static_cast<std::int32_t>(value < low ? low : value > high ? high : value);
}

// Reads one field. False if its type or length is not one that TensorRT's parser or getFieldsToSerialize gives.
bool read_field(const PluginField& field, PluginFieldType wanted, Value* value) {
  if (field.data == nullptr || field.length != 1) return false;
  if (wanted == PluginFieldType::kINT32) {
    std::int64_t wide = 0;
    if (field.type == PluginFieldType::kINT32)
      wide = *static_cast<const std::int32_t*>(field.data);
    else if (field.type == PluginFieldType::kINT64)
      std::memcpy(&wide, field.data, sizeof(wide));
    else
      return false;
    value->integer = clamp(wide);
    return true;
  }
  if (field.type == PluginFieldType::kFLOAT64) {
    double wide = 0;
    std::memcpy(&wide, field.data, sizeof(wide));
    value->real = static_cast<float>(wide);
    return true;
  }
  if (field.type != PluginFieldType::kFLOAT32) return false;
  std::memcpy(&value->real, field.data, sizeof(float));
  return true;
}

bool to_dtype(DataType type, DType* dtype) {
  if (type == DataType::kFLOAT)
    *dtype = DType::kFloat32;
  else if (type == DataType::kHALF)
    *dtype = DType::kFloat16;
  else if (type == DataType::kBF16)
    *dtype = DType::kBFloat16;
  else
    return false;
  return true;
}

bool is_shape(const nvinfer1::Dims& dims, std::int32_t rank, const nvinfer1::Dims& expected) {
  if (dims.nbDims != rank) return false;
  for (std::int32_t i = 0; i < rank; ++i)
    if (dims.d[i] != expected.d[i]) return false;
  return true;
}

// "[2, 512, 768]", for messages.
struct Text {
  char text[96];
  explicit Text(const nvinfer1::Dims& dims) {
    std::size_t used = static_cast<std::size_t>(std::snprintf(text, sizeof(text), "["));
    for (std::int32_t i = 0; i < dims.nbDims && i < nvinfer1::Dims::MAX_DIMS && used + 2 < sizeof(text); ++i)
      used += static_cast<std::size_t>(
          std::snprintf(text + used, sizeof(text) - used, "%s%" PRId64, i ? ", " : "", static_cast<std::int64_t>(dims.d[i])));
    if (used + 2 < sizeof(text)) std::snprintf(text + used, sizeof(text) - used, "]");
  }
};

// A list with commas that is cut where it gets too long; for messages.
class List {
 public:
  template <typename... Values>
  void add(const char* format, Values... values) {
    if (used_ < sizeof(text_)) used_ += put(used_ == 0 ? "" : ", ");
    if (used_ < sizeof(text_)) used_ += put(format, values...);
  }
  const char* text() const { return text_; }

 private:
  template <typename... Values>
  std::size_t put(const char* format, Values... values) {
    return static_cast<std::size_t>(std::snprintf(text_ + used_, sizeof(text_) - used_, format, values...));
  }
  char text_[384] = "";
  std::size_t used_ = 0;
};

// A TensorRT library of this process. One plugin serves several versions, so it goes by the library's and not by the headers of its own
// build.
struct TensorRtLibrary {
  nvinfer1::ILogger* (*get_logger)();
  int slot;  // logger_slot() of its version
};

struct LoadedPaths {
  char path[4][1024];
  int count;
};

int collect_path(dl_phdr_info* info, std::size_t, void* data) {
  auto* paths = static_cast<LoadedPaths*>(data);
  const char* slash = info->dlpi_name != nullptr ? std::strrchr(info->dlpi_name, '/') : nullptr;
  if (slash == nullptr || paths->count == 4) return 0;
  for (const char* name : {"/libnvinfer.so", "/libtensorrt_rtx.so", "/libnvinfer_lean.so", "/libnvinfer_dispatch.so"})
    if (std::strncmp(slash, name, std::strlen(name)) == 0) {
      std::snprintf(paths->path[paths->count++], sizeof(paths->path[0]), "%s", info->dlpi_name);
      return 0;
    }
  return 0;
}

int loaded_libraries(TensorRtLibrary (&libraries)[4]) {
  LoadedPaths paths{};
  dl_iterate_phdr(collect_path, &paths);
  int count = 0;
  for (int i = 0; i < paths.count; ++i) {
    void* handle = dlopen(paths.path[i], RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    auto* get_logger = reinterpret_cast<nvinfer1::ILogger* (*)()>(dlsym(handle, "getLogger"));
    auto* get_version = reinterpret_cast<std::int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
    dlclose(handle);  // it stays loaded for whoever loaded it
    bool known = get_logger == nullptr || get_version == nullptr;
    for (int j = 0; j < count; ++j) known |= libraries[j].get_logger == get_logger;  // under another name
    if (known) continue;
    const bool rtx = std::strstr(paths.path[i], "/libtensorrt_rtx.so") != nullptr;
    libraries[count++] = {get_logger, logger_slot(rtx, get_version())};
  }
  return count;
}

void log_to(nvinfer1::ILogger* logger, int slot, const char* message) {
  using Log = void (*)(nvinfer1::ILogger*, std::int32_t, const char*);
  const Log* functions = *reinterpret_cast<const Log* const*>(logger);
  functions[slot](logger, static_cast<std::int32_t>(nvinfer1::ILogger::Severity::kERROR), message);
}

// True once some logger has the message. TensorRT gives its finder the right logger only for plugins that it unpacks from an engine;
// for others each loaded library is asked for its own, if its logger is known.
bool log_to_tensorrt(const char* message) {
  TensorRtLibrary libraries[4];
  const int count = loaded_libraries(libraries);
  bool one_layout = true;
  for (int i = 0; i < count; ++i) one_layout &= libraries[i].slot >= 0 && libraries[i].slot == libraries[0].slot;
  if (nvinfer1::ILoggerFinder* finder = one_layout ? logger_finder.load() : nullptr)
    if (nvinfer1::ILogger* logger = finder->findLogger()) {
      if (count == 0)
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);  // not TensorRT's: built with these headers
      else
        log_to(logger, libraries[0].slot, message);
      return true;
    }
  bool logged = false;
  for (int i = 0; i < count; ++i)
    if (nvinfer1::ILogger* logger = libraries[i].slot >= 0 ? libraries[i].get_logger() : nullptr) {
      log_to(logger, libraries[i].slot, message);
      logged = true;
    }
  return logged;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

void log_error(const char* message) noexcept {
  bool logged = false;
  try {
    logged = log_to_tensorrt(message);
  } catch (...) {
    logged = false;
  }
  if (!logged) std::fprintf(stderr, "%s\n", message);
}

AttentionPlugin::AttentionPlugin(const Operator& op, const Value (&values)[kMaxAttributes], const char* name_space) noexcept
    : operator_(op), namespace_(name_space), collection_{op.num_attributes, fields_} {
  std::memcpy(values_, values, sizeof(values_));
  List described;
  for (int i = 0; i < op.num_attributes; ++i) {
    fields_[i] = PluginField(op.attribute_names[i], &values_[i], op.attribute_types[i], 1);
    if (op.attribute_types[i] == PluginFieldType::kINT32)
      described.add("\"%s\": %d", op.attribute_names[i], values_[i].integer);
    else
      described.add("\"%s\": %.9g", op.attribute_names[i], static_cast<double>(values_[i].real));
  }
  std::snprintf(description_, sizeof(description_), "{\"op\": \"%s::%s\", \"version\": %d, %s}", kOpDomain, op.type, kOpVersion,
                described.text());
}

nvinfer1::IPluginCapability* AttentionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::v_1_0::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::v_1_0::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::v_1_0::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* AttentionPlugin::clone() noexcept {
  auto* copy = new (std::nothrow) AttentionPlugin(operator_, values_, namespace_);
  if (copy == nullptr) log_formatted("%s: out of memory while cloning the plugin.", operator_.type);
  return copy;
}

const char* AttentionPlugin::getPluginName() const noexcept { return operator_.type; }
const char* AttentionPlugin::getPluginVersion() const noexcept { return kPluginVersion; }
const char* AttentionPlugin::getPluginNamespace() const noexcept { return namespace_; }

std::int32_t AttentionPlugin::num_inputs() const noexcept {
  Sizes smallest{1, 1, std::int64_t{values_[0].integer} * kHeadDimMultiple, DType::kFloat32};
  Constant constant;
  std::int32_t count = kFirstConstant;
  while (count < kMaxInputs && operator_.constant(values_, smallest, count - kFirstConstant, &constant)) ++count;
  return count;
}

bool AttentionPlugin::counts_match(std::int32_t inputs, std::int32_t outputs) const noexcept {
  if (inputs == num_inputs() && outputs == kNumOutputs) return true;
  Sizes smallest{1, 1, std::int64_t{values_[0].integer} * kHeadDimMultiple, DType::kFloat32};
  List names;
  for (int i = 0; i < kFirstConstant; ++i) names.add("%s", kInputNames[i]);
  Constant constant;
  for (int i = 0; operator_.constant(values_, smallest, i, &constant); ++i) names.add("%s", constant.name);
  log_formatted("%s: %d inputs and %d outputs; it has %d inputs (%s) and %d output.", operator_.type, inputs, outputs, num_inputs(),
                names.text(), static_cast<int>(kNumOutputs));
  return false;
}

bool AttentionPlugin::read_sizes(const nvinfer1::Dims* inputs, DataType type, Sizes* sizes) const noexcept {
  const nvinfer1::Dims& query = inputs[kQuery];
  if (query.nbDims != 3 || !is_shape(inputs[kKey], 3, query) || !is_shape(inputs[kValue], 3, query)) {
    log_formatted("%s: query %s, key %s and value %s must have one shape, [batch, seq_len, num_heads * head_dim].", operator_.type,
                  Text(query).text, Text(inputs[kKey]).text, Text(inputs[kValue]).text);
    return false;
  }
  if (!is_shape(inputs[kAttentionMask], 2, query)) {
    log_formatted("%s: attention_mask %s must be [batch, seq_len] of query %s.", operator_.type, Text(inputs[kAttentionMask]).text,
                  Text(query).text);
    return false;
  }
  if (!to_dtype(type, &sizes->dtype)) {
    log_formatted("%s: data type %d must be float, half or bf16.", operator_.type, static_cast<int>(type));
    return false;
  }
  sizes->batch = query.d[0];
  sizes->seq_len = query.d[1];
  sizes->hidden_size = query.d[2];
  char message[kMessageSize];
  if (!operator_.validate(values_, *sizes, message, sizeof(message))) {
    log_formatted("%s: %s", operator_.type, message);
    return false;
  }
  Constant constant;
  for (int i = 0; operator_.constant(values_, *sizes, i, &constant); ++i) {
    const nvinfer1::Dims& given = inputs[kFirstConstant + i];
    if (is_shape(given, constant.dims.nbDims, constant.dims)) continue;
    log_formatted("%s: %s %s must be %s for these attributes. Export the model again.", operator_.type, constant.name,
                  Text(given).text, Text(constant.dims).text);
    return false;
  }
  return true;
}

std::int32_t AttentionPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                                              const nvinfer1::DynamicPluginTensorDesc*, std::int32_t num_outputs) noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  // The profile's ends: what is right for both is right between them.
  for (const bool largest : {false, true}) {
    nvinfer1::Dims dims[kMaxInputs];
    for (std::int32_t i = 0; i < num_inputs; ++i) dims[i] = largest ? inputs[i].max : inputs[i].min;
    Sizes sizes;
    if (!read_sizes(dims, inputs[kQuery].desc.type, &sizes)) return -1;
  }
  return 0;
}

std::int32_t AttentionPlugin::getOutputDataTypes(DataType* outputs, std::int32_t num_outputs, const DataType* inputs,
                                                 std::int32_t num_inputs) const noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  outputs[kContext] = inputs[kQuery];
  return 0;
}

std::int32_t AttentionPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t num_inputs,
                                              const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                              std::int32_t num_outputs, nvinfer1::IExprBuilder&) noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  outputs[kContext] = inputs[kQuery];
  return 0;
}

bool AttentionPlugin::supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                                std::int32_t num_inputs, std::int32_t num_outputs) noexcept {
  if (num_inputs != this->num_inputs() || num_outputs != kNumOutputs || position < 0 || position >= num_inputs + num_outputs)
    return false;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  DType dtype;
  if (position == kQuery) return to_dtype(tensor.type, &dtype);
  bool integer = position == kAttentionMask;
  if (position >= kFirstConstant && position < num_inputs) {
    Sizes smallest{1, 1, std::int64_t{values_[0].integer} * kHeadDimMultiple, DType::kFloat32};
    Constant constant;
    integer = operator_.constant(values_, smallest, position - kFirstConstant, &constant) && constant.integer;
  }
  return tensor.type == (integer ? DataType::kINT32 : tensors[kQuery].desc.type);
}

std::int32_t AttentionPlugin::getNbOutputs() const noexcept { return kNumOutputs; }

std::size_t AttentionPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                                              const nvinfer1::DynamicPluginTensorDesc*, std::int32_t num_outputs) const noexcept {
  if (!counts_match(num_inputs, num_outputs)) return 0;
  nvinfer1::Dims dims[kMaxInputs];
  for (std::int32_t i = 0; i < num_inputs; ++i) dims[i] = inputs[i].max;
  Sizes sizes;
  return read_sizes(dims, inputs[kQuery].desc.type, &sizes) ? operator_.workspace_size(values_, sizes) : 0;
}

const char* AttentionPlugin::getTimingCacheID() noexcept { return description_; }
const char* AttentionPlugin::getMetadataString() noexcept { return description_; }

std::int32_t AttentionPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t num_inputs,
                                            const nvinfer1::PluginTensorDesc*, std::int32_t num_outputs) noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  nvinfer1::Dims dims[kMaxInputs];
  for (std::int32_t i = 0; i < num_inputs; ++i) dims[i] = inputs[i].dims;
  Sizes sizes;
  return read_sizes(dims, inputs[kQuery].type, &sizes) ? 0 : -1;
}

std::int32_t AttentionPlugin::enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc*,
                                      const void* const* inputs, void* const* outputs, void* workspace,
                                      cudaStream_t stream) noexcept {
  nvinfer1::Dims dims[kMaxInputs];
  for (std::int32_t i = 0; i < num_inputs(); ++i) dims[i] = input_descs[i].dims;
  Sizes sizes;
  if (!read_sizes(dims, input_descs[kQuery].type, &sizes)) return -1;
  // TensorRT gives the workspace of the profile's maximum, which is enough for every smaller size.
  const cudaError_t error = operator_.enqueue(values_, sizes, inputs, outputs[kContext], workspace, stream);
  if (error == cudaSuccess) return 0;
  List attributes;
  for (int i = 0; i < operator_.num_attributes; ++i)
    if (operator_.attribute_types[i] == PluginFieldType::kINT32)
      attributes.add("%s=%d", operator_.attribute_names[i], values_[i].integer);
  log_formatted("%s: %s (%s) at batch=%" PRId64 ", seq_len=%" PRId64 ", hidden_size=%" PRId64
                ", %s. The plugin holds code for GPU architectures %s.%s",
                operator_.type, cudaGetErrorString(error), cudaGetErrorName(error), sizes.batch, sizes.seq_len, sizes.hidden_size,
                attributes.text(), MRA_CUDA_ARCHITECTURES, cuda::Explanation(error).text());
  return -1;
}

nvinfer1::IPluginV3* AttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  // Now, and not in a stream that may be captured. The type of the tensors is not known yet.
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) operator_.load(values_, dtype);
  return clone();
}

const nvinfer1::PluginFieldCollection* AttentionPlugin::getFieldsToSerialize() noexcept { return &collection_; }

AttentionCreator::AttentionCreator(const Operator& op, const char* name_space) noexcept
    : operator_(op), namespace_(name_space), collection_{op.num_attributes, fields_} {
  for (int i = 0; i < op.num_attributes; ++i) fields_[i] = PluginField(op.attribute_names[i], nullptr, op.attribute_types[i], 1);
}

nvinfer1::IPluginV3* AttentionCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                                    nvinfer1::TensorRTPhase) noexcept {
  const char* node = name != nullptr ? name : "";
  Value values[kMaxAttributes] = {};
  bool found[kMaxAttributes] = {};
  for (std::int32_t f = 0; fields != nullptr && f < fields->nbFields; ++f) {
    const PluginField& field = fields->fields[f];
    for (int i = 0; i < operator_.num_attributes; ++i) {
      if (field.name == nullptr || std::strcmp(field.name, operator_.attribute_names[i]) != 0) continue;
      if (!read_field(field, operator_.attribute_types[i], &values[i])) {
        log_formatted("%s '%s': attribute %s has field type %d and length %d; it must be one %s.", operator_.type, node,
                      operator_.attribute_names[i], static_cast<int>(field.type), field.length,
                      operator_.attribute_types[i] == PluginFieldType::kINT32 ? "int" : "float");
        return nullptr;
      }
      found[i] = true;
    }
  }
  for (int i = 0; i < operator_.num_attributes; ++i)
    if (!found[i]) {
      log_formatted("%s '%s': attribute %s is missing. Export the model again.", operator_.type, node,
                    operator_.attribute_names[i]);
      return nullptr;
    }
  // The attributes alone, with the smallest of sizes, so that a bad one fails where the network is made. num_heads comes first.
  const Sizes smallest{1, 1, std::int64_t{values[0].integer} * kHeadDimMultiple, DType::kFloat32};
  char message[kMessageSize];
  if (!operator_.validate(values, smallest, message, sizeof(message))) {
    log_formatted("%s '%s': %s", operator_.type, node, message);
    return nullptr;
  }
  auto* plugin = new (std::nothrow) AttentionPlugin(operator_, values, namespace_);
  if (plugin == nullptr) log_formatted("%s: out of memory while making the plugin.", operator_.type);
  return plugin;
}

const nvinfer1::PluginFieldCollection* AttentionCreator::getFieldNames() noexcept { return &collection_; }
const char* AttentionCreator::getPluginName() const noexcept { return operator_.type; }
const char* AttentionCreator::getPluginVersion() const noexcept { return kPluginVersion; }
const char* AttentionCreator::getPluginNamespace() const noexcept { return namespace_; }

}  // namespace mra::trt
