// Drives the plugin as TensorRT does, without TensorRT: creator, build-time queries, serialisation, contexts, enqueue.
//
// plugin_harness LIBRARY mra|yoso CASES RESULTS runs cases (the file format of tests/kernels/cuda_host/cuda_host_runner.cc) through
// two contexts of one deserialised plugin and writes both contexts' outputs. plugin_harness LIBRARY mra|yoso errors prints what the
// plugin logs for each misuse.
// Compiled with MRA_HARNESS_HOST the tensors are host memory, for a library whose kernels run on the host; else on the GPU, each context
// on a stream of its own.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "plugin_harness: %s\n", what.c_str());
  std::exit(2);
}

void expect(bool condition, const char* what) {
  if (!condition) stop(std::string("expected ") + what);
}
#define EXPECT(condition) expect((condition), #condition)

#if defined(MRA_HARNESS_HOST)
void* allocate(std::size_t bytes) {
  void* block = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
  std::memset(block, 0xff, bytes);
  return block;
}
void release(void* block) { std::free(block); }
void copy_in(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void copy_out(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
cudaStream_t make_stream() { return nullptr; }
void finish(cudaStream_t) {}
#else
void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) stop(std::string(what) + ": " + cudaGetErrorString(error));
}
void* allocate(std::size_t bytes) {
  void* block = nullptr;
  check(cudaMalloc(&block, bytes + 256), "cudaMalloc");
  check(cudaMemset(block, 0xff, bytes), "cudaMemset");
  return block;
}
void release(void* block) { check(cudaFree(block), "cudaFree"); }
void copy_in(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy in");
}
void copy_out(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy out");
}
cudaStream_t make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  return stream;
}
void finish(cudaStream_t stream) { check(cudaStreamSynchronize(stream), "kernels"); }
#endif

class Logger final : public ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) messages.emplace_back(message);
  }
  std::vector<std::string> messages;
};

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger; }
  Logger logger;
};

constexpr int kFirstConstant = 4;

struct Sizes {  // as in the case file
  std::int64_t batch, seq_len, hidden_size, dtype, num_heads;
  std::int64_t others[4];  // Mra2Attention: num_blocks, approx_mode, first_n, diagonal_n; YosoAttention: mode, hash_code_len, ...
  union {
    double scale;              // Mra2Attention
    std::int64_t conv_window;  // YosoAttention
  };
};
static_assert(sizeof(Sizes) == 80);

bool g_yoso = false;  // which of the two operators is driven

bool lsh(const Sizes& s) { return g_yoso && s.others[0] == 1; }
int input_count(const Sizes& s) { return kFirstConstant + lsh(s) + (g_yoso && s.conv_window > 0); }

struct Library {
  IPluginCreatorInterface* const* (*get_creators)(std::int32_t&);
  IPluginCreatorV3One* creator[2];
};

