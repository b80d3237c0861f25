// The fiber runtime under cuda_host_shim.h: scheduling, barriers, warp exchanges. Compiled without instrumentation.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda_host_shim.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <memory>
#include <random>
#include <set>
#include <string>

#if defined(MRA_HOST_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MRA_HOST_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace cuda_host {

Context* g_context = nullptr;

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer, and continues on another stack.
extern "C" void mra_host_switch(void** save, void* load);
asm(R"(
.text
.globl mra_host_switch
.hidden mra_host_switch
.type mra_host_switch, @function
mra_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mra_host_switch, .-mra_host_switch
)");
#endif

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t machine;
#endif
  void* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
  Context context;
  std::vector<std::vector<Copy>> copies;
  bool done = false;
  bool blocked = false;
};

struct Warp {
  std::uint32_t deposits[2][kLanes][kWords];  // two, so that a fast lane's next exchange does not overwrite what others still read
  unsigned arrived = 0;
  unsigned mask = 0;
  Collective kind = Collective::kSync;
  unsigned generation = 0;
};

// What ThreadSanitizer knows barriers by. Made and freed with each block: else one block's barrier would order it before the next block's.
struct Tags {
  char barrier[2];
  char warp[32][2];
};

enum class Order { kForward, kReverse, kRandom };

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;  // one for each thread of the largest block so far
  std::vector<int> ready;
  std::size_t ready_head = 0;
  Fiber main;
  int current = -1;  // index of the running thread; -1 outside
  unsigned threads = 0;
  unsigned live = 0;
  unsigned at_barrier = 0;
  std::vector<int> barrier_waiters;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  Order order = Order::kForward;
  std::mt19937 random;
  bool early = false;
  Tags* tags = nullptr;
  unsigned barrier_generation = 0;
  char start_tag;  // what the launch's start, its end and fences order; an end does not order the blocks that start later
  char end_tag;
  char fence_tag;
  long launches = 0;
  std::set<const void*> loaded;
};
Machine g_machine;

Fiber& fiber_of(int thread) { return *g_machine.fibers[static_cast<std::size_t>(thread)]; }

void switch_to(Fiber& from, Fiber& to, bool from_ends) {
#if defined(MRA_HOST_ASAN)
  const bool to_main = &to == &g_machine.main;
  static const void* main_bottom = nullptr;
  static std::size_t main_size = 0;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to_main ? main_bottom : to.stack,
                                 to_main ? main_size : kStackBytes);
#endif
#if defined(MRA_HOST_TSAN)
  __tsan_switch_to_fiber(to.tsan, 1);  // 1: switching is no synchronisation
#endif
#if defined(__x86_64__)
  mra_host_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.machine, &to.machine);
#endif
#if defined(MRA_HOST_ASAN)
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
  if (main_bottom == nullptr) {
    main_bottom = bottom;
    main_size = size;
  }
#else
  (void)from_ends;
#endif
}

int take_ready() {
  Machine& m = g_machine;
  if (m.ready_head == m.ready.size()) return -1;
  std::size_t pick = m.ready_head;
  if (m.order == Order::kReverse) pick = m.ready.size() - 1;
  if (m.order == Order::kRandom) pick += m.random() % (m.ready.size() - m.ready_head);
  const int thread = m.ready[pick];
  if (m.order == Order::kReverse) {
    m.ready.pop_back();
  } else {
    m.ready[pick] = m.ready[m.ready_head++];
  }
  if (m.ready_head == m.ready.size()) {
    m.ready.clear();
    m.ready_head = 0;
  }
  return thread;
}

void describe_and_fail(const char* what) {
  const Machine& m = g_machine;
  std::string stuck;
  for (unsigned i = 0; i < m.warps.size(); ++i)
    if (m.warps[i].arrived != 0) {
      char line[96];
      std::snprintf(line, sizeof line, "; warp %u: lanes %08x of %08x in collective %d", i, m.warps[i].arrived, m.warps[i].mask,
                    static_cast<int>(m.warps[i].kind));
      stuck += line;
    }
  fail("%s: block %u, %u of %u live threads at the barrier%s", what, g_context ? g_context->block.x : 0u, m.at_barrier, m.live,
       stuck.c_str());
}

