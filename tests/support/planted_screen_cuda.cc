// planted_screen_cuda: where a weight lies in the memory of the emulated GPU, for planted_screen.c.
#include "kernels/cuda/state.cuh"

extern "C" void *planted_device_weight(backend *b, int64_t layer) {
  if (!backend_is_on_device(b->ops)) return nullptr;
  return (void *)((cuda_backend *)b)->weights->layers[layer].q.data;
}
