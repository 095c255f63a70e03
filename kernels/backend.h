// backend: where a path is computed. One table of functions over whole steps, so that a backend can fuse
// inside a step and keeps its state on its device.
//
// Owns: the interface, the shapes and weights that it is given, and the table of backends that were built in.
// Independent of: files, MPI, which rank owns what beyond the shard that it is given.
// Invariant: the same path on the same input gives the same bits in every backend and row (docs/paths.md).
#pragma once
#include "base/device.h"
#include "base/status.h"
#include "kernels/expert_map.h"
#include "kernels/formats/types.h"
#include "kernels/phases.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- what is computed ----

typedef enum { PATH_F64, PATH_F32, PATH_Q8K, PATH_Q8K_SPLIT } path_kind;
enum { PATH_COUNT = 4 };

enum { ATTENTION_CHUNK = 64 }; // key positions to a chunk where attention is computed in reals

typedef enum {      // what a path keeps of keys and values, and computes attention with
  ATTENTION_REALS,  // its reals
  ATTENTION_RUN_KV, // its reals, from a cache that is as run.kv says
  ATTENTION_EXACT,  // integers (formats/attention_exact.h)
} attention_form;

enum { MAX_TOP_K = 64 }; // experts to a token; model.c refuses more

typedef struct {
  path_kind kind;
  const char *name;
  int version;       // of its definition in docs/paths.md
  uint64_t tag;      // names path and version in a digest
  size_t real_bytes; // of one activation: 8 for f64, else 4
  attention_form attention;
} path_info;

// A path's name and nature; its version and tag are those of a model without weights in blocks of 32.
const path_info *path_get(path_kind kind);
const path_info *path_newest(path_kind kind);                // as path_get, with the newest version
const path_info *path_find(const char *name, size_t length); // NULL: no such path
bool path_reads_kv(const path_info *path);                   // whether run.kv says how its cache is kept
// Of a head's key or value in its cache.
uint64_t path_cache_bytes(const path_info *path, int64_t head_dim, bool kv_f16);
// Whether the path's products with weights of this type are of bytes (rounded activations), not of reals.
bool product_is_of_bytes(path_kind path, weight_type type);
// The path by whose definition q, k, v and o are multiplied, which stand before the router.
path_kind path_before_router(path_kind path);

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
  matrix gate, up, down; // of one expert: [expert_width][hidden] twice, [hidden][expert_width]; expert e
                         // follows e - 1
} layer_weights;

typedef struct {
  model_shape shape;
  matrix embedding, output; // [vocabulary][hidden]; the same memory when tied
  const float *output_norm; // [hidden]
  layer_weights *layers;    // [n_layers]
} model_weights;

// The path as it is defined for this model: what a digest of it is tagged with (docs/paths.md, "Versions").
const path_info *path_for(path_kind kind, const model_weights *weights);

// An expert among all of a layer, a type of its own: an index among those that one rank holds
// (expert_map.h) is another. Arrays travel as int32.
typedef struct {
  int32_t id;
} expert_global;

static_assert(sizeof(expert_global) == sizeof(int32_t),
              "lists of experts are int32 in files, in messages and on devices");

// ---- a forward pass over a batch ----

typedef struct { // n rows, each a token at a position of a sequence; among the rows that a step computes,
                 // those of a sequence ascend in position
  int64_t n;
  const int32_t *token, *sequence, *position;
} token_batch;

typedef struct {         // host arrays of a batch's routing, in slot order
  expert_global *expert; // [n][top_k]
  double *weight;        // [n][top_k] after renormalising; a real of the path, widened
  double
      *margin; // [n] probability of slot k - 1 minus that of the best expert not chosen, over the sum of all
} routing;

typedef struct { // the rows and parts of a routing_fetch, for the routing_wait that follows
  int64_t first, count;
  unsigned parts;
} routing_range;

// Which of its arrays a call is about; the others are not touched.
enum { ROUTING_NOTHING = 0, ROUTING_EXPERTS = 1, ROUTING_WEIGHTS = 2, ROUTING_MARGINS = 4 };

typedef enum {    // the row in ROWS_SLOTS of the output of slot i = token * top_k + k
  SLOTS_IN_ORDER, // i: this rank has every expert
  SLOTS_PLACED,   // row_of_slot[i]: the host knows the routing
  SLOTS_AT_FIXED, // the rank that computes it * n_slots + i (expert_map): known without the routing
  SLOTS_SENT, // i, in the memory of the rank of its token, where experts_down itself stores it (peers_open)
} slot_order;

