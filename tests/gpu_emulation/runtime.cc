// runtime: CUDA's host functions for the emulation: memory, streams, events, graphs.
//
// What a stream is given waits in a queue and is done as late as possible: when the host waits for it, or bit
// by bit when it asks whether it is done. So a host that reads, or changes, too early finds, or gives, other
// bytes. Memory is garbage when it is taken. Streams do not wait for the default stream (all are
// non-blocking).
#include "cuda_runtime.h"
#include <chrono>
#include <deque>
#include <fcntl.h>
#include <map>
#include <memory>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

using emulation::GARBAGE;
using emulation::work;

struct CUgraph_st {
  std::vector<work> all;
};
struct CUgraphExec_st {
  std::vector<work> all;
};
struct CUstream_st {
  std::deque<work> queue;
  CUgraph_st *capture = nullptr;
  bool begins_capture = false; // others have joined it
};
struct mark { // a place in a stream
  CUstream_st *stream;
  bool done;
  double seconds;
};
struct CUevent_st {
  std::shared_ptr<mark> last;
  CUgraph_st *capture; // captured there
};

static constexpr int DEVICES = 2, MULTIPROCESSORS = 24;
static constexpr size_t DEVICE_BYTES = (size_t)8 << 30, MARGIN = 256, PAGE = 4096;

static CUstream_st default_stream;
static std::vector<CUstream_st *> streams = {&default_stream};
static std::map<const uint8_t *, size_t> device_blocks, pinned_blocks;
static std::map<const void *, int> shared_limits; // of kernels
static size_t taken;
static cudaError_t last_error;

static cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

#define REFUSE_IN_CAPTURE()                                                                                  \
  for (CUstream_st * s_ : streams)                                                                           \
    if (s_->capture) return note(cudaErrorStreamCaptureUnsupported)

static double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ---- queues ----

static void add(CUstream_st *stream, work w) {
  CUstream_st *s = stream ? stream : &default_stream;
  if (s->capture)
    s->capture->all.push_back(std::move(w));
  else
    s->queue.push_back(std::move(w));
}

static bool steps; // a step is under way

static void step(CUstream_st *s) {
  if (s->queue.empty() || steps) return;
  steps = true;
  work w = std::move(s->queue.front());
  s->queue.pop_front();
  if (!w()) s->queue.push_front(std::move(w));
  steps = false;
}

static void finish(CUstream_st *s) {
  for (; !s->queue.empty(); sched_yield()) step(s);
}

static void finish_all() {
  for (CUstream_st *s : streams) finish(s);
}

// Something is done while the host asks: on any stream, but on this one in the end.
static void step_any(CUstream_st *asked) {
  step(emulation::draw(2) ? asked : streams[emulation::draw(streams.size())]);
}

// ---- other processes ----

static bool with_others;

void emulation::work_with_others() {
  with_others = true;
}

bool emulation::works_with_others() {
  return with_others;
}

uint64_t emulation::nanoseconds_now() {
  return (uint64_t)(seconds_now() * 1e9);
}

void emulation::add_to_stream(cudaStream_t stream, work w) {
  add(stream, std::move(w));
}

// A GPU goes on while its host waits for another rank; here only when the host pauses.
static void go_on() {
  if (with_others && gettid() == getpid()) step(streams[emulation::draw(streams.size())]);
}

extern "C" int sched_yield() noexcept {
  go_on();
  return (int)syscall(SYS_sched_yield);
}

extern "C" int nanosleep(const struct timespec *time, struct timespec *left) {
  go_on();
  return (int)syscall(SYS_nanosleep, time, left);
}

// ---- the device ----

cudaError_t cudaGetDeviceCount(int *count) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES"); // the one variable of CUDA's own; a list of indices
  *count = DEVICES;
  if (visible) *count = *visible ? 1 : 0;
  for (; visible && *visible; visible++) *count += *visible == ',';
  return cudaSuccess;
}

static int visible_device(int index) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) return index;
  for (; index > 0 && *visible; visible++) index -= *visible == ',';
  return atoi(visible);
}

cudaError_t cudaDeviceCanAccessPeer(int *reaches, int device, int peer) {
  *reaches = device != peer;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, cudaDeviceP2PAttr, int, int) {
  *value = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device) {
  *out = cudaDeviceProp{};
  snprintf(out->name, sizeof out->name, "emulated");
  out->major = 9;
  out->pciDomainID = 0xffff; // which no host has
  out->pciBusID = visible_device(device);
  snprintf(out->uuid.bytes, sizeof out->uuid.bytes, "emulated %d", visible_device(device));
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount            ? MULTIPROCESSORS
           : attribute == cudaDevAttrComputeCapabilityMajor       ? 9
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)emulation::MOST_SHARED
                                                                  : 0; // it has no clocks
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  REFUSE_IN_CAPTURE();
  finish_all();
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess:
    return "no error";
  case cudaErrorInvalidValue:
    return "invalid argument";
  case cudaErrorMemoryAllocation:
    return "out of memory";
  case cudaErrorInvalidConfiguration:
    return "invalid configuration argument";
  case cudaErrorNotReady:
    return "device not ready";
  case cudaErrorStreamCaptureUnsupported:
    return "operation not permitted when stream is capturing";
  }
  return "unknown";
}

