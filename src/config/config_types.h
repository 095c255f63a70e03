// config_types: the values of a configuration, as a struct: everything that a user can set.
//
// Independent of: how values are read, checked and printed (config.h, config_value.h).
#pragma once
#include "dist/transport_kind.h"
#include "src/config/arm_choice.h"
#include "src/config/parity_mode.h"
#include <stddef.h>
#include <stdint.h>

typedef enum { INPUT_NONE, INPUT_TOKENS, INPUT_PROMPT, INPUT_PROMPTS, INPUT_FILE } input_kind;
typedef enum { KV_F16, KV_F32 } kv_type;
typedef enum { KV_CHOICE_F16, KV_CHOICE_F32, KV_CHOICE_SAME } kv_choice; // SAME: as run.kv
typedef enum {
  PLACEMENT_CONTIGUOUS,
  PLACEMENT_STRIDED,
  PLACEMENT_BALANCED,
  PLACEMENT_COUNTED,
  PLACEMENT_AUTO,
  PLACEMENT_LIST
} placement_kind;

typedef struct {   // of an expert, on ranks that do not own it; both 0: none
  int64_t experts; // that a rank may hold in each layer
  uint64_t bytes;  // or that it may hold over all layers; 0: `experts` is the limit
} replica_limit;

typedef enum { ATTENTION_AUTO, ATTENTION_REPLICATED, ATTENTION_SHARDED } attention_placement;

typedef enum { BENCH_MD, BENCH_CSV, BENCH_JSON } bench_format;
typedef enum { OUTPUT_TEXT, OUTPUT_JSON } output_format;

enum { CONFIG_MAX_ARMS = 16, CONFIG_MAX_SIZES = 16, CONFIG_MAX_BOUNDS = 64 };

typedef struct {
  arm_choice arm[CONFIG_MAX_ARMS];
  size_t count;
} arm_list;

typedef struct { // as many as there are ranks, at most
  arm_choice *arm;
  size_t count;
} rank_arm_list;

typedef struct {
  int32_t *id;
  size_t count;
} rank_list;

typedef struct {
  int64_t size[CONFIG_MAX_SIZES];
  size_t count;
} size_list;

enum { BOUND_ANY = -1 };

typedef struct { // of rel_l2 at a probe
  int point;     // a probe_point, or BOUND_ANY
  int64_t layer; // or BOUND_ANY
  double bound;
} config_bound;

typedef struct {
  config_bound bound[CONFIG_MAX_BOUNDS];
  size_t count;
} bound_list;

