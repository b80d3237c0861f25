// Translates between TensorRT and the operator: fields to attributes, tensor descriptions to sizes, cudaError_t to log messages.
#include "mra2_attention_plugin.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>

namespace mra::trt {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

constexpr PluginFieldType kFieldTypes[] = {PluginFieldType::kINT32, PluginFieldType::kINT32, PluginFieldType::kINT32,
                                           PluginFieldType::kINT32, PluginFieldType::kINT32, PluginFieldType::kFLOAT32};
constexpr int kNumFields = 6;
static_assert(sizeof(kAttributeNames) / sizeof(kAttributeNames[0]) == kNumFields, "op_spec.h changed: so must Attributes");

// The member of `attributes` that kAttributeNames[i] names.
void* member(Attributes& attributes, int i) {
  void* members[] = {&attributes.num_heads, &attributes.num_blocks, &attributes.approx_mode, &attributes.initial_prior_first_n_blocks,
                     &attributes.initial_prior_diagonal_n_blocks, &attributes.scale};
  return members[i];
}

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

// Reads one field into its member. False if its type or length is not one that TensorRT's parser or getFieldsToSerialize gives.
bool read_field(const PluginField& field, int i, Attributes& attributes) {
  if (field.data == nullptr || field.length != 1) return false;
  if (kFieldTypes[i] == PluginFieldType::kINT32) {
    std::int64_t value = 0;
    if (field.type == PluginFieldType::kINT32)
      value = *static_cast<const std::int32_t*>(field.data);
    else if (field.type == PluginFieldType::kINT64)
      std::memcpy(&value, field.data, sizeof(value));
    else
      return false;
    *static_cast<std::int32_t*>(member(attributes, i)) = clamp(value);
    return true;
  }
  if (field.type == PluginFieldType::kFLOAT64) {
    double value = 0;
    std::memcpy(&value, field.data, sizeof(value));
    *static_cast<float*>(member(attributes, i)) = static_cast<float>(value);
    return true;
  }
  if (field.type != PluginFieldType::kFLOAT32) return false;
  std::memcpy(member(attributes, i), field.data, sizeof(float));
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

bool counts_match(std::int32_t num_inputs, std::int32_t num_outputs) noexcept {
  if (num_inputs == kNumInputs && num_outputs == kNumOutputs) return true;
  log_formatted("Mra2Attention: %d inputs and %d outputs; it has %d inputs (query, key, value, attention_mask) and %d output.", num_inputs,
                num_outputs, static_cast<int>(kNumInputs), static_cast<int>(kNumOutputs));
  return false;
}

// A TensorRT library of this process. Up to TensorRT 10 and TensorRT-RTX 1.4 ILogger has no versioned base: log() is its first virtual
// function, and the fifth since. One plugin serves both, so it goes by the library's version and not by the headers of its own build.
struct TensorRtLibrary {
  nvinfer1::ILogger* (*get_logger)();
  bool versioned_logger;
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
    libraries[count++] = {get_logger, get_version() >= (rtx ? 10500 : 110000)};
  }
  return count;
}

void log_to(nvinfer1::ILogger* logger, bool versioned, const char* message) {
  using Log = void (*)(nvinfer1::ILogger*, std::int32_t, const char*);
  const Log* functions = *reinterpret_cast<const Log* const*>(logger);
  functions[versioned ? 4 : 0](logger, static_cast<std::int32_t>(nvinfer1::ILogger::Severity::kERROR), message);
}

// True once some logger has the message. TensorRT gives its finder the right logger only for plugins that it unpacks from an engine;
// for others each loaded library is asked for its own.
bool log_to_tensorrt(const char* message) {
  TensorRtLibrary libraries[4];
  const int count = loaded_libraries(libraries);
  bool one_layout = true;
  for (int i = 1; i < count; ++i) one_layout &= libraries[i].versioned_logger == libraries[0].versioned_logger;
  if (nvinfer1::ILoggerFinder* finder = one_layout ? logger_finder.load() : nullptr)
    if (nvinfer1::ILogger* logger = finder->findLogger()) {
      if (count == 0)
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);  // not TensorRT's: built with these headers
      else
        log_to(logger, libraries[0].versioned_logger, message);
      return true;
    }
  bool logged = false;
  for (int i = 0; i < count; ++i)
    if (nvinfer1::ILogger* logger = libraries[i].get_logger()) {
      log_to(logger, libraries[i].versioned_logger, message);
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

Mra2AttentionPlugin::Mra2AttentionPlugin(const Attributes& attributes, const char* name_space) noexcept
    : attributes_(attributes), namespace_(name_space), collection_{kNumFields, fields_} {
  for (int i = 0; i < kNumFields; ++i) fields_[i] = PluginField(kAttributeNames[i], member(attributes_, i), kFieldTypes[i], 1);
  std::snprintf(description_, sizeof(description_),
                "{\"op\": \"%s::%s\", \"version\": %d, \"num_heads\": %d, \"num_blocks\": %d, \"approx_mode\": %d, "
                "\"initial_prior_first_n_blocks\": %d, \"initial_prior_diagonal_n_blocks\": %d, \"scale\": %.9g}",
                kOpDomain, kOpType, kOpVersion, attributes_.num_heads, attributes_.num_blocks, attributes_.approx_mode,
                attributes_.initial_prior_first_n_blocks, attributes_.initial_prior_diagonal_n_blocks,
                static_cast<double>(attributes_.scale));
}

nvinfer1::IPluginCapability* Mra2AttentionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
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

nvinfer1::IPluginV3* Mra2AttentionPlugin::clone() noexcept {
  auto* copy = new (std::nothrow) Mra2AttentionPlugin(attributes_, namespace_);
  if (copy == nullptr) log_error("Mra2Attention: out of memory while cloning the plugin.");
  return copy;
}

const char* Mra2AttentionPlugin::getPluginName() const noexcept { return kOpType; }
const char* Mra2AttentionPlugin::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Mra2AttentionPlugin::getPluginNamespace() const noexcept { return namespace_; }

bool Mra2AttentionPlugin::make_params(const nvinfer1::Dims* inputs, DataType type, Mra2AttentionParams* params) const noexcept {
  const nvinfer1::Dims& query = inputs[kQuery];
  if (query.nbDims != 3 || !is_shape(inputs[kKey], 3, query) || !is_shape(inputs[kValue], 3, query)) {
    log_formatted("Mra2Attention: query %s, key %s and value %s must have one shape, [batch, seq_len, num_heads * head_dim].",
                  Text(query).text, Text(inputs[kKey]).text, Text(inputs[kValue]).text);
    return false;
  }
  if (!is_shape(inputs[kAttentionMask], 2, query)) {
    log_formatted("Mra2Attention: attention_mask %s must be [batch, seq_len] of query %s.", Text(inputs[kAttentionMask]).text,
                  Text(query).text);
    return false;
  }
  if (!to_dtype(type, &params->dtype)) {
    log_formatted("Mra2Attention: data type %d must be float, half or bf16.", static_cast<int>(type));
    return false;
  }
  params->batch = query.d[0];
  params->seq_len = query.d[1];
  params->hidden_size = query.d[2];
  params->num_heads = attributes_.num_heads;
  params->num_blocks = attributes_.num_blocks;
  params->approx_mode = attributes_.approx_mode;
  params->initial_prior_first_n_blocks = attributes_.initial_prior_first_n_blocks;
  params->initial_prior_diagonal_n_blocks = attributes_.initial_prior_diagonal_n_blocks;
  params->scale = attributes_.scale;
  char message[kMessageSize];
  if (validate(*params, message, sizeof(message))) return true;
  log_formatted("Mra2Attention: %s", message);
  return false;
}

std::int32_t Mra2AttentionPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                                                  const nvinfer1::DynamicPluginTensorDesc*, std::int32_t num_outputs) noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  // The profile's ends: what is right for both is right between them.
  for (const bool largest : {false, true}) {
    nvinfer1::Dims dims[kNumInputs];
    for (std::int32_t i = 0; i < kNumInputs; ++i) dims[i] = largest ? inputs[i].max : inputs[i].min;
    Mra2AttentionParams params;
    if (!make_params(dims, inputs[kQuery].desc.type, &params)) return -1;
  }
  return 0;
}

