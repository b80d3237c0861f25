// Runs cases from a file under a sanitizer: mra|yoso CASES RESULTS. Every buffer is a heap block of exactly its size.
//
// A case is the ten sizes and attributes of MraCall (nine int64, one double) or YosoCall (ten int64), and then its inputs. A result is the
// context. Gaps between the workspace's arrays are poisoned where AddressSanitizer is in.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernel_api.inc"

#if defined(MRA_HOST_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace {

// Lays out like Arena, and closes what lies between one array and the next.
class PoisoningArena {
 public:
  explicit PoisoningArena(void* base) : arena_(base), base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  void take(T*& pointer, std::int64_t count) {
    arena_.take(pointer, count);
    unsigned char* end = reinterpret_cast<unsigned char*>(pointer) + static_cast<std::size_t>(count) * sizeof(T);
    ASAN_POISON_MEMORY_REGION(end, static_cast<std::size_t>(base_ + arena_.bytes() - end));
  }

 private:
  mra::cuda::Arena arena_;
  unsigned char* base_;
};

[[noreturn]] void stop(const char* what, long number) {
  std::fprintf(stderr, "cuda_host_runner: case %ld: %s\n", number, what);
  std::exit(2);
}

void* filled(std::size_t bytes) {
  void* block = std::aligned_alloc(16, (bytes + 15) / 16 * 16 + 16);
  std::memset(block, 0xff, (bytes + 15) / 16 * 16 + 16);
  ASAN_POISON_MEMORY_REGION(static_cast<unsigned char*>(block) + bytes, (bytes + 15) / 16 * 16 + 16 - bytes);
  return block;
}

cudaError_t enqueue(const MraCall& call, void* workspace, std::size_t bytes) {
  return mra::mra2_attention_cuda(call.params(), workspace, bytes, nullptr);
}
cudaError_t enqueue(const YosoCall& call, void* workspace, std::size_t bytes) {
  return mra::yoso_attention_cuda(call.params(), workspace, bytes, nullptr);
}

// Returns how many cases there were.
template <typename Call>
long run_cases(std::FILE* cases, std::FILE* results) {
  long number = 0;
  Call call{};
  constexpr std::size_t kHead = 10 * 8;
  while (std::fread(&call.batch, 1, kHead, cases) == kHead) {
    ++number;
    void* tensors[Call::kInputs];
    for (int i = 0; i < Call::kInputs; ++i) {
      const std::size_t bytes = call.input_bytes(i);
      tensors[i] = filled(bytes);
      if (std::fread(tensors[i], 1, bytes, cases) != bytes) stop("the file ends early", number);
    }
    call.set_inputs(tensors);
    call.context = filled(call.tensor_bytes());
    const std::size_t bytes = mra::cuda_workspace_size(call.params());
    void* workspace = filled(bytes);
    auto p = mra::cuda::make_problem(call.params());
    PoisoningArena arena(workspace);
    mra::cuda::lay_out(p, arena);
    if (enqueue(call, workspace, bytes) != cudaSuccess) stop("the launch failed", number);
    if (std::fwrite(call.context, 1, call.tensor_bytes(), results) != call.tensor_bytes()) stop("cannot write", number);
    ASAN_UNPOISON_MEMORY_REGION(workspace, bytes);
    std::free(workspace);
    std::free(call.context);
    for (void* tensor : tensors) std::free(tensor);
  }
  return number;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) stop("usage: cuda_host_runner mra|yoso CASES RESULTS", 0);
  std::FILE* cases = std::fopen(arguments[2], "rb");
  std::FILE* results = std::fopen(arguments[3], "wb");
  if (cases == nullptr || results == nullptr) stop("cannot open the files", 0);
  const bool yoso = std::strcmp(arguments[1], "yoso") == 0;
  const long number = yoso ? run_cases<YosoCall>(cases, results) : run_cases<MraCall>(cases, results);
  if (std::fclose(results) != 0) stop("cannot write", number);
  std::printf("%ld cases\n", number);
  return 0;
}
