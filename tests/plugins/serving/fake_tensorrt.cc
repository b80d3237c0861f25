// TensorRT and CUDA's runtime in host memory, as far as the serving backend uses them: its tests on machines without a GPU.
//
// Streams hold their work back until they are synchronized, device memory is malloc's (AddressSanitizer watches its ends), and
// an engine is a text of settings whose "model" can be computed in Python too. What the backend does not use ends the process.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

[[noreturn]] void unused(const char* function);
#include "fake_tensorrt_stubs.h"  // generated from TensorRT's headers: VRuntimeStub, ... in which each function calls unused()

using namespace nvinfer1;

namespace {

[[noreturn]] void stop(const char* what) {
  std::fprintf(stderr, "fake TensorRT: %s\n", what);
  std::abort();
}

std::int64_t setting(const char* name, std::int64_t otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::atoll(value) : otherwise;
}

using Work = std::function<cudaError_t()>;

// Sizes of what is on the device, to free and to limit.
std::map<void*, std::size_t> allocated;
std::mutex allocated_mutex;

}  // namespace

[[noreturn]] void unused(const char* function) { stop(function); }

struct CUstream_st {
  std::vector<Work> queue;
  bool is_capturing = false;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};

// CUDA.

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(setting("MRA_FAKE_GPUS", 1));
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int device) { return device < setting("MRA_FAKE_GPUS", 1) ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "host memory");
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t size) {
  const std::lock_guard<std::mutex> lock(allocated_mutex);
  std::size_t total = size;
  for (const auto& entry : allocated) total += entry.second;
  if (total > static_cast<std::size_t>(setting("MRA_FAKE_GPU_BYTES", 1 << 30))) return cudaErrorMemoryAllocation;
  *memory = std::malloc(size);
  std::memset(*memory, 0xff, size);
  allocated[*memory] = size;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const std::lock_guard<std::mutex> lock(allocated_mutex);
  if (memory != nullptr && allocated.erase(memory) != 1) stop("cudaFree of what was not allocated");
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t size, unsigned int) {
  *memory = std::malloc(size);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, std::size_t size) {
  std::memset(memory, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t stream) {
  if (stream->is_capturing) stop("a copy is captured");
  stream->queue.push_back([=] {
    std::memcpy(to, from, size);
    return cudaSuccess;
  });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  std::vector<Work> queue;
  queue.swap(stream->queue);
  for (const Work& work : queue)
    if (error == cudaSuccess) error = work();
  return error;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream->queue.empty()) stop("a capture begins while work is under way");
  stream->is_capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->is_capturing = false;
  *graph = new CUgraph_st{std::move(stream->queue)};
  stream->queue.clear();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  stream->queue.insert(stream->queue.end(), executable->work.begin(), executable->work.end());
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice           ? "no CUDA-capable device is detected"
         : error == cudaErrorMemoryAllocation ? "out of memory"
                                              : "an illegal memory access";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOther";
}
}

// TensorRT.

namespace {

ILogger* logger = nullptr;
struct Settings {
  std::map<std::string, std::int64_t> values;
  std::int64_t operator[](const char* name) const { return values.at(name); }
};

class Context;

class Engine final : public ICudaEngine, public VCudaEngineStub {
 public:
  explicit Engine(Settings settings) : settings_(std::move(settings)) {
    mImpl = this;
    names_ = {"input_ids", "attention_mask", "last_hidden_state"};
    if (settings_["types"] != 0) names_.insert(names_.begin() + 1, "token_type_ids");
    if (settings_["pooled"] != 0) names_.emplace_back("sentence_embedding");
  }
  ICudaEngine* getPImpl() noexcept override { return this; }
  std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(names_.size()); }
  const char* getIOTensorName(std::int32_t i) const noexcept override { return names_[static_cast<std::size_t>(i)].c_str(); }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    return is_input(name) ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char* name) const noexcept override {
    if (settings_["half"] != 0 && !is_input(name)) return DataType::kHALF;
    return is_input(name) ? DataType::kINT64 : DataType::kFLOAT;
  }
  Dims getProfileShape(const char*, std::int32_t, OptProfileSelector select) const noexcept override {
    Dims dims{};
    dims.nbDims = 2;
    const bool is_least = select == OptProfileSelector::kMIN;
    dims.d[0] = settings_[is_least ? "min_rows" : "max_rows"];
    dims.d[1] = settings_[is_least ? "min_width" : "max_width"];
    return dims;
  }
  std::int64_t getDeviceMemorySizeV2() const noexcept override { return settings_["working"]; }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override;

  static bool is_input(const std::string& name) {
    return name == "input_ids" || name == "attention_mask" || name == "token_type_ids";
  }
  const Settings& settings() const { return settings_; }
  const std::vector<std::string>& names() const { return names_; }

 private:
  Settings settings_;
  std::vector<std::string> names_;
};

