// Runs engines of TensorRT or TensorRT-RTX. A library of its own, so that libmra_serving needs neither TensorRT nor CUDA.
//
// Each context has a stream, device buffers for the profile's largest batch and pinned host memory, all made when the engine is
// opened: a run allocates nothing. With CUDA graphs, a context keeps one execution context and graph for each shape; these
// share the working memory, since only one of them runs at a time.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "failure.h"

namespace mra::serving {
namespace {

using nvinfer1::Dims;
using nvinfer1::TensorIOMode;

constexpr std::size_t kMaxGraphs = 16;  // of a context

// Keeps what TensorRT says of errors. One for the process, as TensorRT wants it, and never destroyed.
class Logger final : public nvinfer1::ILogger {
 public:
  static Logger& instance() {
    static Logger* logger = new Logger;
    return *logger;
  }
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      said_.emplace_back(message);
      if (said_.size() > kKept) said_.pop_front();
    } catch (...) {  // without memory for it, the error goes unsaid
    }
  }
  std::string take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string text;
    for (const std::string& line : said_) text += (text.empty() ? "" : " / ") + line;
    said_.clear();
    return text.empty() ? "it says nothing more" : text;
  }

 private:
  static constexpr std::size_t kKept = 5;
  std::mutex mutex_;
  std::list<std::string> said_;
};

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // of those that can be cleared
  fail(error == cudaErrorMemoryAllocation ? Code::kEnvironment : Code::kInternal,
       std::string(what) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ").");
}

// TensorRT counts major * 10000 + minor * 100 + patch, TensorRT-RTX alike.
std::string spell(std::int32_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

// The library must have the binary interface of the headers: the same product, the same major version, and not older.
void check_library() {
  const std::int32_t here = getInferLibVersion();
#if defined(TRT_MAJOR_RTX)
  const std::string product = "TensorRT-RTX";
  const bool fits = std::strcmp(MRA_BACKEND_NAME, "rtx") == 0;
#else
  const std::string product = "TensorRT";
  const bool fits = std::strcmp(MRA_BACKEND_NAME, "tensorrt") == 0;
#endif
  if (fits && here / 10000 == NV_TENSORRT_MAJOR && here / 100 % 100 >= NV_TENSORRT_MINOR) return;
  fail(Code::kEnvironment, std::string("libmra_serving_" MRA_BACKEND_NAME ".so was compiled with the headers of ") + product + " " +
                               std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) +
                               ", and the library here is " +
                               (std::strcmp(MRA_BACKEND_NAME, "rtx") == 0 ? "TensorRT-RTX " : "TensorRT ") + spell(here) +
                               ": their binary interfaces differ. Build plugins/serving with the headers of the library, "
                               "-DMRA_TENSORRT_INCLUDE=DIR.");
}

void check_gpu(int gpu) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    fail(Code::kEnvironment, std::string("Engines need a GPU, and CUDA finds none here: ") + cudaGetErrorString(error) + ".");
  }
  if (gpu >= count)
    fail(Code::kEnvironment,
         "gpu=" + std::to_string(gpu) + " is not here: CUDA finds " + std::to_string(count) + ", counted from 0.");
}

template <typename T>
struct Deleter {
  void operator()(T* object) const noexcept { delete object; }
};
struct DeviceFree {
  void operator()(void* memory) const noexcept { cudaFree(memory); }
};
struct HostFree {
  void operator()(void* memory) const noexcept { cudaFreeHost(memory); }
};
struct GraphFree {
  void operator()(CUgraphExec_st* graph) const noexcept { cudaGraphExecDestroy(graph); }
};
struct StreamFree {
  void operator()(CUstream_st* stream) const noexcept { cudaStreamDestroy(stream); }
};

using DeviceMemory = std::unique_ptr<void, DeviceFree>;
using HostMemory = std::unique_ptr<void, HostFree>;

DeviceMemory on_device(std::int64_t bytes, const char* what) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(std::max<std::int64_t>(bytes, 256))), what);
  return DeviceMemory(memory);
}
HostMemory on_host(std::int64_t bytes, const char* what) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, static_cast<std::size_t>(std::max<std::int64_t>(bytes, 256)), cudaHostAllocDefault), what);
  return HostMemory(memory);
}

