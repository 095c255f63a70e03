// model: an open model file: its shape, and its tensors as the backend's view of the weights.
//
// Owns: the open file, the check of every tensor's shape, the views, the check of the weights' values.
// Independent of: ranks (a caller says which experts to check), how anything is computed.
// Invariant: nothing is taken from the model's name; an unknown tensor or an unsupported setting is an error,
// because ignoring it would compute another model. Which those are stands in the architecture's table
// (qwen3moe.c).
#pragma once
#include "src/model/architecture.h"
#include "src/model/gguf.h"

typedef struct {
  gguf *file;
  const architecture *architecture;
  char *name;             // general.name, or the file's name
  model_weights weights;  // views into the file; norms are copied, as floats
  int64_t context_length; // that the model was trained for
  bool tied;              // no output.weight: the embedding serves as head
  uint64_t shared_bytes;  // of all tensors that are not experts
  char types[160];        // "Q4_K 12, Q6_K 3, F32 19"
  message_list warnings;  // what a report should repeat of this file: unknown settings, tensors of zeros
  bool whole;             // false, where it was opened to be shown: it has no weights, and sizes may be 0
} model;

// Opens and checks everything but the weights' values. After an error nothing stays open.
status model_open(model **out, const char *path);
// The same to look into the file: everything for which model_open refuses it is added to `refusals`, as long
// as keys and tensors can still be listed. Then `whole` is false, and `architecture` NULL if it is unknown.
status model_open_to_show(model **out, const char *path, message_list *refusals);
void model_close(model *m); // takes NULL

bool model_is_expert_stack(int64_t *layer, const model *m, const gguf_tensor *t); // *layer: of the stack

uint64_t model_expert_bytes(const model *m, int64_t layer); // of one expert of the layer
uint64_t model_experts_bytes(const model *m,
                             const expert_map *held); // of those that the rank holds, over all layers

typedef struct { // zeros where a trained model has weights: slices that are nothing else, and whole pages
  uint64_t bytes, first; // the lowest place, in its file
} zero_bytes;

// Local. Reads the shared tensors and the experts that the rank holds once: a number or scale that is not
// finite is an error, hashes are summed, and zeros[tensor] is filled (NULL: zeros are not looked for). The
// sums do not depend on threads; those of the experts, each counted by the first of its holders, add up over
// ranks to that of the file, and so do its zeros.
status model_check_weights(const model *m, const expert_map *held, int rank, int threads,
                           uint64_t *shared_hash, uint64_t *experts_hash, zero_bytes *zeros);

// Local. Adds a warning for each tensor with zeros; zeros[tensors] of all ranks together.
status model_warn_of_zeros(model *m, const zero_bytes *zeros);
