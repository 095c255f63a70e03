// backend: where a path is computed. One table of functions over whole steps, so that a backend can fuse
// inside a step and keeps its state on its device.
//
// Owns: the interface, the shapes and weights that it is given, and the table of backends that were built in.
// Refuses to know: files, MPI, which rank owns what beyond the shard that it is told.
// Invariant: the same path on the same input gives the same bits in every backend and row (docs/paths.md).
#pragma once
#include "base/device.h"
#include "base/status.h"
#include "kernels/formats/blocks.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- what is computed ----

typedef enum { PATH_F64, PATH_F32, PATH_Q8K } path_kind;
enum { PATH_COUNT = 3 };

enum { MAX_TOP_K = 64 }; // experts to a token; model.c refuses more

typedef struct {
  path_kind kind;
  const char *name;
  int version;       // of its definition in docs/paths.md
  uint64_t tag;      // names path and version in a digest
  size_t real_bytes; // of one activation: 8 for f64, else 4
} path_info;

const path_info *path_get(path_kind kind);
const path_info *path_find(const char *name, size_t length); // NULL: no such path

// ---- the model as a backend sees it: views, owned by the caller, alive until backend close ----

typedef struct {
  int64_t n_layers, hidden, n_heads, n_kv_heads, head_dim, n_experts, top_k, expert_width, vocabulary;
  double rms_epsilon, rope_base;
} model_shape;

typedef struct { // rows of `cols` weights, row after row; an expert stack is n_experts * rows rows
  const void *data;
  weight_type type;
  int64_t rows, cols;
} matrix;

typedef struct {
  const float *attn_norm, *q_norm, *k_norm, *ffn_norm; // [hidden], [head_dim], [head_dim], [hidden]
  matrix q, k, v, o;                                   // rows = outputs
  matrix router;                                       // [n_experts][hidden]
  matrix gate, up,
      down; // of one expert: [expert_width][hidden] twice, [hidden][expert_width]; expert e follows e - 1
} layer_weights;

typedef struct {
  model_shape shape;
  matrix embedding, output; // [vocabulary][hidden]; the same memory when tied
  const float *output_norm; // [hidden]
  layer_weights *layers;    // [n_layers]
} model_weights;

// Two index spaces of experts: over the whole layer, and over one rank's own.
typedef int32_t expert_global;
typedef int32_t expert_local; // -1: not this rank's

// ---- a forward pass over a batch ----

typedef struct { // n rows, each a token at a position of a sequence; among the rows that a step computes,
                 // those of a sequence ascend in position
  int64_t n;
  const int32_t *token, *sequence, *position;
} token_batch;

typedef struct { // host arrays, filled by route; [n][top_k] in slot order
  expert_global *expert;
  double
      *margin; // [n] probability of slot k - 1 minus that of the best expert not chosen, over the sum of all
} routing;

typedef enum {
  PROBE_LAYER_INPUT, // the residual stream [n][hidden] before the next layer: embed, or a layer's output
  PROBE_FFN_NORM,    // what the experts read [n][hidden]
} probe_point;

typedef enum {   // rows that cross ranks, of `shared`'s reals but for the experts
  ROWS_RESIDUAL, // the residual stream [n][hidden]
  ROWS_KEYS,     // keys and values as the products give them [n][n_kv_heads * head_dim]
  ROWS_VALUES,
  ROWS_NORMED,  // what the experts read [n][hidden]
  ROWS_EXPERTS, // the routing's experts [n][top_k], int32; only where rows lie on a device
  ROWS_SLOTS,   // the slots' outputs [n * top_k][hidden]
} row_kind;

typedef struct backend backend;

typedef struct {
  const model_weights *weights;
  path_kind shared;          // path of embedding, attention, router, combine, head
  path_kind experts;         // path of this rank's experts
  const expert_local *local; // [n_experts], indexed by expert_global
  int64_t n_sequences;       // KV caches, numbered from 0
  int64_t context;           // positions in each
  int64_t max_batch;         // tokens in the largest batch
  int64_t max_logit_rows;    // rows in the largest head call
  bool kv_f16;               // keys and values rounded to f16; ignored by f64, which keeps doubles
  bool computes_shared; // false: an expert rank; of the steps it takes only `experts`, with a routing, and of
                        // the state there is only what that needs: n_sequences and context are not used
  int threads;
  int host_rank;   // this rank's place among the ranks of its host: chooses a device
  const char *row; // ISA row, "auto" or a name

  // Where rows of slots lie when the host does not know the routing (`route` with NULL, several ranks): that
  // of slot i at rank_of_expert[expert] * n_slots + i, in batches of up to fixed_tokens tokens (0: never so).
  int rank, n_ranks;
  const int32_t *rank_of_expert; // [n_experts], indexed by expert_global
  int64_t fixed_tokens;
  // Asked now and then while the host waits for the device, with the seconds waited so far: a fault ends the
  // wait, and then the device may never answer again. NULL: waits have no end.
  status (*watch)(void *context, double waited);
  void *watch_context;
} backend_params;

typedef enum { BACKEND_CPU, BACKEND_CUDA } backend_kind; // all that there are, built in or not
enum { BACKEND_COUNT = 2 };