// Leaves the running thread for the next ready one, or for the scheduler.
void yield_blocked(bool ends) {
  Machine& m = g_machine;
  Fiber& self = fiber_of(m.current);
  const int next = take_ready();
  if (next < 0) {
    if (m.live != 0) describe_and_fail("deadlock");
    m.current = -1;
    switch_to(self, m.main, ends);
    return;
  }
  if (next == m.current) return;
  m.current = next;
  Fiber& to = fiber_of(next);
  g_context = &to.context;
  switch_to(self, to, ends);
}

void acquire(char* tag) {
#if defined(MRA_HOST_TSAN)
  __tsan_acquire(tag);
#else
  (void)tag;
#endif
}
void release(char* tag) {
#if defined(MRA_HOST_TSAN)
  __tsan_release(tag);
#else
  (void)tag;
#endif
}

// While it lives, ThreadSanitizer looks away: not instrumented is not enough, as it watches memcpy and free wherever they are called.
class OwnBusiness {
 public:
#if defined(MRA_HOST_TSAN)
  OwnBusiness() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~OwnBusiness() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  OwnBusiness() {}
#endif
  OwnBusiness(const OwnBusiness&) = delete;
};

void complete_barrier_if_all_arrived() {
  Machine& m = g_machine;
  if (m.live == 0 || m.at_barrier != m.live) return;
  m.at_barrier = 0;
  ++m.barrier_generation;
  for (const int thread : m.barrier_waiters) m.ready.push_back(thread);
  m.barrier_waiters.clear();
}

void fiber_main() {
  Machine& m = g_machine;
#if defined(MRA_HOST_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  while (true) {
    acquire(&m.start_tag);
    (*m.body)();
    release(&m.end_tag);
    {
      const OwnBusiness own_business;
      Fiber& self = fiber_of(m.current);
      for (const auto& group : self.copies)
        if (!group.empty())
          fail("thread %u of block %u ended with asynchronous copies under way", self.context.thread.x, self.context.block.x);
      --m.live;
      complete_barrier_if_all_arrived();
    }
    yield_blocked(false);  // until the next block gives this fiber another thread
  }
}

std::unique_ptr<Fiber> make_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fiber->stack == MAP_FAILED) fail("no memory for a fiber's stack");
#if defined(MRA_HOST_TSAN)
  fiber->tsan = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  auto* top = reinterpret_cast<std::uintptr_t*>(static_cast<unsigned char*>(fiber->stack) + kStackBytes);
  *--top = 0;  // keeps the entry's stack aligned as after a call
  *--top = reinterpret_cast<std::uintptr_t>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber->stack_pointer = top;
#else
  getcontext(&fiber->machine);
  fiber->machine.uc_stack.ss_sp = fiber->stack;
  fiber->machine.uc_stack.ss_size = kStackBytes;
  fiber->machine.uc_link = nullptr;
  makecontext(&fiber->machine, reinterpret_cast<void (*)()>(&fiber_main), 0);
#endif
  return fiber;
}

void read_environment() {
  Machine& m = g_machine;
  const char* order = std::getenv("MRA_HOST_ORDER");
  const std::string name = order != nullptr ? order : "forward";
  if (name == "forward") {
    m.order = Order::kForward;
  } else if (name == "reverse") {
    m.order = Order::kReverse;
  } else if (name.rfind("random", 0) == 0) {
    m.order = Order::kRandom;
    m.random.seed(name.size() > 7 ? static_cast<unsigned>(std::strtoul(name.c_str() + 7, nullptr, 10)) : 0u);
  } else {
    fail("MRA_HOST_ORDER=%s must be forward, reverse or random[:seed]", name.c_str());
  }
  const char* copies = std::getenv("MRA_HOST_COPIES");
  const std::string when = copies != nullptr ? copies : "late";
  if (when != "late" && when != "early") fail("MRA_HOST_COPIES=%s must be late or early", when.c_str());
  m.early = when == "early";
}

}  // namespace

