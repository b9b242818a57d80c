// Runs CUDA kernels on the CPU, so that the very same source that a GPU compiles can be tested without one.
//
// Blocks run one after another. The threads of a block are fibers of one operating-system thread: each runs until it waits at a
// barrier, then the next one does. So a run is deterministic and a launch costs microseconds. Each warp runs as far ahead of the
// others as it can, and the order can be reversed: a kernel that lacks a __syncthreads() gives another result in one of the two
// orders. A block whose threads wait for each other in vain is reported instead of hanging.
//
// A pack of elements that is moved at once from where a GPU would refuse it is reported too, and so is an address outside of all
// arrays (see guarded.py). What a block's threads share is not a number before they write it.
//
// What it does not show: timing, memory coalescing, the GPU's own exp and log, denormals flushed to zero.
#define GPUBACKPROP_SHIM 1

#include <dlfcn.h>
#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Off its boundary it is left where it is, lest the CPU stop; the launch then fails as a GPU's would.
#define MOVED_AT_ONCE(x, bytes) \
  if (!shim::at_boundary(x, bytes)) return
#define STORED_GLOBALLY(x) \
  if (shim::shared(x)) return
// One block at a time: a static variable is the block's own. Those of a thread of the operating system lie together, and nothing else
// with them.
#define __shared__ static thread_local

struct dim3_ {
  unsigned x, y, z;
};
static dim3_ threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

struct Barrier {
  unsigned members = 0, arrived = 0;
  unsigned long generation = 0;
};

// A fiber is entered through its context and afterwards resumed by a long jump, which unlike swapcontext() makes no system call.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool started = false, done = true;
};

static std::vector<Fiber> fibers;
static std::vector<Barrier> warps;
static Barrier block_barrier;
static jmp_buf scheduler;
static unsigned current;
static void (*body)(void*);
static void* body_data;
static unsigned char exchange[1024][8];
static bool misplaced;  // whether a pack was moved at once that is not at a boundary of its size

static thread_local char anchor;  // memory of threads is given to a library when it first asks
static char* shared_start;
static size_t shared_size;
static bool astray;  // whether an instruction for memory that all blocks see was given an address in shared memory

// Where this library's memory of the thread is, with all that kernels share.
inline void find_shared() {
  *(volatile char*)&anchor = 0;
  Dl_info here;
  dladdr((void*)&shared_start, &here);
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* base) {
        if ((void*)info->dlpi_addr != base) return 0;
        for (unsigned k = 0; k < info->dlpi_phnum; ++k)
          if (info->dlpi_phdr[k].p_type == PT_TLS) shared_size = info->dlpi_phdr[k].p_memsz;
        shared_start = (char*)info->dlpi_tls_data;
        return 1;
      },
      here.dli_fbase);
}

inline bool shared(const void* place) {
  astray = astray || ((size_t)place >= (size_t)shared_start && (size_t)place < (size_t)shared_start + shared_size);
  return astray;
}

inline bool at_boundary(const void* place, size_t bytes) {
  misplaced = misplaced || (size_t)place % bytes;
  return !misplaced;
}