typedef struct {
  backend_kind kind;
  const char *(*rows)(void); // names of the rows that this machine can run, best first, comma-separated
  bool (*has_path)(path_kind);
  int (*devices)(void); // on this host, each of which a rank can have to itself; NULL: computes on its cores

  // The device that the rank with this place on its host takes; NULL, or false: none.
  bool (*device)(device_id *out, int host_rank);

  // Allocates everything that the forward pass needs. The forward pass itself allocates nothing.
  status (*open)(backend **out, const backend_params *params);
  void (*close)(backend *);            // takes NULL
  const char *(*row)(const backend *); // name of the row in use
  uint64_t (*state_bytes)(const backend *);

  // The steps, in the order in which layer.c calls them. Residual stream, queries and slot outputs stay
  // inside. Steps that take `first` and `count` compute so many rows of the batch and leave the others alone.
  status (*embed)(backend *, const token_batch *);
  // Caches keys and values, and adds the attention's output to the residual stream.
  status (*attention)(backend *, int64_t layer, const token_batch *);
  // The same in two steps, for part of a batch: its queries, keys and values; then its attention, when the
  // ROWS_KEYS and ROWS_VALUES of the whole batch are there. They are all cached.
  status (*project)(backend *, int64_t layer, const token_batch *, int64_t first, int64_t count);
  status (*attend)(backend *, int64_t layer, const token_batch *, int64_t first, int64_t count);
  status (*route)(backend *, int64_t layer, const token_batch *, int64_t first, int64_t count, routing *out);
  // Computes the slots of own experts, of all rows; the output of slot (t, k) goes to row
  // row_of_slot[t * top_k + k]. Inputs that `route` did not compute here are the ROWS_NORMED that were
  // brought.
  status (*experts)(backend *, int64_t layer, const token_batch *, const routing *,
                    const int64_t *row_of_slot);
  // Host memory of all rows of a kind, for the exchange to complete.
  void *(*rows_host)(backend *, row_kind);
  // Rows first .. first + count - 1 to the memory of `rows_host`, and from there back. One host buffer serves
  // every kind: rows_read waits for the writes before it, and each use begins with one, of 0 rows if need be.
  // NULL where the rows lie there anyway.
  status (*rows_read)(backend *, row_kind, int64_t first, int64_t count);
  status (*rows_write)(backend *, row_kind, int64_t first, int64_t count);
  // Sums each token's slots in slot order and adds the sum to the residual stream.
  status (*combine)(backend *, int64_t layer, const token_batch *, int64_t first, int64_t count,
                    const int64_t *row_of_slot);
  // Logits of rows[count] of the batch, reals of `shared`, [count][vocabulary].
  status (*head)(backend *, const int64_t *rows, int64_t count, void *logits);

  // For backends whose state lies on a device; NULL where it lies in host memory. There `route` and `experts`
  // take a NULL routing and row map, so that routing never leaves the device: when one rank owns every
  // expert, or when rows have fixed places (backend_params); `head` takes NULL logits and keeps them;
  // `digest` may be done only when `finish` returns.
  status (*finish)(backend *);
  status (*logits_read)(backend *, int64_t first, int64_t count, void *out);
  // Of rows[count] of the batch, whose logits are those of the last `head`.
  status (*logits_digest)(backend *, const int64_t *rows, int64_t count, uint64_t *sums);
  // After `route` with NULL on each rank for its own rows, when the ROWS_NORMED and ROWS_EXPERTS of the whole
  // batch are there: brings the experts to the host, and begins with the own ones meanwhile.
  status (*routed)(backend *, int64_t layer, const token_batch *, routing *out);
  // All rows of a kind where they are computed, slots also at fixed places [n_ranks][n * top_k][hidden], and
  // the stream that orders all work: for a transport that takes them from there.
  void *(*rows_device)(backend *, row_kind);
  void *(*stream)(backend *);
  // Takes `steps` (embed and all layers of a batch): records them once for a shape of batch and replays the
  // recording after that, or simply runs them. Only with a NULL routing.
  status (*recorded)(backend *, const token_batch *, status (*steps)(void *context, const token_batch *),
                     void *context);

  // Copies n rows of a probe to the host, widened to double.
  status (*probe)(backend *, probe_point, int64_t n, double *out);
  // Digest of the probe PROBE_LAYER_INPUT's rows as layer `layer`, added to sums[sequence] of each row. Sums
  // of whole batches (count is the batch's) and of parts are kept apart.
  status (*digest)(backend *, int64_t layer, const token_batch *, int64_t first, int64_t count,
                   uint64_t *sums);
} backend_ops;

// Every backend object begins with its table.
struct backend {
  const backend_ops *ops;
};

const char *backend_name(backend_kind kind);       // "cpu"
bool backend_on_device(backend_kind kind);         // false: it computes on the host's cores
const backend_ops *backend_get(backend_kind kind); // NULL: not built in
const backend_ops *const *backend_table(void);     // NULL-terminated, preferred first

// ---- arms ----

typedef struct {
  const path_info *path;
  const backend_ops *backend;
} arm_spec;

// The error names what is missing in this build.
status arm_spec_get(arm_spec *out, path_kind path, backend_kind where);

// Adds to *sum the digest of n reals (float or double by real_bytes) as row (layer, token) of a path.
void digest_row(uint64_t *sum, const path_info *path, int64_t layer, int64_t token, const void *reals,
                size_t n);

#ifdef __cplusplus
}
#endif