std::int64_t bytes_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kINT64:
      return 8;
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32:
      return 4;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16:
      return 2;
    default:
      return 8;  // an upper bound, for outputs that nobody reads
  }
}

std::string text_of(const Dims& dims) {
  std::string text = "[";
  for (int i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  return text + "]";
}

struct Model {
  Request request;
  std::unique_ptr<nvinfer1::IRuntime, Deleter<nvinfer1::IRuntime>> runtime;
  std::unique_ptr<nvinfer1::ICudaEngine, Deleter<nvinfer1::ICudaEngine>> engine;  // before runtime is destroyed
  std::vector<std::string> inputs, outputs;                                       // of the engine
  std::int64_t min_rows = 1;
  Limits limits;
  std::string version, device;
};

// What runs one shape: with CUDA graphs there are several of them, else one, whose shape is set before each run.
struct Shape {
  std::int64_t rows = 0, width = 0;
  std::unique_ptr<nvinfer1::IExecutionContext, Deleter<nvinfer1::IExecutionContext>> context;
  std::unique_ptr<CUgraphExec_st, GraphFree> graph;
  bool is_capturable = true;
};

class EngineContext final : public Context {
 public:
  explicit EngineContext(std::shared_ptr<const Model> model) : model_(std::move(model)) {
    const Request& request = model_->request;
    check(cudaSetDevice(request.gpu), "cudaSetDevice");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    stream_.reset(stream);
    const std::int64_t rows = model_->limits.max_rows, width = model_->limits.max_width, id_bytes = rows * width * 8;
    working_bytes_ = model_->engine->getDeviceMemorySizeV2();
    working_ = on_device(working_bytes_, "the engine's working memory");
    for (const std::string& input : model_->inputs) device_.emplace_back(input, on_device(id_bytes, "the engine's inputs"));
    host_ids_ = on_host(id_bytes, "pinned memory for token ids");
    host_mask_ = on_host(id_bytes, "pinned memory for masks");
    if (request.has_types) check(cudaMemset(device("token_type_ids"), 0, static_cast<std::size_t>(id_bytes)), "cudaMemset");

    Shape& shape = shape_for(rows, width);  // the largest: its outputs say how much memory is needed
    for (const std::string& output : model_->outputs) {
      const Dims dims = shape.context->getTensorShape(output.c_str());
      std::int64_t bytes = bytes_of(model_->engine->getTensorDataType(output.c_str()));
      for (int i = 0; i < dims.nbDims; ++i) {
        if (dims.d[i] < 0)
          fail(Code::kInput, request.file + ": the shape of " + output + ", " + text_of(dims) + ", depends on its values.");
        bytes *= dims.d[i];
      }
      if (output == request.output) {
        const bool fits = dims.nbDims == (request.mean_of_tokens ? 3 : 2) && dims.d[0] == rows &&
                          dims.d[dims.nbDims - 1] == request.hidden_size && (!request.mean_of_tokens || dims.d[1] == width);
        if (!fits)
          fail(Code::kInput, request.file + ": " + output + " has the shape " + text_of(dims) + " for inputs of [" +
                                 std::to_string(rows) + ", " + std::to_string(width) + "] and vectors of " +
                                 std::to_string(request.hidden_size) + ".");
        host_out_ = on_host(bytes, "pinned memory for vectors");
      }
      device_.emplace_back(output, on_device(bytes, "the engine's outputs"));
    }
    shapes_.clear();  // it has no addresses of outputs yet
    check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  }

  ~EngineContext() override { cudaSetDevice(model_->request.gpu); }

  Buffers buffers() noexcept override {
    return {static_cast<std::int64_t*>(host_ids_.get()), static_cast<std::int64_t*>(host_mask_.get())};
  }

  std::int64_t padded_rows(std::int64_t rows) const noexcept override {
    std::int64_t padded = std::max(rows, model_->min_rows);
    if (model_->request.cuda_graphs) {  // few shapes, so that graphs are used again
      std::int64_t power = 1;
      while (power < padded) power *= 2;
      padded = std::min(power, model_->limits.max_rows);
    }
    return padded;
  }

  Status run(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) noexcept override {
    const Status status = guarded([&] { run_engine(rows, width, wanted, out); });
    if (!status.ok()) cudaStreamSynchronize(stream_.get());  // nothing of this run may write into the next one's buffers
    return status;
  }

 private:
  void* device(const std::string& name) {
    for (const auto& [tensor, memory] : device_)
      if (tensor == name) return memory.get();
    return nullptr;
  }

  // An execution context that is set to a shape.
  Shape& shape_for(std::int64_t rows, std::int64_t width) {
    const bool has_graphs = model_->request.cuda_graphs;
    for (auto entry = shapes_.begin(); entry != shapes_.end(); ++entry)
      if (!has_graphs || (entry->rows == rows && entry->width == width)) {
        shapes_.splice(shapes_.begin(), shapes_, entry);  // the latest first
        if (entry->rows != rows || entry->width != width) set_shape(*entry, rows, width);
        return shapes_.front();
      }
    if (shapes_.size() >= kMaxGraphs) {
      check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
      shapes_.pop_back();
    }
    Shape shape;
    shape.context.reset(model_->engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (shape.context == nullptr)
      fail(Code::kEnvironment,
           "No execution context could be made for " + model_->request.file + ": " + Logger::instance().take() + ".");
    shape.context->setDeviceMemoryV2(working_.get(), working_bytes_);
    for (const auto& [name, memory] : device_)
      if (!shape.context->setTensorAddress(name.c_str(), memory.get()))
        fail(Code::kInternal, model_->request.file + " refuses the address of " + name + ": " + Logger::instance().take() + ".");
    set_shape(shape, rows, width);
    shapes_.push_front(std::move(shape));
    return shapes_.front();
  }

  void set_shape(Shape& shape, std::int64_t rows, std::int64_t width) {
    Dims dims{};
    dims.nbDims = 2;
    dims.d[0] = rows;
    dims.d[1] = width;
    shape.rows = shape.width = 0;  // unless all goes well
    for (const std::string& input : model_->inputs)
      if (!shape.context->setInputShape(input.c_str(), dims))
        fail(Code::kInternal,
             model_->request.file + " refuses " + input + " " + text_of(dims) + ": " + Logger::instance().take() + ".");
    if (!shape.context->allInputDimensionsSpecified())
      fail(Code::kInternal, model_->request.file + " has inputs without a shape: " + Logger::instance().take() + ".");
    shape.rows = rows;
    shape.width = width;
  }

  void run_engine(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) {
    const Request& request = model_->request;
    check(cudaSetDevice(request.gpu), "cudaSetDevice");
    cudaStream_t stream = stream_.get();
    Shape& shape = shape_for(rows, width);
    const auto id_bytes = static_cast<std::size_t>(rows * width) * sizeof(std::int64_t);
    check(cudaMemcpyAsync(device("input_ids"), host_ids_.get(), id_bytes, cudaMemcpyHostToDevice, stream), "copying token ids");
    check(cudaMemcpyAsync(device("attention_mask"), host_mask_.get(), id_bytes, cudaMemcpyHostToDevice, stream), "copying masks");
    if (shape.graph != nullptr) {
      check(cudaGraphLaunch(shape.graph.get(), stream), "cudaGraphLaunch");
    } else {
      enqueue(shape);
    }
    const std::int64_t row_size = (request.mean_of_tokens ? width : 1) * request.hidden_size;
    const auto out_bytes = static_cast<std::size_t>(wanted * row_size) * sizeof(float);
    check(cudaMemcpyAsync(host_out_.get(), device(request.output), out_bytes, cudaMemcpyDeviceToHost, stream), "copying vectors");
    check(cudaStreamSynchronize(stream), "running the engine");
    const auto* vectors = static_cast<const float*>(host_out_.get());
    if (request.mean_of_tokens)
      mean_over_tokens(vectors, static_cast<const std::int64_t*>(host_mask_.get()), wanted, width, request.hidden_size, out);
    else
      std::memcpy(out, vectors, out_bytes);
    if (request.cuda_graphs && shape.graph == nullptr && shape.is_capturable) capture(shape);  // after a run, as TensorRT wants it
  }

  void enqueue(Shape& shape) {
    if (!shape.context->enqueueV3(stream_.get()))
      fail(Code::kInternal, model_->request.file + " failed on [" + std::to_string(shape.rows) + ", " +
                                std::to_string(shape.width) + "]: " + Logger::instance().take() + ".");
  }

  // Records the run of a shape. An engine that cannot be recorded goes on without: graphs change the speed only.
  void capture(Shape& shape) {
    cudaStream_t stream = stream_.get();
    shape.is_capturable = false;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
      cudaGetLastError();
      return;
    }
    const bool is_enqueued = shape.context->enqueueV3(stream);
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    cudaGraphExec_t executable = nullptr;
    if (is_enqueued && ended == cudaSuccess && cudaGraphInstantiateWithFlags(&executable, graph, 0) == cudaSuccess)
      shape.graph.reset(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
  }

  std::shared_ptr<const Model> model_;
  std::unique_ptr<CUstream_st, StreamFree> stream_;
  std::int64_t working_bytes_ = 0;
  DeviceMemory working_;
  std::vector<std::pair<std::string, DeviceMemory>> device_;  // tensor of the engine -> its memory
  HostMemory host_ids_, host_mask_, host_out_;
  std::list<Shape> shapes_;  // destroyed first
};

class EngineBackend final : public Backend {
 public:
  explicit EngineBackend(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const char* version() const noexcept override { return model_->version.c_str(); }
  const char* device() const noexcept override { return model_->device.c_str(); }
  Limits limits() const noexcept override { return model_->limits; }
  Status make_context(std::unique_ptr<Context>* context) noexcept override {
    return guarded([&] { *context = std::make_unique<EngineContext>(model_); });
  }

 private:
  std::shared_ptr<const Model> model_;
};

// The plugin library, once in the process: its creator stays registered.
void load_plugin(const Request& request) {
  static std::mutex* mutex = new std::mutex;
  const std::lock_guard<std::mutex> lock(*mutex);
  nvinfer1::IPluginRegistry* registry = getPluginRegistry();
  if (registry == nullptr) fail(Code::kEnvironment, "TensorRT has no plugin registry here.");
  if (registry->getCreator(request.plugin_name.c_str(), request.plugin_version.c_str(), "") != nullptr) return;
  Logger::instance().take();
  if (registry->loadLibrary(request.library.c_str()) == nullptr)
    fail(Code::kEnvironment, request.library + " could not be loaded as a plugin: " + Logger::instance().take() + ".");
}

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0) fail(Code::kInput, path + " cannot be read.");
  std::vector<char> bytes(static_cast<std::size_t>(size));
  file.seekg(0);
  file.read(bytes.data(), size);
  if (!file) fail(Code::kInput, path + " cannot be read.");
  return bytes;
}

// The engine's tensors are what the manifest says, and its profile lets each text be run.
void check_signature(Model& model) {
  const Request& request = model.request;
  const nvinfer1::ICudaEngine& engine = *model.engine;
  for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const std::string name = engine.getIOTensorName(i);
    (engine.getTensorIOMode(name.c_str()) == TensorIOMode::kINPUT ? model.inputs : model.outputs).push_back(name);
  }
  std::vector<std::string> wanted = {"attention_mask", "input_ids"}, inputs = model.inputs;
  if (request.has_types) wanted.emplace_back("token_type_ids");
  std::sort(inputs.begin(), inputs.end());
  if (inputs != wanted) {
    std::string found;
    for (const std::string& name : model.inputs) found += (found.empty() ? "" : ", ") + name;
    fail(Code::kInput, request.file + " has the inputs " + found + "; manifest.json has others.");
  }
  if (std::find(model.outputs.begin(), model.outputs.end(), request.output) == model.outputs.end())
    fail(Code::kInput, request.file + " lacks the output " + request.output + ", which manifest.json has.");
  if (engine.getTensorDataType(request.output.c_str()) != nvinfer1::DataType::kFLOAT)
    fail(Code::kInput, request.file + ": " + request.output + " must be float32.");
  model.limits = {INT64_MAX, request.max_seq_len, request.max_batch_tokens};
  std::int64_t& min_width = model.limits.min_width;
  if (request.cuda_graphs) model.limits.width_step = request.length_step;  // few shapes, so that graphs are used again
  for (const std::string& name : model.inputs) {
    if (engine.getTensorDataType(name.c_str()) != nvinfer1::DataType::kINT64)
      fail(Code::kInput, request.file + ": " + name + " must be int64.");
    const Dims least = engine.getProfileShape(name.c_str(), 0, nvinfer1::OptProfileSelector::kMIN);
    const Dims most = engine.getProfileShape(name.c_str(), 0, nvinfer1::OptProfileSelector::kMAX);
    if (least.nbDims != 2 || most.nbDims != 2)
      fail(Code::kInput, request.file + ": " + name + " has the profile " + text_of(least) + " to " + text_of(most) +
                             "; [batch, sequence] is expected.");
    model.min_rows = std::max<std::int64_t>(model.min_rows, least.d[0]);
    min_width = std::max<std::int64_t>(min_width, least.d[1]);
    model.limits.max_rows = std::min<std::int64_t>(model.limits.max_rows, most.d[0]);
    model.limits.max_width = std::min<std::int64_t>(model.limits.max_width, most.d[1]);
  }
  // A text may not be padded into more blocks than it has: that would change its vector.
  if (min_width > request.length_step)
    fail(Code::kInput, request.file + " takes sequences from " + std::to_string(min_width) +
                           " tokens only, and a text of one block has " + std::to_string(request.length_step) +
                           " at most. Build it with --seq-len 1:...");
  if (model.limits.max_rows < model.min_rows || model.limits.max_width < 1)
    fail(Code::kInput, request.file + " has a profile that no batch fits.");
  model.limits.max_tokens = std::max(std::min(model.limits.max_rows * model.limits.max_width, request.max_batch_tokens),
                                     model.min_rows * model.limits.max_width);
}