inline void run_fiber() {
  body(body_data);
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

// Serve fiber `current` until it waits or ends.
__attribute__((noinline)) inline void resume() {
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[current];
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// Let the others run.
__attribute__((noinline)) inline void yield() {
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier) {
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  for (unsigned long generation = barrier.generation; barrier.generation == generation;) yield();
}

// Serve a warp for as long as it gets anywhere, so that warps drift as far apart as the barriers let them. Returns how many of its
// threads ended.
inline unsigned run_warp(unsigned warp, bool reversed) {
  unsigned first = warp * kWarp, lanes = warps[warp].members, ended = 0;
  for (bool moved = true; moved;) {
    unsigned long before = warps[warp].generation + block_barrier.generation;
    unsigned finished = 0;
    for (unsigned k = 0; k < lanes; ++k) {
      current = first + (reversed ? lanes - 1 - k : k);
      if (fibers[current].done) continue;
      threadIdx = {current, 0, 0};
      resume();
      finished += fibers[current].done;
    }
    ended += finished;
    moved = finished || warps[warp].generation + block_barrier.generation != before;
  }
  return ended;
}

// 0, or 1 when the block's threads wait for each other for ever.
inline int run_block(unsigned threads, bool reversed) {
  block_barrier = Barrier{threads};
  warps.assign((threads + kWarp - 1) / kWarp, Barrier{});
  for (unsigned t = 0; t < threads; ++t) ++warps[t / kWarp].members;
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    fiber.started = fiber.done = false;
  }
  unsigned count = (unsigned)warps.size();
  for (unsigned left = threads; left;) {
    unsigned before = left;
    unsigned long generation = block_barrier.generation;
    for (unsigned k = 0; k < count; ++k) left -= run_warp(reversed ? count - 1 - k : k, reversed);
    if (left == before && block_barrier.generation == generation) return 1;
  }
  return 0;
}

static jmp_buf fault;

// 0, or what went wrong, as shim.py names it.
template <typename F> int run_grid(unsigned grid, unsigned block, bool reversed, F kernel) {
  body = [](void* data) { (*static_cast<F*>(data))(); };
  body_data = &kernel;
  blockDim = {block, 1, 1};
  gridDim = {grid, 1, 1};
  misplaced = astray = false;
  find_shared();
  for (unsigned b = 0; b < grid; ++b) {
    blockIdx = {b, 0, 0};
    memset(shared_start, 0xff, shared_size);  // of every type of floats, not a number
    if (run_block(block, reversed)) return 1;
  }
  return misplaced ? 2 : astray ? 3 : 0;
}

template <typename F> int launch(unsigned grid, unsigned block, bool reversed, F kernel) {
  static struct sigaction before, own;
  own.sa_handler = [](int) { _longjmp(fault, 1); };
  own.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &own, &before);
  int wrong = _setjmp(fault) ? 4 : run_grid(grid, block, reversed, kernel);
  sigaction(SIGSEGV, &before, nullptr);
  return wrong;
}

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::block_barrier); }

template <typename V> V __shfl_xor_sync(unsigned mask, V value, int lane) {
  static_assert(sizeof(V) <= 8, "a shuffle moves at most 8 bytes");
  unsigned self = threadIdx.x, other = self ^ (unsigned)lane;
  shim::Barrier& warp = shim::warps[self / shim::kWarp];
  if (mask != 0xffffffffu || warp.members != shim::kWarp) {
    fprintf(stderr, "shim: a shuffle needs the whole warp\n");
    abort();
  }
  memcpy(shim::exchange[self], &value, sizeof(V));
  shim::wait(warp);
  V result;
  memcpy(&result, shim::exchange[other], sizeof(V));
  shim::wait(warp);
  return result;
}

// Half-precision types, as far as the kernels use them: stored in 16 bits, converted from float and from double with one rounding,
// to even, as cuda_fp16.h and cuda_bf16.h do.
namespace shim {

// A finite value in 16 bits whose last `digits` are the fraction's; `least` is the exponent of the smallest normal number.
inline unsigned short narrowed(double value, int digits, int least, unsigned infinity) {
  unsigned sign = signbit(value) ? 0x8000u : 0;
  if (value != value) return (unsigned short)(infinity | 1u << (digits - 1));
  double magnitude = fabs(value);
  if (magnitude == HUGE_VAL) return (unsigned short)(sign | infinity);
  int exponent = magnitude == 0 ? least : ilogb(magnitude);
  if (exponent < least) exponent = least;
  // Digits beside the exponent's place; a carry out of them is one into the exponent, and beyond the last of those lies infinity.
  double whole = nearbyint(ldexp(magnitude, digits - exponent));
  double bits = whole + (double)(exponent - least) * (double)(1u << digits);
  return (unsigned short)(sign | (bits >= infinity ? infinity : (unsigned)bits));
}

}  // namespace shim

struct __half {
  unsigned short bits;
  __half() = default;
  explicit __half(float value) : __half((double)value) {}
  explicit __half(double value) : bits(shim::narrowed(value, 10, -14, 0x7c00u)) {}
  operator float() const {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 31 ? (fraction ? NAN : HUGE_VAL)
                                  : (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
    return (float)(bits & 0x8000 ? -value : value);
  }
};

struct __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : __nv_bfloat16((double)value) {}
  explicit __nv_bfloat16(double value) : bits(shim::narrowed(value, 7, -126, 0x7f80u)) {}
  operator float() const {
    unsigned u = (unsigned)bits << 16;
    float value;
    memcpy(&value, &u, 4);
    return value;
  }
};