std::int32_t Mra2AttentionPlugin::getOutputDataTypes(DataType* outputs, std::int32_t num_outputs, const DataType* inputs,
                                                     std::int32_t num_inputs) const noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  outputs[kContext] = inputs[kQuery];
  return 0;
}

std::int32_t Mra2AttentionPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t num_inputs,
                                                  const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                                  std::int32_t num_outputs, nvinfer1::IExprBuilder&) noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  outputs[kContext] = inputs[kQuery];
  return 0;
}

bool Mra2AttentionPlugin::supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                                    std::int32_t num_inputs, std::int32_t num_outputs) noexcept {
  if (num_inputs != kNumInputs || num_outputs != kNumOutputs || position < 0 || position >= num_inputs + num_outputs) return false;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  DType dtype;
  if (position == kQuery) return to_dtype(tensor.type, &dtype);
  if (position == kAttentionMask) return tensor.type == DataType::kINT32;
  return tensor.type == tensors[kQuery].desc.type;
}

std::int32_t Mra2AttentionPlugin::getNbOutputs() const noexcept { return kNumOutputs; }

std::size_t Mra2AttentionPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                                                  const nvinfer1::DynamicPluginTensorDesc*, std::int32_t num_outputs) const noexcept {
  if (!counts_match(num_inputs, num_outputs)) return 0;
  nvinfer1::Dims dims[kNumInputs];
  for (std::int32_t i = 0; i < kNumInputs; ++i) dims[i] = inputs[i].max;
  Mra2AttentionParams params;
  return make_params(dims, inputs[kQuery].desc.type, &params) ? cuda_workspace_size(params) : 0;
}

const char* Mra2AttentionPlugin::getTimingCacheID() noexcept { return description_; }
const char* Mra2AttentionPlugin::getMetadataString() noexcept { return description_; }