void fail(const char* format, ...) {
  std::fflush(stdout);
  std::fputs("cuda_host: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::abort();
}

const float* half_values() {
  static const std::vector<float> values = [] {
    std::vector<float> all(65536);
    for (unsigned i = 0; i < 65536; ++i) all[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
    return all;
  }();
  return values.data();
}
unsigned char* shared_memory() { return g_machine.shared; }
std::size_t shared_bytes() { return g_machine.shared_bytes; }
int lane() { return static_cast<int>(g_context->thread.x % kLanes); }
long launches() { return g_machine.launches; }
void note_loaded(const void* kernel) { g_machine.loaded.insert(kernel); }
void check_loaded(const void* kernel) {
  const char* asked = std::getenv("MRA_HOST_LOADED");
  if (asked != nullptr && std::strcmp(asked, "1") == 0 && g_machine.loaded.count(kernel) == 0)
    fail("a kernel is launched that was not loaded before");
}
bool early_copies() { return g_machine.early; }
std::vector<std::vector<Copy>>& copy_groups() { return fiber_of(g_machine.current).copies; }

// To ThreadSanitizer: what came before an earlier thread's fence comes before what follows this one.
void fence() {
  acquire(&g_machine.fence_tag);
  release(&g_machine.fence_tag);
}

void barrier() {
  const OwnBusiness own_business;
  Machine& m = g_machine;
  const unsigned generation = m.barrier_generation;
  release(&m.tags->barrier[generation % 2]);
  ++m.at_barrier;
  if (m.at_barrier == m.live) {
    m.at_barrier = 0;
    ++m.barrier_generation;
    for (const int thread : m.barrier_waiters) m.ready.push_back(thread);
    m.barrier_waiters.clear();
    if (m.order != Order::kForward) {  // the last to arrive need not be the first to go on
      m.ready.push_back(m.current);
      yield_blocked(false);
    }
  } else {
    m.barrier_waiters.push_back(m.current);
    yield_blocked(false);
  }
  acquire(&m.tags->barrier[generation % 2]);
}

const Deposits& exchange(Collective kind, unsigned mask, const std::uint32_t* words, int count) {
  const OwnBusiness own_business;
  Machine& m = g_machine;
  const int own_lane = lane();
  const int warp_index = static_cast<int>(g_context->thread.x / kLanes);
  Warp& warp = m.warps[warp_index];
  if ((mask >> own_lane & 1u) == 0) fail("lane %d is in a collective whose mask %08x leaves it out", own_lane, mask);
  if (warp.arrived == 0) {
    warp.kind = kind;
    warp.mask = mask;
  } else if (warp.kind != kind || warp.mask != mask) {
    fail("warp %d of block %u: lane %d is in collective %d (mask %08x), others in %d (mask %08x)", warp_index, g_context->block.x,
         own_lane, static_cast<int>(kind), mask, static_cast<int>(warp.kind), warp.mask);
  }
  const unsigned generation = warp.generation;
  if (count > 0) std::memcpy(warp.deposits[generation % 2][own_lane], words, static_cast<std::size_t>(count) * 4);
  release(&m.tags->warp[warp_index][generation % 2]);
  warp.arrived |= 1u << own_lane;
  if (warp.arrived == warp.mask) {
    warp.arrived = 0;
    ++warp.generation;
    for (int i = 0; i < kLanes; ++i)
      if ((warp.mask >> i & 1u) != 0 && i != own_lane) m.ready.push_back(warp_index * kLanes + i);
    if (m.order != Order::kForward) {
      m.ready.push_back(m.current);
      yield_blocked(false);
    }
  } else {
    yield_blocked(false);
  }
  // Shuffles and ballots order no memory accesses between lanes in CUDA's model; __syncwarp does, and ldmatrix and mma touch none.
  if (kind == Collective::kSync) acquire(&m.tags->warp[warp_index][generation % 2]);
  return warp.deposits[generation % 2];
}

using FindTranslated = Translated (*)(const char* name, unsigned threads, std::uint64_t shared_bytes);
namespace {
FindTranslated g_find_translated = nullptr;
}  // namespace

Program program(const void* kernel, unsigned threads, std::size_t shared_bytes, Translated* translated) {
  if (g_find_translated == nullptr) return Program::kSource;
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr || info.dli_saddr != kernel) fail("a kernel without a name");
  *translated = g_find_translated(info.dli_sname, threads, shared_bytes);
  return *translated == nullptr ? Program::kMissing : Program::kTranslated;
}

void run_grid(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body) {
  Machine& m = g_machine;
  if (m.current != -1) fail("a launch inside a kernel");
  ++m.launches;
  read_environment();
#if defined(MRA_HOST_TSAN)
  m.main.tsan = __tsan_get_current_fiber();
#endif
  m.body = &body;
  m.shared_bytes = shared_bytes;
  half_values();  // made before there are fibers
  m.threads = threads;
  release(&m.start_tag);
  for (unsigned block = 0; block < blocks; ++block) {
    const OwnBusiness own_business;
#if defined(MRA_HOST_TSAN)
    // New threads for every block, on new stacks: what an old one has seen would order its block before this one.
    for (auto& fiber : m.fibers) {
      munmap(fiber->stack, kStackBytes);
      __tsan_destroy_fiber(fiber->tsan);
    }
    m.fibers.clear();
#endif
    while (m.fibers.size() < threads) m.fibers.push_back(make_fiber());
    // Exactly the bytes asked for, so that AddressSanitizer sees one too many; filled with NaN, so that nothing relies on zeros.
    m.shared = static_cast<unsigned char*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128 + 128));
    std::memset(m.shared, 0xff, (shared_bytes + 127) / 128 * 128 + 128);
#if defined(MRA_HOST_ASAN)
    __asan_poison_memory_region(m.shared + shared_bytes, (shared_bytes + 127) / 128 * 128 + 128 - shared_bytes);
#endif
    m.tags = static_cast<Tags*>(std::malloc(sizeof(Tags)));
    m.warps.assign((threads + kLanes - 1) / kLanes, Warp{});
    m.ready.clear();
    m.ready_head = 0;
    m.live = threads;
    m.at_barrier = 0;
    for (unsigned thread = 0; thread < threads; ++thread) {
      Fiber& fiber = fiber_of(static_cast<int>(thread));
      fiber.context.thread = {thread, 0, 0};
      fiber.context.block = {block, 0, 0};
      fiber.context.block_dim = {threads, 1, 1};
      fiber.context.grid_dim = {blocks, 1, 1};
      fiber.copies.assign(1, {});
      m.ready.push_back(static_cast<int>(thread));
    }
    const int first = take_ready();
    m.current = first;
    g_context = &fiber_of(first).context;
    switch_to(m.main, fiber_of(first), false);
    if (m.live != 0) fail("block %u left %u threads unfinished", block, m.live);
#if defined(MRA_HOST_ASAN)
    __asan_unpoison_memory_region(m.shared, (shared_bytes + 127) / 128 * 128 + 128);
#endif
    std::free(m.tags);
    std::free(m.shared);
    m.shared = nullptr;
  }
  acquire(&m.end_tag);
  g_context = nullptr;
}

}  // namespace cuda_host

// From here on launches ask `find` for the kernel of a (mangled) name; null for the kernels of the source again.
extern "C" void mra_host_translated(cuda_host::FindTranslated find) { cuda_host::g_find_translated = find; }