typedef struct { // rows in ROWS_SLOTS
  int64_t first, count;
} slot_range;

typedef struct {
  slot_order order;
  const int64_t *row_of_slot;    // [n_slots] of SLOTS_PLACED, else not read
  const int64_t *tokens_of_rank; // [n_ranks] of SLOTS_SENT: successive rows of the batch, else not read
  const slot_range *own; // of SLOTS_PLACED: the rows that this rank fills, as the others expect it; NULL: not
                         // known. A backend that has the routing on the host refuses to fill others
} slot_places;

// Named points of the forward pass, by llama.cpp's tensor names (kernels/probes.c).
typedef enum {
  PROBE_INP_EMBD, // of a batch, without a layer: the token embeddings [hidden]
  PROBE_ATTN_NORM,
  PROBE_QCUR, // after norm and RoPE, times 1 / sqrt(head_dim) [n_heads][head_dim]
  PROBE_KCUR, // after norm and RoPE [n_kv_heads][head_dim]
  PROBE_VCUR,
  PROBE_KQV_OUT, // attention's output before o [n_heads][head_dim]
  PROBE_FFN_INP, // the residual stream after attention [hidden]
  PROBE_FFN_NORM,
  PROBE_FFN_MOE_LOGITS,       // of the router [n_experts]
  PROBE_FFN_MOE_TOPK,         // experts in slot order, int32 [top_k]
  PROBE_FFN_MOE_WEIGHTS_NORM, // after renormalising [top_k]
  PROBE_FFN_MOE_GATE,         // of each slot, in reals of the experts' path [top_k][expert_width]
  PROBE_FFN_MOE_UP,
  PROBE_FFN_MOE_SWIGLU,
  PROBE_FFN_MOE_DOWN,  // [top_k][hidden]
  PROBE_FFN_MOE_OUT,   // the slots' weighted sum [hidden]
  PROBE_L_OUT,         // the residual stream after the layer [hidden]
  PROBE_RESULT_NORM,   // of the rows of a head, without a layer [hidden]
  PROBE_RESULT_OUTPUT, // logits [vocabulary]
} probe_point;
enum { PROBE_COUNT = PROBE_RESULT_OUTPUT + 1 };

typedef enum { PROBE_OF_BATCH, PROBE_OF_LAYER, PROBE_OF_HEAD } probe_scope;

typedef struct {
  const char *name;
  probe_scope scope;
  bool per_slot; // a row is a slot's, and only the rank that computes it has it
  bool is_ids;   // int32 in place of reals
} probe_info;

const probe_info *probe_get(probe_point point);
bool probe_find(probe_point *out, const char *name);          // false: no such probe
int64_t probe_width(probe_point point, const model_shape *s); // numbers in a row
int probe_dims(int64_t out[2], probe_point point,
               const model_shape *s); // how these are arranged: 1 or 2 sizes
// The numbers of this probe are llama.cpp's times this.
double probe_factor(probe_point point, const model_shape *s);

typedef struct {
  uint32_t wanted; // bit 1 << point; 0: no probe is watched
  // Called by one thread at a time, while a step runs: row `row` of the batch (of a probe per slot, slot
  // `row`; of a head, its row), probe_width numbers of `real_bytes` each.
  void (*show)(void *context, probe_point point, int64_t layer, int64_t row, const void *numbers,
               size_t real_bytes);
  void *context;
  // Points of backend_ops.settable whose numbers `impose` overwrites before anything reads them, also `show`:
  // of each row that the step computes, and of keys and values of each that it caches. Called by several
  // threads at a time, each for rows of its own. 0: none, which costs nothing.
  uint32_t imposed;
  void (*impose)(void *context, probe_point point, int64_t row, void *numbers, size_t real_bytes);
  void *impose_context;
} probe_watch;

static inline bool probe_is_watched(const probe_watch *watch, probe_point point) {
  return watch->wanted >> point & 1;
}

static inline bool probe_is_imposed(const probe_watch *watch, probe_point point) {
  return watch->imposed >> point & 1;
}

typedef enum {   // rows that cross ranks, of `shared`'s reals but for the experts
  ROWS_RESIDUAL, // the residual stream [n][hidden]
  ROWS_KEYS,     // keys and values as the products give them [n][n_kv_heads * head_dim]
  ROWS_VALUES,
  ROWS_NORMED,  // what the experts read [n][hidden]
  ROWS_EXPERTS, // the routing's experts [n][top_k], int32; only where rows lie on a device
  ROWS_SLOTS,   // the slots' outputs [n * top_k][hidden]
  // The parts that ranks have of a step's outputs, rank after rank, of each [n][its outputs]; a row is one
  // output of a token. They are read and written whole.
  PARTS_HEADS,  // outputs are key/value heads: their queries' attention, then the key and the value as cached
  PARTS_OUTPUT, // rows of o
  PARTS_LOGITS, // rows of the head
} row_kind;