std::int32_t Mra2AttentionPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t num_inputs,
                                                const nvinfer1::PluginTensorDesc*, std::int32_t num_outputs) noexcept {
  if (!counts_match(num_inputs, num_outputs)) return -1;
  nvinfer1::Dims dims[kNumInputs];
  for (std::int32_t i = 0; i < kNumInputs; ++i) dims[i] = inputs[i].dims;
  Mra2AttentionParams params;
  return make_params(dims, inputs[kQuery].type, &params) ? 0 : -1;
}

std::int32_t Mra2AttentionPlugin::enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc*,
                                          const void* const* inputs, void* const* outputs, void* workspace,
                                          cudaStream_t stream) noexcept {
  nvinfer1::Dims dims[kNumInputs];
  for (std::int32_t i = 0; i < kNumInputs; ++i) dims[i] = input_descs[i].dims;
  Mra2AttentionParams params;
  if (!make_params(dims, input_descs[kQuery].type, &params)) return -1;
  params.query = inputs[kQuery];
  params.key = inputs[kKey];
  params.value = inputs[kValue];
  params.attention_mask = static_cast<const std::int32_t*>(inputs[kAttentionMask]);
  params.context = outputs[kContext];
  // TensorRT gives the workspace of the profile's maximum, which is enough for every smaller size.
  const cudaError_t error = mra2_attention_cuda(params, workspace, cuda_workspace_size(params), stream);
  if (error == cudaSuccess) return 0;
  log_formatted("Mra2Attention: %s (%s) at batch=%" PRId64 ", seq_len=%" PRId64 ", hidden_size=%" PRId64 ", num_heads=%" PRId64
                ", num_blocks=%" PRId64 ". The plugin holds code for GPU architectures %s.",
                cudaGetErrorString(error), cudaGetErrorName(error), params.batch, params.seq_len, params.hidden_size, params.num_heads,
                params.num_blocks, MRA_CUDA_ARCHITECTURES);
  return -1;
}

nvinfer1::IPluginV3* Mra2AttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* Mra2AttentionPlugin::getFieldsToSerialize() noexcept { return &collection_; }

Mra2AttentionCreator::Mra2AttentionCreator(const char* name_space) noexcept : namespace_(name_space), collection_{kNumFields, fields_} {
  for (int i = 0; i < kNumFields; ++i) fields_[i] = PluginField(kAttributeNames[i], nullptr, kFieldTypes[i], 1);
}

nvinfer1::IPluginV3* Mra2AttentionCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                                        nvinfer1::TensorRTPhase) noexcept {
  const char* node = name != nullptr ? name : "";
  Attributes attributes{};
  bool found[kNumFields] = {};
  for (std::int32_t f = 0; fields != nullptr && f < fields->nbFields; ++f) {
    const PluginField& field = fields->fields[f];
    for (int i = 0; i < kNumFields; ++i) {
      if (field.name == nullptr || std::strcmp(field.name, kAttributeNames[i]) != 0) continue;
      if (!read_field(field, i, attributes)) {
        log_formatted("Mra2Attention '%s': attribute %s has field type %d and length %d; it must be one %s.", node, kAttributeNames[i],
                      static_cast<int>(field.type), field.length, kFieldTypes[i] == PluginFieldType::kINT32 ? "int" : "float");
        return nullptr;
      }
      found[i] = true;
    }
  }
  for (int i = 0; i < kNumFields; ++i)
    if (!found[i]) {
      log_formatted("Mra2Attention '%s': attribute %s is missing. Export the model again.", node, kAttributeNames[i]);
      return nullptr;
    }
  // The attributes alone, with the smallest of sizes, so that a bad one fails where the network is made.
  Mra2AttentionParams params;
  params.batch = 1;
  params.seq_len = 1;
  params.num_heads = attributes.num_heads;
  params.hidden_size = static_cast<std::int64_t>(attributes.num_heads) * kHeadDimMultiple;
  params.num_blocks = attributes.num_blocks;
  params.approx_mode = attributes.approx_mode;
  params.initial_prior_first_n_blocks = attributes.initial_prior_first_n_blocks;
  params.initial_prior_diagonal_n_blocks = attributes.initial_prior_diagonal_n_blocks;
  params.scale = attributes.scale;
  char message[kMessageSize];
  if (!validate(params, message, sizeof(message))) {
    log_formatted("Mra2Attention '%s': %s", node, message);
    return nullptr;
  }
  auto* plugin = new (std::nothrow) Mra2AttentionPlugin(attributes, namespace_);
  if (plugin == nullptr) log_error("Mra2Attention: out of memory while making the plugin.");
  return plugin;
}

const nvinfer1::PluginFieldCollection* Mra2AttentionCreator::getFieldNames() noexcept { return &collection_; }
const char* Mra2AttentionCreator::getPluginName() const noexcept { return kOpType; }
const char* Mra2AttentionCreator::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Mra2AttentionCreator::getPluginNamespace() const noexcept { return namespace_; }

}  // namespace mra::trt