class Context final : public IExecutionContext, public VExecutionContextStub {
 public:
  explicit Context(const Engine& engine) : engine_(engine) { mImpl = this; }
  IExecutionContext* getPImpl() noexcept override { return this; }
  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
    if (size < engine_.settings()["working"]) stop("too little working memory");
    working_ = memory;
  }
  bool setTensorAddress(const char* name, void* memory) noexcept override {
    addresses_[name] = memory;
    return true;
  }
  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    const Settings& s = engine_.settings();
    if (!Engine::is_input(name) || dims.nbDims != 2 || dims.d[0] < s["min_rows"] || dims.d[0] > s["max_rows"] ||
        dims.d[1] < s["min_width"] || dims.d[1] > s["max_width"]) {
      logger->log(ILogger::Severity::kERROR, "setInputShape: outside the profile");
      return false;
    }
    shapes_[name] = dims;
    return true;
  }
  bool allInputDimensionsSpecified() const noexcept override {
    return shapes_.size() == static_cast<std::size_t>(engine_.settings()["types"] != 0 ? 3 : 2);
  }
  Dims getTensorShape(const char* name) const noexcept override {
    if (Engine::is_input(name)) return shapes_.at(name);
    Dims dims = shapes_.at("input_ids");
    const bool is_pooled = std::string(name) == "sentence_embedding";
    dims.nbDims = is_pooled ? 2 : 3;
    dims.d[is_pooled ? 1 : 2] = engine_.settings()["hidden"];
    return dims;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (stream->is_capturing && engine_.settings()["capturable"] == 0) {
      logger->log(ILogger::Severity::kERROR, "this cannot be captured");
      return false;
    }
    if (working_ == nullptr) stop("no working memory");
    for (const std::string& name : engine_.names())
      if (addresses_[name] == nullptr) stop("a tensor without an address");
    // Everything as it is now: a graph keeps it.
    const Dims shape = shapes_.at("input_ids");
    stream->queue.push_back([addresses = addresses_, rows = shape.d[0], width = shape.d[1], working = working_,
                             settings = engine_.settings()] { return compute(addresses, rows, width, working, settings); });
    return true;
  }

 private:
  // Of token t with the id x, number d of the state is ((31 x + 7 t + 13 d) mod 101) / 101 + blocks; a vector is the mean over
  // the tokens. The id 113 at a row's start stands for a fault on the device.
  static cudaError_t compute(std::map<std::string, void*> addresses, std::int64_t rows, std::int64_t width, void* working,
                             const Settings& settings) {
    const std::int64_t hidden = settings["hidden"], blocks = (width + 31) / 32;
    std::memset(working, 0xee, static_cast<std::size_t>(settings["working"]));
    const auto* ids = static_cast<const std::int64_t*>(addresses["input_ids"]);
    const auto* mask = static_cast<const std::int64_t*>(addresses["attention_mask"]);
    auto* states = static_cast<float*>(addresses["last_hidden_state"]);
    auto* vectors = static_cast<float*>(addresses["sentence_embedding"]);
    const auto* types = static_cast<const std::int64_t*>(addresses["token_type_ids"]);
    for (std::int64_t row = 0; row < rows; ++row) {
      if (ids[row * width] == 113) return cudaErrorIllegalAddress;
      std::int64_t count = 0;
      for (std::int64_t t = 0; t < width; ++t) {
        count += mask[row * width + t];
        if (types != nullptr && types[row * width + t] != 0) stop("a token type that is not 0");
      }
      if (count == 0) stop("a row without a token");
      for (std::int64_t d = 0; d < hidden; ++d) {
        double sum = 0;
        for (std::int64_t t = 0; t < width; ++t) {
          const double state =
              static_cast<double>((31 * ids[row * width + t] + 7 * t + 13 * d) % 101) / 101 + static_cast<double>(blocks);
          states[(row * width + t) * hidden + d] = static_cast<float>(state);
          if (mask[row * width + t] != 0) sum += state;
        }
        if (vectors != nullptr) vectors[row * hidden + d] = static_cast<float>(sum / static_cast<double>(count));
      }
    }
    return cudaSuccess;
  }

  const Engine& engine_;
  void* working_ = nullptr;
  std::map<std::string, void*> addresses_;
  std::map<std::string, Dims> shapes_;
};

IExecutionContext* Engine::createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
  if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) stop("working memory of the context's own");
  return new Context(*this);
}

class Runtime final : public IRuntime, public VRuntimeStub {
 public:
  Runtime() { mImpl = this; }
  IRuntime* getPImpl() noexcept override { return this; }
  void setEngineHostCodeAllowed(bool) noexcept override {}
  ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override {
    std::istringstream text(std::string(static_cast<const char*>(blob), size));
    Settings settings;
    std::string name;
    for (std::int64_t value; text >> name >> value;) settings.values[name] = value;
    if (settings.values.count("hidden") == 1) return new Engine(settings);
    logger->log(ILogger::Severity::kERROR, "deserializeCudaEngine: magic tag does not match");
    return nullptr;
  }
};

class Registry final : public IPluginRegistryStub {
 public:
  IPluginCreatorInterface* getCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
  PluginLibraryHandle loadLibrary(const char* path) noexcept override {
    std::string first;
    std::ifstream(path) >> first;
    if (first == "plugin") return this;
    logger->log(ILogger::Severity::kERROR, "loadLibrary: invalid ELF header");
    return nullptr;
  }
};

}  // namespace

extern "C" {
void* createInferRuntime_INTERNAL(void* given, std::int32_t) noexcept {
  logger = static_cast<ILogger*>(given);
  return static_cast<IRuntime*>(new Runtime);
}
std::int32_t getInferLibVersion() noexcept { return static_cast<std::int32_t>(setting("MRA_FAKE_TENSORRT", NV_TENSORRT_VERSION)); }
IPluginRegistry* getPluginRegistry() noexcept {
  static Registry registry;
  return &registry;
}
}
