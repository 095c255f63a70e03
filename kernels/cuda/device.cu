// device: which GPU a rank takes, its limits, and waiting for it.
#include "base/clock.h"
#include "kernels/cuda/device.cuh"
#include <sched.h>
#include <stdio.h>
#include <string.h>

bool device_take(device_id *out, int host_rank) {
  int devices = 0;
  *out = device_id{};
  out->index = -1;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) return false;
  cudaDeviceProp p;
  int index = host_rank % devices; // ranks of a host share its GPUs evenly
  if (cudaGetDeviceProperties(&p, index) != cudaSuccess) return false;
  out->index = index;
  snprintf(out->pci, sizeof out->pci, "%04x:%02x:%02x.0", (unsigned)p.pciDomainID, (unsigned)p.pciBusID,
           (unsigned)p.pciDeviceID);
  static_assert(sizeof out->uuid == sizeof p.uuid.bytes);
  memcpy(out->uuid, p.uuid.bytes, sizeof out->uuid);
  snprintf(out->name, sizeof out->name, "%.63s", p.name);
  return true;
}

device_link device_link_between(int32_t a, int32_t b) {
  int reaches = 0, atomics = 0;
  if (cudaDeviceCanAccessPeer(&reaches, a, b) != cudaSuccess || !reaches) return DEVICE_LINK_HOST;
  if (cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, a, b) != cudaSuccess)
    atomics = 0;
  return atomics ? DEVICE_LINK_ATOMIC : DEVICE_LINK_PEER;
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

int device_multiprocessors() {
  static int count;
  if (!count) count = device_attribute(cudaDevAttrMultiProcessorCount);
  return count > 0 ? count : 1;
}

size_t device_shared_bytes() {
  static int bytes;
  if (!bytes) bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return (size_t)bytes;
}

bool device_overlaps_launches() {
  static int major;
  if (!major) major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  return major >= 9;
}

static bool stuck;

bool device_is_stuck() {
  return stuck;
}

template <typename Query> static status wait_for(Query query, const backend_params *p) {
  double start = clock_seconds();
  for (unsigned polls = 1;; polls++) {
    cudaError_t error = query();
    if (error == cudaSuccess) return 0;
    cudaGetLastError(); // not ready is kept as an error otherwise, for another call to find
    if (error != cudaErrorNotReady)
      return FAIL("CUDA: work that was enqueued before: %s", cudaGetErrorString(error));
    if (p->watch && polls % 64 == 0 && p->watch(p->watch_context, clock_seconds() - start)) {
      stuck = true;
      return 1;
    }
    sched_yield();
  }
}

status device_wait(cudaStream_t stream, const backend_params *p) {
  return wait_for([=] { return cudaStreamQuery(stream); }, p);
}

status device_wait_event(cudaEvent_t event, const backend_params *p) {
  return wait_for([=] { return cudaEventQuery(event); }, p);
}
