// routes: the experts that a run chose, as a file that another run takes.
//
// Owns: the check of such a file: its type, shape, the range of every id, and no expert twice in a token.
// Independent of: who wrote it. The format is NumPy's, int32 or int64 [n_layers][n_token][top_k]; the order
// in a token does not matter (arm_impose_choice).
#pragma once
#include "kernels/backend.h"

typedef struct {
  int64_t n_layers, n_tokens, top_k;
  expert_global *expert; // [n_layers][n_tokens][top_k]
  uint64_t hash;         // of all of these
} routes;

enum { ROUTES_OF_ANY_TOKENS = -1 }; // as n_tokens: as many as the file has, at least one

// Local. The error names the file, and the element where one is wrong. routes_close releases what there is,
// after an error too.
status routes_open(routes *out, const char *path, const model_shape *shape, int64_t n_tokens);
void routes_close(routes *r);

// Of `layer`, from the token `first` (counted over all sequences) on: [..][top_k], a view.
static inline expert_global *routes_at(const routes *r, int64_t layer, int64_t first) {
  return r->expert + (layer * r->n_tokens + first) * r->top_k;
}
