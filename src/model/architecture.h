// architecture: the form of the table that says what a model file of one kind holds, and look-ups in it.
//
// A new architecture is a table like the one in qwen3moe.c, and its place in the list in settings.c. Whatever
// depends on tensors and settings reads the table: settings.c and model.c, which open files, src/synth, which
// writes them, `inspect` and the report. What is computed with the tensors stands in src/run/forward.c.
//
// Independent of: files; there are names, sizes and rules only.
#pragma once
#include "kernels/backend.h"

// ---- tensors ----

typedef enum { // what a tensor is for; src/synth has a case for each, so that none is forgotten there
  TENSOR_TOKEN_EMBD,
  TENSOR_ATTN_NORM,
  TENSOR_ATTN_Q,
  TENSOR_ATTN_K,
  TENSOR_ATTN_V,
  TENSOR_ATTN_Q_NORM,
  TENSOR_ATTN_K_NORM,
  TENSOR_ATTN_OUTPUT,
  TENSOR_FFN_NORM,
  TENSOR_FFN_GATE_INP,
  TENSOR_FFN_GATE_EXPS,
  TENSOR_FFN_UP_EXPS,
  TENSOR_FFN_DOWN_EXPS,
  TENSOR_OUTPUT_NORM,
  TENSOR_OUTPUT,
} tensor_id;

typedef enum {    // each may have any weight type that the program computes with
  TENSOR_VECTOR,  // of a norm; copied as floats, whatever type the file has
  TENSOR_ROUTER,  // a matrix that quantisers leave in F32
  TENSOR_MATRIX,  // rows of weights
  TENSOR_EXPERTS, // a stack of matrices, one for each expert: distributed over ranks
} tensor_kind;

typedef enum { // a dimension, in terms of the model's shape
  SIZE_NONE,
  SIZE_HIDDEN,
  SIZE_QUERIES, // n_heads * head_dim
  SIZE_KEYS,    // n_kv_heads * head_dim, of keys and of values
  SIZE_HEAD,
  SIZE_EXPERTS,
  SIZE_EXPERT_WIDTH,
  SIZE_VOCABULARY, // of the embedding's rows: the file says it nowhere else
} tensor_size;

enum { TENSOR_DIMS = 3, TENSOR_NAME_BYTES = 64 };

typedef struct {
  tensor_id id;
  const char *name; // "attn_q": the file has blk.N.attn_q.weight; output.weight where it is not per_layer
  bool per_layer;
  tensor_kind kind;
  tensor_size dim[TENSOR_DIMS]; // dim[0] the row
  // Where its view goes in layer_weights, or in model_weights where it is not per_layer: a const float * for
  // a vector, else a matrix, of a stack the first expert's.
  size_t to;
  bool tied; // may be missing: then the embedding serves here too
  // May be part of a tensor of this name instead ("attn_qkv"): its rows follow those of the rows of the table
  // before that name the same; NULL: it stands alone.
  const char *fused;
} tensor_row;

// ---- settings: the metadata keys under the architecture's name ----

typedef struct {     // what the settings of a file become
  model_shape shape; // `vocabulary` is set by the embedding
  int64_t context_length, value_length, rotated;
  int64_t dense_width, vocab_size; // written into new files, never read
} model_settings;

typedef enum {
  SETTING_SIZE, // an integer from low to high, into an int64_t; an array gives it to each layer: all the same
  SETTING_REAL, // a float between low and high, neither included, into a double
  SETTING_ONLY, // one of the numbers in `only`, which mean the same; of an array each. Any other needs
                // arithmetic that is not implemented, and is refused
  SETTING_ONLY_TEXT, // the same for texts
  SETTING_UNUSED,    // changes nothing that is computed, whatever its value
} setting_kind;

enum { SETTING_VALUES = 3 };

typedef struct {
  const char *name; // behind "qwen3moe."; "ssm.": of every key of that family that has no row before
  setting_kind kind;
  size_t to; // its place in model_settings
  double low, high;
  // Gives its value where the key is missing; NULL: then the file is refused.
  int64_t (*fallback)(const model_settings *);
  double only[SETTING_VALUES]; // n_only numbers, first what it says, then what readers take for "not set"
  int n_only;
  double (*also)(const model_settings *); // one more number of these, that follows from others; NULL: none
  // The number that a writer puts for "not set" where it has put 0 for the key unset_by; NULL: there is none.
  const char *unset_by;
  double unset;
  const char *only_text[SETTING_VALUES]; // up to the first NULL
  bool written;                          // into new files, by src/synth: an f32 for SETTING_REAL, else a u32
  const char *why; // where the rule comes from; `inspect` shows it for what is not obeyed
} setting_row;

// ---- the table ----

typedef struct {
  const char *name;          // general.architecture, and the first part of its settings' keys
  const char *title;         // for messages
  const tensor_row *tensors; // in the order of a new file; the rows of a layer stand together
  size_t n_tensors;
  // In the order in which they are read and written; a fallback may use those before it.
  const setting_row *settings;
  size_t n_settings;
  // Checks the settings against each other. `file` stands in the error.
  status (*check)(const model_settings *s, const char *file);
} architecture;

// The tensors of a file of n_layers layers, in the order of a new file: how many, and the i-th with its layer
// (-1: none).
size_t architecture_tensor_count(const architecture *a, int64_t n_layers);
const tensor_row *architecture_tensor_at(int64_t *layer, const architecture *a, int64_t n_layers, size_t i);
// The row and layer of the tensor of that name; NULL: a file of n_layers layers has no such tensor.
const tensor_row *architecture_tensor_find(int64_t *layer, const architecture *a, int64_t n_layers,
                                           const char *name);
const tensor_row *architecture_tensor(const architecture *a, tensor_id id); // NULL: the architecture has none

// A tensor of a layer that holds several of the table, by its name in a file. *rows: of all its parts.
bool architecture_fused_find(int64_t *layer, int64_t *rows, const architecture *a, const model_shape *s,
                             const char *name);
// Rows of a fused tensor before those of `row`.
int64_t architecture_fused_rows(const architecture *a, const model_shape *s, const tensor_row *row);
// The name of the fused tensor of that layer.
void tensor_row_fused_name(char out[TENSOR_NAME_BYTES], const tensor_row *row, int64_t layer);

void tensor_row_name(char out[TENSOR_NAME_BYTES], const tensor_row *row, int64_t layer);
int tensor_row_dims(const tensor_row *row); // how many it has
// Dimension d; 1 where it has no such one.
int64_t tensor_row_dim(const tensor_row *row, int d, const model_shape *s);

// The row of a whole key ("qwen3moe.block_count"), its own or that of its family; NULL: none. *ours: it
// stands under the architecture's name.
const setting_row *architecture_setting(bool *ours, const architecture *a, const char *key);