std::shared_ptr<const Model> open_model(const Request& request) {
  check_library();
  check_gpu(request.gpu);
  check(cudaSetDevice(request.gpu), "cudaSetDevice");
  auto model = std::make_shared<Model>();
  model->request = request;
  model->version = spell(getInferLibVersion());
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, request.gpu), "cudaGetDeviceProperties");
  model->device = properties.name;
  Logger::instance().take();
  if (!request.plugin_name.empty() && !request.carries_plugin) load_plugin(request);
  model->runtime.reset(nvinfer1::createInferRuntime(Logger::instance()));
  if (model->runtime == nullptr)
    fail(Code::kEnvironment, "TensorRT's runtime cannot be created: " + Logger::instance().take() + ".");
  // An engine that carries its plugin carries code: the bundle's hashes are what it is trusted by.
  if (request.carries_plugin) model->runtime->setEngineHostCodeAllowed(true);
  {
    const std::vector<char> bytes = read_file(request.file);
    model->engine.reset(model->runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
  }
  if (model->engine == nullptr) fail(Code::kEnvironment, request.file + " cannot be loaded: " + Logger::instance().take() + ".");
  check_signature(*model);
  return model;
}

Status machine(int gpu, std::string* version, std::string* compute_capability) noexcept {
  return guarded([&] {
    check_library();
    check_gpu(gpu);
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, gpu), "cudaDeviceGetAttribute");
    *version = spell(getInferLibVersion());
    *compute_capability = std::to_string(major) + "." + std::to_string(minor);
  });
}

Status open(const Request& request, std::unique_ptr<Backend>* backend) noexcept {
  return guarded([&] { *backend = std::make_unique<EngineBackend>(open_model(request)); });
}

}  // namespace
}  // namespace mra::serving

extern "C" __attribute__((visibility("default"))) const mra::serving::BackendLibrary* mra_serving_backend() {
  static const mra::serving::BackendLibrary library = {mra::serving::kBackendBuild, MRA_BACKEND_NAME, mra::serving::machine,
                                                       mra::serving::open};
  return &library;
}