// Outputs of a shared step that ranks divide: of each matrix's rows, or of key/value heads with their
// queries.
typedef struct {
  int64_t first, count;
} output_range;

// The part of `total` outputs that is rank `rank`'s: as even as whole units allow.
static inline output_range output_range_of(int64_t total, int64_t unit, int rank, int n_ranks) {
  int64_t units = (total + unit - 1) / unit;
  int64_t first = units * rank / n_ranks * unit, end = units * (rank + 1) / n_ranks * unit;
  first = first < total ? first : total;
  end = end < total ? end : total;
  return (output_range){first, end - first};
}

enum { TEAM_BATCHES = 30 }; // of few tokens, over which a backend may try how many threads are fastest

enum { OUTPUT_UNIT = 64 }; // rows of a matrix that stay together: a tile of every kernel

typedef struct {     // names a rank's memory to the other ranks of its host
  uint64_t layout;   // ranks whose layouts differ cannot be peers
  bool offers_fused; // one token's layers in one launch; taken where all ranks offer it
  uint8_t bytes[64];
} peer_handle;
enum { MOST_PEERS = 8 }; // ranks whose devices store into each other's memory

typedef struct backend backend;

typedef struct {
  const model_weights *weights;
  path_kind shared;       // path of embedding, attention, router, combine, head
  path_kind experts;      // path of this rank's experts
  expert_map map;         // which slots this rank computes
  int64_t n_sequences;    // KV caches, numbered from 0
  int64_t context;        // positions in each
  int64_t max_batch;      // tokens in the largest batch
  int64_t max_logit_rows; // rows in the largest head call
  bool kv_f16;            // keys and values rounded to f16; only where `shared` is ATTENTION_RUN_KV
  bool computes_shared;   // false: an expert rank; it takes only routing_write, experts_up and experts_down,
                          // and of the state there is only what these need: n_sequences and context are
                          // not used
  int threads;
  bool fits_team;  // batches may run on fewer threads, where that is faster (TEAM_BATCHES)
  int host_rank;   // this rank's place among the ranks of its host: chooses a device
  const char *row; // ISA row, "auto" or a name

  // SLOTS_AT_FIXED: in batches of up to fixed_tokens tokens (0: never).
  int rank, n_ranks;
  int64_t fixed_tokens;
  bool has_peers;       // peers_open may follow: what other ranks' devices store into lies together
  int64_t parts_tokens; // tokens of the largest batch whose outputs ranks divide (heads_part); 0: none
  bool parts_head;      // ranks divide the outputs of heads (head_part)
  // Called from time to time while the host waits for the device, with the seconds waited so far. An error
  // from it ends the wait, and then the device may never answer again. NULL: waits have no deadline.
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

  // How the devices with these two indices on this host reach each other. NULL: there are none.
  device_link (*link)(int32_t a, int32_t b);

  // For the laboratory: out[n] = the device's own approximate 2^x (ex2.approx). No path uses it. NULL: none.
  status (*exp2_approx)(float *out, const float *x, int64_t n);

  // Tokens of a prompt that are computed quickest at once, where there is memory for them: run.chunk = 0.
  int64_t prompt_chunk;
  // The largest of params->max_batch, its half, quarter, .. down to n_sequences for whose state the device
  // has memory left; max_batch where none does, so that `open` says what would fit. NULL: host memory.
  status (*batch_that_fits)(int64_t *out, const backend_params *params);

  // Allocates everything that the forward pass needs. The forward pass itself allocates nothing.
  status (*open)(backend **out, const backend_params *params);
  void (*close)(backend *);            // takes NULL
  const char *(*row)(const backend *); // name of the row in use
  uint64_t (*state_bytes)(const backend *);

  // ---- the forward pass: src/run/forward.c calls the steps in this order, and no step starts another ----
  //
  // A batch's rows are its tokens in the order in which they are computed. The residual stream x, queries,
  // the routing and the slots' outputs stay in the backend. Steps that take `first` and `count` compute so
  // many rows and leave the others alone. On a device a step is enqueued and returns; what reads waits.

  // x = embedding of each token. Starts a batch.
  status (*embed)(backend *, const token_batch *rows);

  // A layer is two whole steps:
  //   attention   needs x; gives x += o(attention(norm(x))) and keeps keys and values
  //   moe         needs x; gives x += the chosen experts' outputs, in slot order. Where the host does not
  //               read the routing: for a rank that owns every expert, or with peers, which take the step
  //               together
  status (*attention)(backend *, int64_t layer, const token_batch *rows);
  status (*moe)(backend *, int64_t layer, const token_batch *rows);

  // or, where rows cross ranks in between or the host reads or imposes something, their parts:
  //   project       needs x of the rows; gives their q, k, v (ROWS_KEYS, ROWS_VALUES)
  //   attend        needs q of the rows, k and v of the whole batch; caches these; x += o(attention)
  //   route         needs x of the rows; gives their ROWS_NORMED and routing. parts: of the routing, all that
  //                 routing_fetch may ask for afterwards
  //   experts_up    needs ROWS_NORMED and routing of the whole batch; gives silu(gate) * up of its own slots
  //   experts_down  needs that and places; gives its own slots (ROWS_SLOTS)
  //   combine       needs the rows' slots at their places; x += their weighted sum in slot order
  status (*project)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
  status (*attend)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
  status (*route)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                  unsigned parts);
  status (*experts_up)(backend *, int64_t layer, const token_batch *rows);
  status (*experts_down)(backend *, int64_t layer, const token_batch *rows, const slot_places *places);
  status (*combine)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                    const slot_places *places);

  // Logits of rows[count] of the batch, which stay in the backend until the next head.
  status (*head)(backend *, const token_batch *rows, const int64_t *row, int64_t count);
  // *out: host memory of them, reals of `shared` [count][vocabulary], valid until the next head. Waits.
  status (*logits_read)(backend *, int64_t count, const void **out);
  // Adds the digest of each one's logits to sums[its sequence]; on a device done when `finish` returns.
  status (*logits_digest)(backend *, const token_batch *rows, const int64_t *row, int64_t count,
                          uint64_t *sums);

  // ---- the routing on its way to the host and back ----

  // Starts the transfer of `parts` of the routing of rows first .. to the host; after routing_wait they are
  // in out's rows first ... Between the two a device keeps computing.
  status (*routing_fetch)(backend *, int64_t first, int64_t count, unsigned parts);
  status (*routing_wait)(backend *, routing *out);
  // Rows first .. take experts, and weights where `parts` has them, from `in`: computed on other ranks, or
  // imposed.
  status (*routing_write)(backend *, int64_t first, int64_t count, unsigned parts, const routing *in);
  // ROWS_NORMED and ROWS_EXPERTS of the whole batch have come: what other ranks routed is as if routed here.
  status (*routing_arrived)(backend *, const token_batch *rows);

  // ---- rows that cross ranks ----

  // Host memory of all rows of a kind, for the exchange to complete, and copies of rows first .. to it and
  // back. On a device one host buffer serves every kind: rows_read waits for the writes before it, and each
  // use starts with one, of 0 rows if need be.
  void *(*rows_host)(backend *, row_kind);
  status (*rows_read)(backend *, row_kind, int64_t first, int64_t count);
  status (*rows_write)(backend *, row_kind, int64_t first, int64_t count);

  // ---- what the host observes and imposes ----

  // Rows of the residual stream as doubles, exact: out of the backend (waits), and into it.
  status (*stream_read)(backend *, int64_t first, int64_t count, double *out);
  status (*stream_write)(backend *, int64_t first, int64_t count, const double *in);
  // From here on the steps show what `watch` wants, and take what it imposes; probes that nobody wants cost
  // nothing, not even memory.
  uint32_t settable; // bits 1 << probe_point that can be imposed
  status (*probes_watch)(backend *, const probe_watch *watch);
  // Digest of x as the output of layer `layer`, added to sums[sequence] of each row. Sums of whole batches
  // (count is the batch's) and of parts are kept apart. On a device done when `finish` returns.
  status (*digest)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                   uint64_t *sums);

  // ---- optional: the budget of a token, by phase ----

  // From here on the steps add to `to` what their phases take; NULL: no more, which costs a branch a phase.
  // On a device all is there when `finish` returns, and a backend may run the steps one by one meanwhile.
  status (*phases_watch)(backend *, phase_times *to);
  // What the hardware could do at most, measured here or known; NaN: not known.
  status (*peaks)(backend *, backend_peaks *out);
  // The threads that compute batches of so many tokens. NULL: it has no threads.
  int (*threads)(const backend *, int64_t tokens);

  // ---- optional, all or none: for backends whose state lies on a device ----

  // Waits for all that was enqueued.
  status (*finish)(backend *);
  // All rows of a kind where they are computed, slots also at fixed places [n_ranks][n * top_k][hidden], and
  // the stream that orders all work: for a transport that takes them from there.
  void *(*rows_device)(backend *, row_kind);
  void *(*stream)(backend *);
  // Takes `steps` (embed and all layers of the batch `rows`, with nothing for the host in between): captures
  // them once for a shape of batch and launches the captured graph after that, or simply runs them. way:
  // steps of a batch of one shape that differ have different ones. whole: of a layer they ask for attention,
  // route and moe only, never for a part of one.
  status (*captured)(backend *, const token_batch *rows, int way, bool whole,
                     status (*steps)(void *context, const token_batch *rows), void *context);

  // ---- the same backends: peers, whose devices store into each other's memory inside the steps ----
  //
  // Rows then cross ranks without a transport. A wait for a peer that lasts longer than `seconds` ends, and
  // the next wait of the host is an error. NULL: none of them.

  // Local. This rank's memory, for the others of its host. An error: it cannot be shared.
  status (*peers_export)(backend *, peer_handle *out);
  // Local. all[n_ranks] handles; seconds: of a wait for a peer. An error: one cannot be reached.
  status (*peers_open)(backend *, const peer_handle *all, double seconds);
  // Collective. Stores known bytes and finds those of all others. An error: they do not arrive.
  status (*peers_try)(backend *);
  void (*peers_leave)(backend *); // local: from here on the backend has no peers
  // Collective. All-gathers rows of up to four kinds, tokens_of_rank[n_ranks] of each rank: they have
  // arrived for what is enqueued afterwards.
  status (*peers_gather)(backend *, const row_kind *kinds, int count, const int64_t *tokens_of_rank);
  size_t (*peers_row_bytes)(backend *, row_kind); // local; of a row as peers_gather sends it
  // Instead of attend, where no two rows of the batch are of one sequence: needs q, k and v of the rows alone
  // and caches no others; these cache_others does, which needs k and v of the whole batch. Shows no probe.
  status (*attend_apart)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
  status (*cache_others)(backend *, int64_t layer, const token_batch *rows, int64_t first, int64_t count);

  // ---- optional, all or none: attention whose outputs the ranks divide (backend_params.parts_tokens) ----
  //
  // Instead of attention: heads_part, an all-gather of PARTS_HEADS, output_part, one of PARTS_OUTPUT, and
  // output_add. A rank's part is output_range_of the heads (a unit is one) or rows (OUTPUT_UNIT); the caches
  // are whole on every rank. No probe is shown.

  // Needs x; gives this rank's PARTS_HEADS.
  status (*heads_part)(backend *, int64_t layer, const token_batch *rows);
  // Needs all PARTS_HEADS; caches the others' keys and values; gives this rank's PARTS_OUTPUT.
  status (*output_part)(backend *, int64_t layer, const token_batch *rows);
  status (*output_add)(backend *, const token_batch *rows); // needs all PARTS_OUTPUT; x += o(attention)

  // ---- optional, all or none: a head whose outputs the ranks divide (backend_params.parts_head) ----

  // Instead of head; a rank's part is output_range_of the rows (OUTPUT_UNIT). No probe is shown.
  status (*head_part)(backend *, const token_batch *rows, const int64_t *row, int64_t count);
  // Adds the digest of this rank's PARTS_LOGITS to sums[its sequence]; on a device done when `finish`
  // returns.
  status (*logits_part_digest)(backend *, const token_batch *rows, const int64_t *row, int64_t count,
                               uint64_t *sums);
  // Needs all PARTS_LOGITS; gives what logits_read reads.
  status (*logits_join)(backend *, int64_t count);
} backend_ops;

static inline bool backend_is_on_device(const backend_ops *ops) {
  return ops->finish != NULL;
}

// Every backend object starts with its table.
struct backend {
  const backend_ops *ops;
};

const char *backend_name(backend_kind kind);       // "cpu"
bool backend_needs_device(backend_kind kind);      // of that kind, built in or not; false: the host's cores
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
// The same of a part of the row: its elements first .. first + n - 1.
void digest_row_part(uint64_t *sum, const path_info *path, int64_t layer, int64_t token, const void *reals,
                     int64_t first, size_t n);

#ifdef __cplusplus
}
#endif
