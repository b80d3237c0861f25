// Runs cases from a file under a sanitizer: CASES RESULTS. Every buffer is a heap block of exactly its size.
//
// A case is the ten sizes and attributes of MraCall (nine int64, one double) and then query, key, value and mask. A result is the
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

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) stop("usage: cuda_host_runner CASES RESULTS", 0);
  std::FILE* cases = std::fopen(arguments[1], "rb");
  std::FILE* results = std::fopen(arguments[2], "wb");
  if (cases == nullptr || results == nullptr) stop("cannot open the files", 0);
  long number = 0;
  MraCall call{};
  constexpr std::size_t kHead = 10 * 8;
  while (std::fread(&call.batch, 1, kHead, cases) == kHead) {
    ++number;
    void* tensors[4];
    for (int i = 0; i < 4; ++i) {
      const std::size_t bytes = i == 3 ? call.mask_bytes() : call.tensor_bytes();
      tensors[i] = filled(bytes);
      if (std::fread(tensors[i], 1, bytes, cases) != bytes) stop("the file ends early", number);
    }
    call.query = tensors[0];
    call.key = tensors[1];
    call.value = tensors[2];
    call.attention_mask = static_cast<const std::int32_t*>(tensors[3]);
    call.context = filled(call.tensor_bytes());
    const std::size_t bytes = mra_cuda_workspace_size(&call);
    void* workspace = filled(bytes);
    mra::cuda::Problem p = mra::cuda::make_problem(call.params());
    PoisoningArena arena(workspace);
    mra::cuda::lay_out(p, arena);
    if (mra::mra2_attention_cuda(call.params(), workspace, bytes, nullptr) != cudaSuccess) stop("the launch failed", number);
    if (std::fwrite(call.context, 1, call.tensor_bytes(), results) != call.tensor_bytes()) stop("cannot write", number);
    ASAN_UNPOISON_MEMORY_REGION(workspace, bytes);
    std::free(workspace);
    std::free(call.context);
    for (void* tensor : tensors) std::free(tensor);
  }
  if (std::fclose(results) != 0) stop("cannot write", number);
  std::printf("%ld cases\n", number);
  return 0;
}