// ---- memory ----

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  const char *given = getenv("MOE_EMULATED_BYTES"); // of device memory, for tests of what is short of it
  *total = given ? (size_t)atoll(given) : DEVICE_BYTES;
  *free_bytes = *total > taken ? *total - taken : 0;
  return cudaSuccess;
}

static size_t pages_of(size_t bytes) {
  return (bytes + MARGIN + PAGE - 1) / PAGE * PAGE;
}

// Garbage, with a margin of it behind.
static uint8_t *take(std::map<const uint8_t *, size_t> &blocks, size_t bytes) {
  uint8_t *at = (uint8_t *)aligned_alloc(PAGE, pages_of(bytes));
  if (!at) emulation::stop("the host has no memory for the device's");
  emulation::fill_with_garbage(at, bytes + MARGIN);
  blocks[at] = bytes;
  return at;
}

// ---- memory that other processes map: its pages become those of a file without a name ----

static std::map<const uint8_t *, int> shared_files; // of blocks that are shared
static std::map<void *, size_t> mapped;             // of other processes

struct shared_name { // a handle
  int process, file;
  size_t bytes;
};

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *memory) {
  auto block = device_blocks.find((const uint8_t *)memory);
  if (block == device_blocks.end()) return note(cudaErrorInvalidValue);
  size_t bytes = pages_of(block->second);
  auto found = shared_files.find((const uint8_t *)memory);
  if (found == shared_files.end()) {
    int file = memfd_create("emulated GPU", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)bytes) || pwrite(file, memory, bytes, 0) != (ssize_t)bytes ||
        mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != memory)
      emulation::stop("memory cannot be shared");
    found = shared_files.emplace((const uint8_t *)memory, file).first;
  }
  shared_name name = {getpid(), found->second, bytes};
  memcpy(out->reserved, &name, sizeof name);
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t handle, unsigned) {
  shared_name name;
  char path[64];
  memcpy(&name, handle.reserved, sizeof name);
  snprintf(path, sizeof path, "/proc/%d/fd/%d", name.process, name.file);
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return note(cudaErrorInvalidValue);
  *out = mmap(nullptr, name.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (*out == MAP_FAILED) return note(cudaErrorMemoryAllocation);
  mapped[*out] = name.bytes;
  emulation::work_with_others();
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *memory) {
  auto found = mapped.find(memory);
  if (found == mapped.end()) return note(cudaErrorInvalidValue);
  munmap(memory, found->second);
  mapped.erase(found);
  return cudaSuccess;
}

// The pages are the process's own again.
static void unshare(const uint8_t *memory, size_t bytes) {
  auto found = shared_files.find(memory);
  if (found == shared_files.end()) return;
  mmap((void *)memory, pages_of(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
       0);
  close(found->second);
  shared_files.erase(found);
}

static cudaError_t give_back(std::map<const uint8_t *, size_t> &blocks, void *memory) {
  auto found = blocks.find((const uint8_t *)memory);
  if (found == blocks.end()) return note(cudaErrorInvalidValue);
  uint8_t margin[MARGIN + 4];
  size_t bytes = found->second;
  emulation::fill_with_garbage(margin, MARGIN + 4);
  if (memcmp((uint8_t *)memory + bytes, margin + bytes % 4, MARGIN))
    emulation::stop("something wrote behind a block of memory");
  blocks.erase(found);
  unshare((const uint8_t *)memory, bytes);
  free(memory);
  return cudaSuccess;
}

static bool holds(const std::map<const uint8_t *, size_t> &blocks, const void *at, size_t bytes) {
  auto next = blocks.upper_bound((const uint8_t *)at);
  if (next == blocks.begin()) return false;
  --next;
  return (const uint8_t *)at + bytes <= next->first + next->second;
}

cudaError_t cudaMalloc(void **out, size_t bytes) {
  REFUSE_IN_CAPTURE();
  if (bytes > DEVICE_BYTES - taken) return note(cudaErrorMemoryAllocation);
  *out = take(device_blocks, bytes);
  taken += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
  REFUSE_IN_CAPTURE();
  if (!memory) return cudaSuccess;
  finish_all();
  taken -= device_blocks.count((uint8_t *)memory) ? device_blocks[(uint8_t *)memory] : 0;
  return give_back(device_blocks, memory);
}

cudaError_t cudaMallocHost(void **out, size_t bytes) {
  REFUSE_IN_CAPTURE();
  *out = take(pinned_blocks, bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory) {
  finish_all();
  return give_back(pinned_blocks, memory);
}

static bool may_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  return (kind == cudaMemcpyDeviceToHost || holds(device_blocks, to, bytes)) &&
         (kind == cudaMemcpyHostToDevice || holds(device_blocks, from, bytes));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  REFUSE_IN_CAPTURE();
  if (!bytes) return cudaSuccess;
  if (!may_copy(to, from, bytes, kind)) return note(cudaErrorInvalidValue);
  finish(&default_stream);
  memmove(to, from, bytes);
  return cudaSuccess;
}

// From memory that is not pinned the bytes are taken now; to such memory the host waits, as with the driver.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (!bytes) return cudaSuccess;
  if (!may_copy(to, from, bytes, kind)) return note(cudaErrorInvalidValue);
  bool captured = stream && stream->capture;
  if (kind == cudaMemcpyHostToDevice && !holds(pinned_blocks, from, bytes) && !captured) {
    std::vector<uint8_t> held((const uint8_t *)from, (const uint8_t *)from + bytes);
    add(stream, [=] { return memcpy(to, held.data(), bytes), true; });
    return cudaSuccess;
  }
  add(stream, [=] { return memmove(to, from, bytes), true; });
  if (kind == cudaMemcpyDeviceToHost && !holds(pinned_blocks, to, bytes) && !captured)
    finish(stream ? stream : &default_stream);
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  for (size_t row = 0; row < height; row++) {
    cudaError_t error = cudaMemcpyAsync((uint8_t *)to + row * to_pitch,
                                        (const uint8_t *)from + row * from_pitch, width, kind, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  if (!bytes) return cudaSuccess;
  if (!holds(device_blocks, to, bytes)) return note(cudaErrorInvalidValue);
  add(stream, [=] { return memset(to, value, bytes), true; });
  return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) {
  REFUSE_IN_CAPTURE();
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

// ---- kernels ----

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value) {
  if (value < 0 || (size_t)value > emulation::MOST_SHARED) return note(cudaErrorInvalidValue);
  shared_limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t emulation::launch(grid g, cudaStream_t stream) {
  auto limit = shared_limits.find(g.kernel);
  size_t most = limit == shared_limits.end() ? 48 << 10 : (size_t)limit->second;
  if (g.shared_bytes > (most > 48 << 10 ? most : 48 << 10)) return note(cudaErrorInvalidValue);
  uint64_t threads = (uint64_t)g.threads.x * g.threads.y * g.threads.z;
  if (!threads || threads > 1024 || !g.blocks.x || !g.blocks.y || !g.blocks.z || g.blocks.x > 0x7fffffff ||
      g.blocks.y > 65535 || g.blocks.z > 65535)
    return note(cudaErrorInvalidConfiguration);
  add(stream, [=] { return run(g), true; });
  return cudaSuccess;
}

// ---- streams and events ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  if (flags != cudaStreamNonBlocking) return note(cudaErrorInvalidValue); // the other kind is not emulated
  streams.push_back(*out = new CUstream_st);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  finish(stream);
  std::erase(streams, stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  CUstream_st *s = stream ? stream : &default_stream;
  REFUSE_IN_CAPTURE();
  if (s->queue.empty()) return cudaSuccess;
  step_any(s);
  return note(cudaErrorNotReady);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  REFUSE_IN_CAPTURE();
  finish(stream ? stream : &default_stream);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out) {
  *out = new CUevent_st{nullptr, nullptr};
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
  return cudaEventCreate(out);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  CUstream_st *s = stream ? stream : &default_stream;
  event->capture = s->capture;
  if (s->capture) return cudaSuccess; // only others of the graph can wait for it
  auto here = std::make_shared<mark>(mark{s, false, 0});
  event->last = here;
  add(s, [=] {
    here->seconds = seconds_now();
    return here->done = true;
  });
  return cudaSuccess;
}

// A captured graph holds its work in the order in which the host asked for it, which keeps every wait.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->capture) {
    if (stream->capture && stream->capture != event->capture) return note(cudaErrorStreamCaptureUnsupported);
    stream->capture = event->capture;
    return cudaSuccess;
  }
  std::shared_ptr<mark> last = event->last;
  if (!last || last->done) return cudaSuccess;
  add(stream, [=] {
    if (!last->done) step(last->stream);
    return last->done;
  });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  REFUSE_IN_CAPTURE();
  if (!event->last || event->last->done) return cudaSuccess;
  step_any(event->last->stream);
  return note(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  REFUSE_IN_CAPTURE();
  for (; event->last && !event->last->done; sched_yield()) step(event->last->stream);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->last || !end->last) return note(cudaErrorInvalidValue);
  if (!begin->last->done || !end->last->done) return note(cudaErrorNotReady);
  *milliseconds = (float)((end->last->seconds - begin->last->seconds) * 1e3);
  return cudaSuccess;
}

// ---- captured graphs ----

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || stream->capture) return note(cudaErrorInvalidValue);
  stream->capture = new CUgraph_st;
  stream->begins_capture = true;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  *status = stream && stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
  if (!stream->capture || !stream->begins_capture) return note(cudaErrorInvalidValue);
  *out = stream->capture;
  stream->begins_capture = false;
  for (CUstream_st *s : streams)
    if (s->capture == *out) s->capture = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
  *out = new CUgraphExec_st{graph->all};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const work &w : graph->all) add(stream, w);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