Library load(const char* path, Finder& finder) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) stop(dlerror());
  Library library{};
  library.get_creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(handle, "getCreators"));
  auto* set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
  EXPECT(library.get_creators != nullptr && set_finder != nullptr);
  set_finder(&finder);
  std::int32_t count = 0;
  IPluginCreatorInterface* const* creators = library.get_creators(count);
  EXPECT(count == 4);
  for (int i = 0; i < 2; ++i) {
    IPluginCreatorInterface* found = creators[g_yoso ? 2 + i : i];
    library.creator[i] = static_cast<IPluginCreatorV3One*>(found);
    EXPECT(std::strcmp(found->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
    EXPECT(std::strcmp(library.creator[i]->getPluginName(), g_yoso ? "YosoAttention" : "Mra2Attention") == 0);
    EXPECT(std::strcmp(library.creator[i]->getPluginVersion(), "1") == 0);
    EXPECT(std::strcmp(library.creator[i]->getPluginNamespace(), i == 0 ? "" : "mra") == 0);
    EXPECT(library.creator[i]->getFieldNames()->nbFields == 6);
  }
  return library;
}

// What the ONNX parser hands to the creator.
struct Fields {
  std::int32_t ints[6];
  float scale;
  PluginField fields[6];
  PluginFieldCollection collection{6, fields};

  explicit Fields(const Sizes& s)
      : ints{static_cast<std::int32_t>(s.num_heads), static_cast<std::int32_t>(s.others[0]),
             static_cast<std::int32_t>(s.others[1]), static_cast<std::int32_t>(s.others[2]),
             static_cast<std::int32_t>(s.others[3]), g_yoso ? static_cast<std::int32_t>(s.conv_window) : 0},
        scale(g_yoso ? 0.0f : static_cast<float>(s.scale)) {
    const char* const mra[] = {"num_heads", "num_blocks", "approx_mode", "initial_prior_first_n_blocks",
                               "initial_prior_diagonal_n_blocks"};
    const char* const yoso[] = {"num_heads", "mode", "hash_code_len", "num_hash", "fast_hash"};
    for (int i = 0; i < 5; ++i) fields[i] = PluginField(g_yoso ? yoso[i] : mra[i], &ints[i], PluginFieldType::kINT32, 1);
    fields[5] = g_yoso ? PluginField("conv_window", &ints[5], PluginFieldType::kINT32, 1)
                       : PluginField("scale", &scale, PluginFieldType::kFLOAT32, 1);
  }
  Fields(const Fields&) = delete;
};

template <typename Interface>
Interface* capability(IPluginV3* plugin, PluginCapabilityType type) {
  auto* interface = static_cast<Interface*>(plugin->getCapabilityInterface(type));
  EXPECT(interface != nullptr);
  return interface;
}
using Core = v_1_0::IPluginV3OneCore;
using Build = v_1_0::IPluginV3OneBuild;
using Runtime = v_1_0::IPluginV3OneRuntime;

Dims dims_of(std::initializer_list<std::int64_t> sizes) {
  Dims dims{};
  for (const std::int64_t size : sizes) dims.d[dims.nbDims++] = size;
  return dims;
}

DataType type_of(const Sizes& s) { return s.dtype == 0 ? DataType::kFLOAT : s.dtype == 1 ? DataType::kHALF : DataType::kBF16; }

// Of an input; number input_count(s) is the output.
Dims dims_of(const Sizes& s, int i, std::int64_t batch, std::int64_t seq_len) {
  if (i == 3) return dims_of({batch, seq_len});
  if (i < kFirstConstant || i == input_count(s)) return dims_of({batch, seq_len, s.hidden_size});
  if (i > kFirstConstant || !lsh(s)) return dims_of({s.num_heads, s.conv_window});
  const std::int64_t head_dim = s.hidden_size / s.num_heads;
  const std::int64_t bits = s.others[1] * s.others[2];
  if (s.others[3] == 0) return dims_of({s.num_heads, bits, head_dim});
  std::int64_t transform_dim = 32;
  while (transform_dim < head_dim) transform_dim *= 2;
  return dims_of({s.num_heads, (bits + transform_dim - 1) / transform_dim, 3, transform_dim});
}

DataType type_of(const Sizes& s, int i) { return i == 3 || (i == kFirstConstant && lsh(s)) ? DataType::kINT32 : type_of(s); }

std::size_t bytes_of(const Sizes& s, int i) {
  const Dims dims = dims_of(s, i, s.batch, s.seq_len);
  std::size_t bytes = type_of(s, i) == DataType::kINT32 || s.dtype == 0 ? 4 : 2;
  for (int d = 0; d < dims.nbDims; ++d) bytes *= static_cast<std::size_t>(dims.d[d]);
  return bytes;
}

struct Descs {
  PluginTensorDesc tensors[7];
  explicit Descs(const Sizes& s, std::int64_t batch, std::int64_t seq_len) {
    for (int i = 0; i <= input_count(s); ++i) {
      tensors[i].dims = dims_of(s, i, batch, seq_len);
      tensors[i].type = type_of(s, i);
      tensors[i].format = TensorFormat::kLINEAR;
      tensors[i].scale = 1.0f;
    }
  }
};

struct DynamicDescs {
  DynamicPluginTensorDesc tensors[7];
  explicit DynamicDescs(const Sizes& s, std::int64_t max_batch, std::int64_t max_seq_len) {
    const Descs dynamic(s, -1, -1);
    const Descs smallest(s, 1, 1);
    const Descs largest(s, max_batch, max_seq_len);
    for (int i = 0; i <= input_count(s); ++i) {
      tensors[i].desc = dynamic.tensors[i];
      tensors[i].min = smallest.tensors[i].dims;
      tensors[i].opt = largest.tensors[i].dims;
      tensors[i].max = largest.tensors[i].dims;
    }
  }
};

// An engine file's worth of the plugin: the bytes of each field, as TensorRT stores and restores them.
struct Serialized {
  std::vector<std::string> names;
  std::vector<std::vector<unsigned char>> bytes;
  std::vector<PluginField> fields;
  PluginFieldCollection collection{};

  explicit Serialized(const PluginFieldCollection& from) {
    for (std::int32_t i = 0; i < from.nbFields; ++i) {
      const PluginField& field = from.fields[i];
      EXPECT(field.type == PluginFieldType::kINT32 || field.type == PluginFieldType::kFLOAT32);
      names.emplace_back(field.name);
      const auto* data = static_cast<const unsigned char*>(field.data);
      bytes.emplace_back(data, data + 4 * field.length);
    }
    for (std::int32_t i = 0; i < from.nbFields; ++i)
      fields.emplace_back(names[i].c_str(), bytes[i].data(), from.fields[i].type, from.fields[i].length);
    collection = {from.nbFields, fields.data()};
  }
};

void run_case(const Library& library, const Sizes& s, std::FILE* cases, std::FILE* results, int number) {
  const std::size_t tensor_bytes = bytes_of(s, 0);
  const int count = input_count(s);
  void* inputs[6];
  for (int i = 0; i < count; ++i) {
    std::vector<unsigned char> host(bytes_of(s, i));
    if (std::fread(host.data(), 1, host.size(), cases) != host.size()) stop("the case file ends early");
    inputs[i] = allocate(host.size());
    copy_in(inputs[i], host.data(), host.size());
  }

  // Build.
  const Fields fields(s);
  IPluginCreatorV3One* creator = library.creator[number % 2];
  std::unique_ptr<IPluginV3> built(creator->createPlugin("attention", &fields.collection, TensorRTPhase::kBUILD));
  EXPECT(built != nullptr);
  EXPECT(std::strcmp(capability<Core>(built.get(), PluginCapabilityType::kCORE)->getPluginNamespace(), number % 2 ? "mra" : "") ==
         0);
  auto* build = capability<Build>(built.get(), PluginCapabilityType::kBUILD);
  EXPECT(build->getNbOutputs() == 1);
  DynamicDescs profile(s, s.batch + 1, s.seq_len + 40);
  DataType types[6];
  for (int i = 0; i < count; ++i) types[i] = type_of(s, i);
  DataType output = DataType::kINT8;
  EXPECT(build->getOutputDataTypes(&output, 1, types, count) == 0 && output == type_of(s));
  for (int position = 0; position <= count; ++position) {
    EXPECT(build->supportsFormatCombination(position, profile.tensors, count, 1));
    DynamicDescs other(s, 2, 64);
    other.tensors[position].desc.format = TensorFormat::kCHW32;
    EXPECT(!build->supportsFormatCombination(position, other.tensors, count, 1));
    other.tensors[position].desc.format = TensorFormat::kLINEAR;
    other.tensors[position].desc.type = type_of(s, position) == DataType::kINT32 ? DataType::kINT64 : DataType::kINT8;
    EXPECT(!build->supportsFormatCombination(position, other.tensors, count, 1));
  }
  EXPECT(build->configurePlugin(profile.tensors, count, profile.tensors + count, 1) == 0);
  const std::size_t workspace_bytes = build->getWorkspaceSize(profile.tensors, count, profile.tensors + count, 1);
  EXPECT(workspace_bytes > 0);
  EXPECT(build->getMetadataString() != nullptr);

  // The engine: what was serialised outlives the plugin that was built.
  auto* build_runtime = capability<Runtime>(built.get(), PluginCapabilityType::kRUNTIME);
  const Serialized serialized(*build_runtime->getFieldsToSerialize());
  built.reset();
  std::unique_ptr<IPluginV3> loaded(creator->createPlugin("attention", &serialized.collection, TensorRTPhase::kRUNTIME));
  EXPECT(loaded != nullptr);
  std::unique_ptr<IPluginV3> copy(loaded->clone());
  EXPECT(copy != nullptr && copy.get() != loaded.get());

  // Two contexts at once, each with its workspace and stream.
  struct Context {
    std::unique_ptr<IPluginV3> plugin;
    void* output;
    void* workspace;
    cudaStream_t stream;
  };
  std::vector<Context> contexts;
  const Descs descs(s, s.batch, s.seq_len);
  for (int i = 0; i < 2; ++i) {
    IPluginV3* source = i == 0 ? loaded.get() : copy.get();
    std::unique_ptr<IPluginV3> attached(capability<Runtime>(source, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
    EXPECT(attached != nullptr && attached.get() != source);
    contexts.push_back({std::move(attached), allocate(tensor_bytes), allocate(workspace_bytes), make_stream()});
  }
  for (int repeat = 0; repeat < 3; ++repeat)
    for (Context& context : contexts) {
      auto* runtime = capability<Runtime>(context.plugin.get(), PluginCapabilityType::kRUNTIME);
      EXPECT(runtime->onShapeChange(descs.tensors, count, descs.tensors + count, 1) == 0);
      void* outputs[1] = {context.output};
      EXPECT(runtime->enqueue(descs.tensors, descs.tensors + count, inputs, outputs, context.workspace, context.stream) == 0);
    }
  for (Context& context : contexts) {
    finish(context.stream);
    std::vector<unsigned char> host(tensor_bytes);
    copy_out(host.data(), context.output, tensor_bytes);
    if (std::fwrite(host.data(), 1, host.size(), results) != host.size()) stop("cannot write the results");
    release(context.output);
    release(context.workspace);
  }
  for (int i = 0; i < count; ++i) release(inputs[i]);
}

// One line per misuse: its name, then what was logged.
void run_errors(const Library& library, Logger& logger) {
  const Sizes good{2, 64, 64, 0, 2, {4, 0, 0, 0}, {0.125}};
  const auto report = [&](const char* name) {
    EXPECT(logger.messages.size() == 1);
    std::printf("%s: %s\n", name, logger.messages[0].c_str());
    logger.messages.clear();
  };
  const auto create = [&](const Fields& fields) {
    return library.creator[0]->createPlugin("layer.0", &fields.collection, TensorRTPhase::kBUILD);
  };

  Sizes bad = good;
  bad.others[0] = 0;
  EXPECT(create(Fields(bad)) == nullptr);
  report("num_blocks");
  bad = good;
  bad.others[1] = 3;
  EXPECT(create(Fields(bad)) == nullptr);
  report("approx_mode");
  bad = good;
  bad.scale = std::numeric_limits<double>::infinity();
  EXPECT(create(Fields(bad)) == nullptr);
  report("scale");
  {
    Fields fields(good);
    fields.collection.nbFields = 5;
    EXPECT(create(fields) == nullptr);
    report("missing");
  }
  {
    Fields fields(good);
    fields.fields[1].type = PluginFieldType::kFLOAT32;
    EXPECT(create(fields) == nullptr);
    report("type");
  }
  {
    Fields fields(good);
    fields.fields[1].length = 2;
    EXPECT(create(fields) == nullptr);
    report("length");
  }
  EXPECT(library.creator[0]->createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD) == nullptr);
  report("nothing");

  const Fields fields(good);
  std::unique_ptr<IPluginV3> plugin(create(fields));
  EXPECT(plugin != nullptr);
  auto* build = capability<Build>(plugin.get(), PluginCapabilityType::kBUILD);
  auto* runtime = capability<Runtime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  {
    DynamicDescs descs(good, 2, 64);
    EXPECT(build->configurePlugin(descs.tensors, 3, descs.tensors + 4, 1) != 0);
    report("count");
    descs.tensors[1].max.d[1] = 32;
    EXPECT(build->configurePlugin(descs.tensors, 4, descs.tensors + 4, 1) != 0);
    report("shapes");
  }
  {
    DynamicDescs descs(good, 2, 64);
    descs.tensors[3].min.d[0] = 7;
    EXPECT(build->configurePlugin(descs.tensors, 4, descs.tensors + 4, 1) != 0);
    report("mask");
  }
  {
    bad = good;
    bad.hidden_size = 60;
    DynamicDescs descs(bad, 2, 64);
    EXPECT(build->configurePlugin(descs.tensors, 4, descs.tensors + 4, 1) != 0);
    report("head_dim");
    EXPECT(build->getWorkspaceSize(descs.tensors, 4, descs.tensors + 4, 1) == 0);
    report("workspace");
    const Descs fixed(bad, 2, 64);
    EXPECT(runtime->onShapeChange(fixed.tensors, 4, fixed.tensors + 4, 1) != 0);
    report("onShapeChange");
  }
  {
    DynamicDescs descs(good, 2, 131073);
    EXPECT(build->configurePlugin(descs.tensors, 4, descs.tensors + 4, 1) != 0);
    report("too long");
  }
  {
    Descs descs(good, 2, 64);
    descs.tensors[0].type = DataType::kINT8;
    EXPECT(runtime->onShapeChange(descs.tensors, 4, descs.tensors + 4, 1) != 0);
    report("data type");
  }
  {
    const Descs descs(good, 2, 64);
    const void* inputs[4] = {nullptr, nullptr, nullptr, nullptr};
    void* outputs[1] = {nullptr};
    EXPECT(runtime->enqueue(descs.tensors, descs.tensors + 4, inputs, outputs, nullptr, nullptr) != 0);
    report("enqueue");
  }
}

// The same for what YosoAttention has of its own: attributes that ask for inputs.
void run_yoso_errors(const Library& library, Logger& logger) {
  Sizes good{2, 64, 64, 0, 2, {1, 9, 8, 1}, {}};
  good.conv_window = 5;
  const auto report = [&](const char* name) {
    EXPECT(logger.messages.size() == 1);
    std::printf("%s: %s\n", name, logger.messages[0].c_str());
    logger.messages.clear();
  };
  const auto create = [&](const Sizes& s) {
    const Fields fields(s);
    return library.creator[1]->createPlugin("layer.0", &fields.collection, TensorRTPhase::kBUILD);
  };
  Sizes bad = good;
  bad.others[0] = 2;
  EXPECT(create(bad) == nullptr);
  report("mode");
  bad = good;
  bad.others[2] = 0;
  EXPECT(create(bad) == nullptr);
  report("num_hash");
  bad = good;
  bad.conv_window = 4;
  EXPECT(create(bad) == nullptr);
  report("conv_window");

  std::unique_ptr<IPluginV3> plugin(create(good));
  EXPECT(plugin != nullptr);
  auto* build = capability<Build>(plugin.get(), PluginCapabilityType::kBUILD);
  auto* runtime = capability<Runtime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  {
    DynamicDescs descs(good, 2, 64);
    EXPECT(build->configurePlugin(descs.tensors, 4, descs.tensors + 4, 1) != 0);
    report("count");
    EXPECT(!build->supportsFormatCombination(0, descs.tensors, 4, 1));
  }
  {
    Descs descs(good, 2, 64);
    descs.tensors[4].dims.d[1] += 1;
    EXPECT(runtime->onShapeChange(descs.tensors, 6, descs.tensors + 6, 1) != 0);
    report("hash_constants");
  }
  {
    Descs descs(good, 2, 64);
    descs.tensors[5].dims.d[1] = 3;
    EXPECT(runtime->onShapeChange(descs.tensors, 6, descs.tensors + 6, 1) != 0);
    report("conv_weight");
  }
  {
    const Descs descs(good, 2, 64);
    const void* inputs[6] = {};
    void* outputs[1] = {nullptr};
    EXPECT(runtime->enqueue(descs.tensors, descs.tensors + 6, inputs, outputs, nullptr, nullptr) != 0);
    report("enqueue");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) stop("usage: plugin_harness LIBRARY mra|yoso errors | LIBRARY mra|yoso CASES RESULTS");
  g_yoso = std::strcmp(arguments[2], "yoso") == 0;
  Finder finder;
  const Library library = load(arguments[1], finder);
  if (count == 4) {
    if (g_yoso)
      run_yoso_errors(library, finder.logger);
    else
      run_errors(library, finder.logger);
    return 0;
  }
  std::FILE* cases = std::fopen(arguments[3], "rb");
  std::FILE* results = std::fopen(arguments[4], "wb");
  if (cases == nullptr || results == nullptr) stop("cannot open the files");
  Sizes sizes;
  int number = 0;
  while (std::fread(&sizes, 1, sizeof(sizes), cases) == sizeof(sizes)) run_case(library, sizes, cases, results, number++);
  for (const std::string& message : finder.logger.messages) std::fprintf(stderr, "logged: %s\n", message.c_str());
  if (std::fclose(results) != 0) stop("cannot write the results");
  std::printf("%d cases\n", number);
  return finder.logger.messages.empty() ? 0 : 1;
}
