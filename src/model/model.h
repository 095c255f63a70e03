// model: what the keys and tensors of a GGUF mean: a Qwen3-MoE's shape and its weights.
//
// Owns: the open file, the shape read from metadata, the check of every tensor's shape and type, the map from
// tensors to the backend's view of the weights.
// Refuses to know: ranks (it is told which experts to check), how anything is computed.
// Invariant: nothing is taken from the model's name; an unknown tensor or an unsupported setting is a fault,
// because ignoring it would compute another model. Source of the names: ggml's qwen3moe architecture.
#pragma once
#include "kernels/backend.h"
#include "src/model/gguf.h"

typedef struct {
  gguf *file;
  char *name;             // general.name, or the file's name
  model_weights weights;  // views into the file; norms are copied, as floats
  int64_t context_length; // that the model was trained for
  bool tied;              // no output.weight: the embedding serves as head
  uint64_t expert_bytes;  // of one expert, over all layers
  uint64_t shared_bytes;  // of all tensors that are not experts
  char types[160];        // "Q4_K 12, Q6_K 3, F32 19"
} model;

// Opens and checks everything but the weights' values. On a fault nothing stays open.
status model_open(model **out, const char *path);
void model_close(model *m); // takes NULL

// Bytes of the experts that `owned` marks with >= 0, over all layers.
uint64_t model_experts_bytes(const model *m, const expert_local *owned);

// Reads the shared tensors and the owned experts once: refuses a scale that is not finite and sums hashes.
// The sums do not depend on threads; hashes of different experts add up over ranks to that of the whole file.
status model_check_weights(const model *m, const expert_local *owned, int threads, uint64_t *shared_hash,
                           uint64_t *experts_hash);
