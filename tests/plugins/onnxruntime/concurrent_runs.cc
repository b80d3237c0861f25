// The op of ONNX Runtime's CUDA provider between an arena like ONNX Runtime's and a GPU whose streams run side by side.
//
// concurrent_runs NAME does one of the checks below and prints OK. The operator is a stand-in: its first kernel fills the workspace
// with the number of the call, its second looks whether it is still there.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "cuda_op.h"

// A stream holds its work back until the GPU runs.
struct CUstream_st {
  std::deque<std::function<void()>> work;
};

struct OrtKernelContext {
  CUstream_st* stream;
  int number;  // of the call, from 1
};

struct OrtStatus {
  std::string message;
};

namespace {

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "concurrent_runs: %s\n", what.c_str());
  std::exit(2);
}

void expect(bool condition, const char* what) {
  if (!condition) stop(std::string("expected ") + what);
}
#define EXPECT(condition) expect((condition), #condition)

// Gives a free chunk to the stream that it was for, or to any if it was for none.
struct Arena : OrtAllocator {
  struct Chunk {
    std::vector<unsigned char> bytes;
    const CUstream_st* stream;
    bool used;
  };
  std::deque<Chunk> chunks;
  bool exhausted = false;

  Arena() : OrtAllocator{} {
    Alloc = [](OrtAllocator* self, std::size_t bytes) { return static_cast<Arena*>(self)->take(bytes, nullptr); };
    Free = [](OrtAllocator* self, void* memory) { static_cast<Arena*>(self)->give_back(memory); };
  }
  void* take(std::size_t bytes, const CUstream_st* stream) {
    if (exhausted) return nullptr;
    for (Chunk& chunk : chunks)
      if (!chunk.used && chunk.bytes.size() >= bytes && (chunk.stream == nullptr || chunk.stream == stream)) {
        chunk.used = true;
        chunk.stream = stream;
        return chunk.bytes.data();
      }
    chunks.push_back({std::vector<unsigned char>(bytes), stream, true});
    return chunks.back().bytes.data();
  }
  void give_back(void* memory) {
    for (Chunk& chunk : chunks)
      if (chunk.bytes.data() == memory) {
        EXPECT(chunk.used);
        chunk.used = false;
        return;
      }
    stop("freed through another allocator");
  }
};

Arena arena;
cudaError_t launch_result = cudaSuccess;
bool overwritten = false;

// Kernels of different streams take turns; those of one stay in order.
void run_gpu(std::vector<CUstream_st>& streams) {
  for (bool any = true; any;) {
    any = false;
    for (CUstream_st& stream : streams)
      if (!stream.work.empty()) {
        stream.work.front()();
        stream.work.pop_front();
        any = true;
      }
  }
}

OrtApi make_api() {
  OrtApi api{};
  api.CreateStatus = [](OrtErrorCode, const char* message) noexcept { return new OrtStatus{message}; };
  api.KernelInfoGetAllocator = [](const OrtKernelInfo*, OrtMemType, OrtAllocator** allocator) noexcept -> OrtStatus* {
    *allocator = &arena;
    return nullptr;
  };
  api.ReleaseAllocator = [](OrtAllocator*) noexcept {};
  api.AllocatorGetInfo = [](const OrtAllocator* allocator, const OrtMemoryInfo** place) noexcept -> OrtStatus* {
    *place = reinterpret_cast<const OrtMemoryInfo*>(allocator);
    return nullptr;
  };
  api.KernelContext_GetGPUComputeStream = [](const OrtKernelContext* context, void** stream) noexcept -> OrtStatus* {
    *stream = context->stream;
    return nullptr;
  };
  api.KernelContext_GetScratchBuffer = [](const OrtKernelContext* context, const OrtMemoryInfo* place, std::size_t bytes,
                                          void** memory) noexcept -> OrtStatus* {
    EXPECT(place == reinterpret_cast<const OrtMemoryInfo*>(static_cast<OrtAllocator*>(&arena)));
    EXPECT(context->stream != nullptr);  // as ONNX Runtime takes for granted
    *memory = arena.take(bytes, context->stream);
    return nullptr;
  };
  return api;
}

}  // namespace

namespace mra::ort {

struct StandIn {
  struct Params {
    std::int64_t batch = 0, seq_len = 64, hidden_size = 32, num_heads = 1;
    int number = 0;
  };
  static OrtStatus* read_attributes(const OrtKernelInfo&, DType, Params*) { return nullptr; }
  static OrtStatus* read_tensors(OrtKernelContext& context, Params* params) {
    params->batch = 1;
    params->number = context.number;
    return nullptr;
  }
};

std::size_t cuda_workspace_size(const StandIn::Params&) { return 1000; }

bool cuda_validate(const StandIn::Params&, char*, std::size_t) { return true; }
cudaError_t cuda_load(const StandIn::Params&) { return cudaSuccess; }

cudaError_t launch(const StandIn::Params& params, void* workspace, std::size_t bytes, cudaStream_t stream) {
  if (launch_result != cudaSuccess) return launch_result;
  const auto fill = [=] { std::memset(workspace, params.number, bytes); };
  const auto look = [=] {
    for (std::size_t i = 0; i < bytes; ++i) overwritten |= static_cast<unsigned char*>(workspace)[i] != params.number;
  };
  if (stream == nullptr) return fill(), look(), cudaSuccess;
  stream->work.insert(stream->work.end(), {fill, look});
  return cudaSuccess;
}

}  // namespace mra::ort

int main(int count, char** arguments) {
  using namespace mra::ort;
  using Op = CudaOp<StandIn, launch>;
  if (count != 2) stop("usage: concurrent_runs NAME");
  const std::string name = arguments[1];
  const OrtApi fake = make_api();
  api = &fake;
  const CustomOp op("StandIn", 4, nullptr, mra::DType::kFloat32, Op::create, Op::compute, Op::destroy);
  void* kernel = nullptr;
  EXPECT(op.CreateKernelV2(&op, api, nullptr, &kernel) == nullptr);
  const auto run = [&](CUstream_st* stream, int number) {
    OrtKernelContext context{stream, number};
    return op.KernelComputeV2(kernel, &context);
  };

  std::vector<CUstream_st> streams(8);
  if (name == "streams") {  // each with a chunk of its own, which its next call gets again
    for (int number = 1; number <= 40; ++number) EXPECT(run(&streams[static_cast<std::size_t>(number) % 8], number) == nullptr);
    run_gpu(streams);
    EXPECT(!overwritten);
    EXPECT(arena.chunks.size() == 8);
  } else if (name == "no stream") {
    for (int number = 1; number <= 3; ++number) EXPECT(run(nullptr, number) == nullptr);
    EXPECT(!overwritten && arena.chunks.size() == 1);
  } else if (name == "no memory") {
    arena.exhausted = true;
    for (CUstream_st* stream : {&streams[0], static_cast<CUstream_st*>(nullptr)}) {
      const OrtStatus* status = run(stream, 1);
      EXPECT(status != nullptr && status->message == "No device memory for the operator's workspace of 1000 bytes.");
    }
  } else if (name == "driver") {  // the message, for the test to read
    launch_result = cudaErrorInsufficientDriver;
    const OrtStatus* status = run(&streams[0], 1);
    EXPECT(status != nullptr);
    std::puts(status->message.c_str());
  } else {
    stop("no check is called " + name);
  }
  for (const Arena::Chunk& chunk : arena.chunks) EXPECT(!chunk.used);
  op.KernelDestroy(kernel);
  std::puts("OK");
  return 0;
}