typedef struct {
  char *file; // the TOML file, as given; NULL: none, only --set

  struct {
    char *path; // model.path; required by every command
  } model;

  struct config_input { // input.tokens, .prompt, .prompts, .file: one of --set replaces the file's
    input_kind kind;
    int32_t *tokens; // INPUT_TOKENS
    size_t n_tokens;
    char **prompts; // INPUT_PROMPT (one) and INPUT_PROMPTS; UTF-8
    size_t n_prompts;
    char *file; // INPUT_FILE
  } input;

  struct {
    arm_list arms;    // run.arms; default ["f64@cpu", "f32@cpu", "q8k@cpu"]; each "path@backend" or "ranks"
    int64_t context;  // run.context: positions a sequence can hold; 0 (default): what input and generate need
    kv_type kv;       // run.kv: "f16" (default) or "f32"
    int64_t generate; // run.generate: tokens to write; default 0
    int64_t threads; // run.threads: a rank's threads; 0 (default): cores the rank may use / ranks on the host
    uint64_t seed;   // run.seed: of the sampler, below 2^63; default 0
    int64_t chunk;   // run.chunk: tokens of a prompt computed at once; 0 (default): by backend (job.h)
    double temperature;  // run.temperature: 0 (default) is greedy
    int64_t top_k;       // run.top_k: 0 (default) is all
    double top_p;        // run.top_p: in (0, 1]; default 1
    char *rows;          // run.rows: ISA row of the cpu backend, "auto" (default) or a row's name
    bool bind;           // run.bind: bind threads to cores; default true
    struct config_stop { // run.stop: what ends a sequence besides the model's end tokens; default none
      int32_t *ids;
      size_t n_ids;
      char **texts; // UTF-8
      size_t n_texts;
    } stop;
    bool ignore_eos; // run.ignore_eos: the model's end tokens end nothing; default false
    bool resume;     // run.resume: go on with the state in output.dir; default false
    double keep;     // run.keep: seconds between writings of that state; default 10
  } run;

  struct {
    rank_arm_list arm; // ranks.arm: arms of the ranks' experts, repeated over ranks; empty: no mixed job.
                       // "path@auto": cuda on a rank with a GPU to itself, else cpu
    arm_choice shared; // ranks.shared: arm of attention, router, head; ARM_NONE: that of the first rank on a
                       // GPU, without one of rank 0
    double audit;      // ranks.audit: share of other ranks' slots that are recomputed; 0 (default): none
    rank_list shared_ranks; // ranks.shared_ranks; empty: the ranks on the backend of ranks.shared
  } ranks;

  struct {
    attention_placement placement; // attention.placement: "auto" (default), "replicated" or "sharded"
  } attention;

  struct config_experts { // experts.placement: "contiguous" (default), "strided", "balanced", "counted",
                          // "auto", a list
    placement_kind placement;
    int32_t *rank_of_expert; // entry e is the rank that owns expert e
    size_t n_experts;        // length of the list
    char *counts;            // experts.counts: of PLACEMENT_COUNTED and PLACEMENT_AUTO; "" (default): none
    replica_limit replicas;  // experts.replicas: of these two as well; default none
  } experts;

  struct {
    transport_kind transport; // comm.transport: "auto" (default), "mpi", "nccl", "self"
    double deadline;          // comm.deadline: seconds that a rank waits for another; default 300
    bool peers;               // comm.peers: GPUs store into each other's memory, where they can (default)
  } comm;

  struct {
    char *path; // contract.path: a contract that the report must keep; "" (default): none
  } contract;

  struct {          // of verify --derive
    int64_t draws;  // derive.draws: honest runs that give the bounds; default 60
    int64_t checks; // derive.checks: fresh ones that they are tried on; default 20
    int64_t seed;   // derive.seed; default 0
    double rate;    // derive.rate: of false alarms of a whole run, in (0, 0.5]; default 0.01
    char *file;     // derive.file: text that windows are cut from; "" (default): the input
  } derive;

  struct {
    int64_t skip; // perplexity.skip: positions at a window's head that are not scored; -1 (default): half
  } perplexity;

  struct config_trace {
    uint32_t probes; // trace.probes: bits 1 << probe_point; 0 (default, []): all
    int32_t *layers; // trace.layers
    size_t n_layers; // length of the list; 0 (default): all
  } trace;

  struct config_bisect {
    char *tensor;      // bisect.tensor: of one product; "" (default): the first Q4_K matrix
    int64_t rows;      // bisect.rows: of it; 0 (default): at most 64
    int64_t cols;      // bisect.cols: cuts its bytes again; 0 (default): its own
    char *activations; // bisect.activations: "uniform" (default) or the name of a probe
    int64_t seed;      // bisect.seed: of xorshift32, 1 to 2^32 - 1; default 0x1583000a
    int64_t draws;     // bisect.draws: activations drawn from it; default 1
    arm_choice a, b;   // bisect.a, bisect.b: arms of the whole model; ARM_NONE (default): one product
    char *model_b;     // bisect.model_b: the GGUF of b; "" (default): model.path
    kv_choice kv_b;    // bisect.kv_b: "" (default): run.kv
    char *rows_b;      // bisect.rows_b: ISA row of b; "" (default): run.rows
    int64_t budget;    // bisect.budget: passes; default 64
  } bisect;

  struct {
    size_list only;    // falsify.only: numbers of experiments; empty (default): all
    int64_t draws;     // falsify.draws: seeds of each; 0 (default): as each experiment's file says
    int64_t tokens;    // falsify.tokens: of whole passes; 0 (default): as each experiment's file says
    char *experiments; // falsify.experiments: folder of their files; "" (default): those built in
  } falsify;

  struct {
    unsigned modes;    // parity.mode: bits 1 << parity_mode; MODE_FREE always among them
    uint32_t probes;   // parity.probes: bits 1 << probe_point, of a layer; 0 (default, []): none
    bound_list bounds; // parity.bound; a layer of a probe goes before the probe, it before all; empty: none
    char *routes;      // parity.routes: a file of experts to impose on every arm; "" (default): none
    char *reference; // parity.reference: model of the arm that the others are measured against; "" (default):
                     // model.path
  } parity;

  struct {
    size_list prompt;    // bench.prompt: lengths of prompts to measure; default [512]
    size_list generate;  // bench.generate: numbers of decoded tokens to measure; default [128]
    size_list depth;     // bench.depth: positions in the context before that; default [0]
    size_list batch;     // bench.batch: sequences at once; default [1]
    int64_t repeats;     // bench.repeats: timed runs of each; default 5
    int64_t warmup;      // bench.warmup: runs of each before them; default 1
    bench_format format; // bench.format: "md" (default), "csv" or "json"
    bool phases;         // bench.phases: also the time by phase; default false
  } bench;

  struct config_screen {
    double seconds;    // screen.seconds: of the rounds; default 60
    arm_list arms;     // screen.arms: what every rank computes; default ["q8k@auto", "f32@auto"]
    int64_t tokens;    // screen.tokens: positions of the sequence; default 128
    int64_t sequences; // screen.sequences: of it at once, in the wide batches; default 4
  } screen;

  struct {
    char *path; // known.path: a table of known answers; "" (default): configs/known-answers.toml, as built in
  } known;

  struct {
    output_format format; // output.format: "text" (default) or "json": how inspect prints
    char *dir;            // output.dir, --out: where the report goes; "" (default): nowhere
    bool logits;          // output.logits: write logits.<arm>.npy; default false
    bool routes;          // output.routes: write routes.<arm>.npy and route_weights.<arm>.npy; default false
    bool timeline;        // output.timeline: write timeline.json; default false
  } output;
} config;
