// config: one table of keys; each row knows how its value is read and written, its bounds, default and help.
//
// Defaults are TOML texts that go through the same readers as a file's values, and config_text writes TOML
// that config_load would read back to the same values, so there is one syntax and one set of bounds.
#include "src/config/config.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "src/config/config_set.h"
#include "src/config/config_value.h"
#include "src/config/edit_distance.h"
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

// toml++ needs up to 37 bytes of memory for a byte of text (a list of one-digit numbers, measured), and every
// rank reads the file; 16 MiB hold two million token ids, and a longer input comes from input.file.
enum { FILE_LIMIT = 16 << 20 };

#define AT(field)      offsetof(config, field)
#define INTEGER(field) AT(field), value_read_integer, value_write_integer
#define REAL(field)    AT(field), value_read_real, value_write_real
#define SIZES(field)   AT(field), value_read_sizes, value_write_sizes, "list of at most 16 integers in range"
#define FLAG(field)    AT(field), value_read_flag, value_write_flag, "true or false", 0, 0

static const struct {
  const char *name, *help;
} SECTIONS[] = {
    {"model", "the model"},
    {"input", "the input; one of these"},
    {"run", "the arms, and how they compute"},
    {"ranks", "a mixed job: ranks whose experts are computed by different arms"},
    {"experts", "which rank owns which expert"},
    {"attention", "which rank computes what of attention and head"},
    {"comm", "communication between ranks"},
    {"perplexity", "what is scored"},
    {"parity", "in which ways the arms run, and what is measured"},
    {"contract", "what the report must keep (docs/contracts.md)"},
    {"derive", "verify --derive: the honest runs that bounds are taken from"},
    {"trace", "what is written"},
    {"bisect", "two arms, or one product in every way"},
    {"falsify", "experiments"},
    {"bench", "what is measured"},
    {"screen", "the work that every rank does"},
    {"known", "known answers"},
    {"output", "files of the report"},
};
enum { N_SECTIONS = sizeof SECTIONS / sizeof SECTIONS[0] };

enum { KEY_INPUT = 1, N_INPUTS = 4 }; // place of input.tokens; the rows follow the values of input_kind

static const value_key KEYS[] = {
    {"model.path", KEYS_MODEL, AT(model.path), value_read_text, value_write_text, "string", 0, 0, NULL,
     "the GGUF file, or the first of a split set"},
    {"input.tokens", KEYS_INPUT, AT(input), value_read_tokens, value_write_tokens, "list of token ids", 0, 0,
     NULL, "the input as token ids"},
    {"input.prompt", KEYS_INPUT, AT(input), value_read_prompt, value_write_prompt, "string", 0, 0, NULL,
     "the input as text"},
    {"input.prompts", KEYS_INPUT, AT(input), value_read_prompts, value_write_prompts, "list of strings", 0, 0,
     NULL, "the input as a batch of texts, each a sequence"},
    {"input.file", KEYS_INPUT, AT(input), value_read_input_file, value_write_input_file, "string", 0, 0, NULL,
     "the input as a text file; of the four inputs the one set last is used"},
    {"run.arms", KEYS_ARMS, AT(run.arms), value_read_arms, value_write_arms,
     "list of 1 to 16 arms (\"path@backend\" or \"ranks\")", 0, 0, "[\"f64@cpu\", \"f32@cpu\", \"q8k@cpu\"]",
     "what to run and compare; paths are f64, f32, q8k and q8k_split"},
    {"run.context", KEYS_FORWARD, INTEGER(run.context), "integer from 0 to 2147483647", 0, INT32_MAX, "0",
     "positions of a sequence; 0: as the input needs, in perplexity and route at most 512"},
    {"run.kv", KEYS_FORWARD, AT(run.kv), value_read_kv, value_write_kv, "\"f16\" or \"f32\"", 0, 0, "\"f16\"",
     "type of the cached keys and values of f32; f64 keeps doubles, q8k limbs of integers"},
    {"run.generate", KEYS_WRITE, INTEGER(run.generate), "integer from 0 to 2147483647", 0, INT32_MAX, "0",
     "tokens to generate after the input"},
    {"run.threads", KEYS_RANKS, INTEGER(run.threads), "integer from 0 to 4096", 0, 4096, "0",
     "threads of a rank; 0: cores that it may use / ranks on the host"},
    {"run.seed", KEYS_WRITE | KEYS_BENCH, INTEGER(run.seed), "integer >= 0", 0, 0x1p63, "0",
     "seed of the sampler; equal prompts get equal texts: a draw depends on seed and position"},
    {"run.chunk", KEYS_FORWARD, INTEGER(run.chunk), "integer from 0 to 2147483647", 0, INT32_MAX, "0",
     "tokens of a prompt at once; 0: 2048 with all arms on cuda, halved until it fits, else 512"},
    {"run.temperature", KEYS_WRITE, REAL(run.temperature), "number >= 0", 0, DBL_MAX, "0",
     "of the sampler; 0: greedy"},
    {"run.top_k", KEYS_WRITE, INTEGER(run.top_k), "integer from 0 to 2147483647", 0, INT32_MAX, "0",
     "tokens the sampler chooses from; 0: all"},
    {"run.top_p", KEYS_WRITE, REAL(run.top_p), "number above 0, at most 1", DBL_TRUE_MIN, 1, "1",
     "probability the sampler chooses from"},
    {"run.stop", KEYS_WRITE, AT(run.stop), value_read_stop, value_write_stop, "list of token ids and strings",
     0, 0, "[]", "what ends a sequence besides the model's end tokens"},
    {"run.ignore_eos", KEYS_WRITE, FLAG(run.ignore_eos), "false", "the model's end tokens end nothing"},
    {"run.rows", KEYS_ARMS, AT(run.rows), value_read_text, value_write_text, "string", 0, 0, "\"auto\"",
     "ISA row of the cpu backend, by name"},
    {"run.bind", KEYS_RANKS, FLAG(run.bind), "true", "bind threads to cores"},
    {"run.resume", KEYS_RESUME, FLAG(run.resume), "false",
     "go on with what an ended run of the same settings has kept in output.dir (--resume)"},
    {"run.keep", KEYS_RESUME, REAL(run.keep), "number from 0 to 1e9", 0, 1e9, "10",
     "seconds after which what was done is kept in output.dir again"},
    {"ranks.arm", KEYS_ARMS, AT(ranks.arm), value_read_rank_arms, value_write_rank_arms,
     "list of arms (\"path@backend\" or \"path@auto\")", 0, 0, "[]",
     "mixed job: arms of experts, repeated over ranks; auto: cuda where a rank has its own GPU"},
    {"ranks.shared", KEYS_ARMS, AT(ranks.shared), value_read_arm_or_empty, value_write_arm,
     "arm (\"path@backend\") or \"\"", 0, 0, "\"\"",
     "mixed job: arm of attention, router, head; \"\": of the first rank on a GPU, else rank 0"},
    {"ranks.shared_ranks", KEYS_ARMS, AT(ranks.shared_ranks), value_read_ranks, value_write_ranks,
     "list of rank numbers", 0, 0, "[]",
     "mixed job: ranks that compute these; []: the ranks on the backend of ranks.shared"},
    {"ranks.audit", KEYS_RANKS, REAL(ranks.audit), "number from 0 to 1", 0, 1, "0",
     "share of other ranks' experts' outputs that ranks recompute from the file; 0: none"},
    {"experts.placement", KEYS_RANKS, AT(experts), value_read_placement, value_write_placement,
     "\"contiguous\", \"strided\", \"balanced\", \"counted\", \"auto\" or a list of rank numbers", 0, 0,
     "\"contiguous\"",
     "balanced: by speed; counted: by experts.counts; auto: that if more even; a list: owners"},
    {"experts.counts", KEYS_RANKS, AT(experts.counts), value_read_text_or_empty, value_write_text, "string",
     0, 0, "\"\"",
     "counted: of moe_run route or output.routes, over a text like those that will be computed"},
    {"experts.replicas", KEYS_RANKS, AT(experts.replicas), value_read_replicas, value_write_replicas,
     "integer from 0 to 65535, or bytes as in \"2 GiB\"", 0, 65535, "0",
     "counted: hot experts that a rank holds too: so many a layer, or bytes over all layers"},
    {"attention.placement", KEYS_RANKS, AT(attention.placement), value_read_attention, value_write_attention,
     "\"auto\", \"replicated\" or \"sharded\"", 0, 0, "\"auto\"",
     "small batches: each rank all of attention and head, or a part; auto: what was quicker"},
    {"comm.transport", KEYS_RANKS, AT(comm.transport), value_read_transport, value_write_transport,
     "\"auto\", \"mpi\", \"nccl\" or \"self\"", 0, 0, "\"auto\"", "what transfers rows between ranks"},
    {"comm.deadline", KEYS_RANKS, REAL(comm.deadline), "number above 0, at most 1e9", DBL_TRUE_MIN, 1e9,
     "300", "seconds that a rank waits for another, or for its GPU"},
    {"comm.peers", KEYS_RANKS, FLAG(comm.peers), "true",
     "GPUs of one host store rows into each other's memory, where they reach it"},
    {"perplexity.skip", KEYS_PERPLEXITY, INTEGER(perplexity.skip), "integer from -1 to 2147483647", -1,
     INT32_MAX, "-1", "positions at the head of a window that are not scored; -1: half"},
    {"parity.mode", KEYS_PARITY, AT(parity.modes), value_read_modes, value_write_modes,
     "\"free\", \"teacher\", \"forced\", \"local\" or a list of these", 0, 0, "[\"free\"]",
     "teacher: the truth's stream; forced: the truth's experts; local: both; free: always runs"},
    {"parity.probes", KEYS_PARITY, AT(parity.probes), value_read_layer_probes, value_write_probes,
     "list of probes of a layer (docs/trace.md)", 0, 0, "[]",
     "also compared: \"ffn_inp\"; with \"ffn_moe_down\" each expert, experts.csv"},
    {"parity.bound", KEYS_PARITY, AT(parity.bounds), value_read_bounds, value_write_bounds,
     "number, or list of [\"default\", \"PROBE\" or \"PROBE-LAYER\", number]", 0, 0, "[]",
     "of rel_l2: the first layer and probe above it is named; []: none"},
    {"parity.reference", KEYS_PARITY, AT(parity.reference), value_read_text_or_empty, value_write_text,
     "string", 0, 0, "\"\"",
     "another GGUF of that shape, for the arm that others are measured against; \"\": model.path"},
    {"parity.routes", KEYS_PARITY, AT(parity.routes), value_read_text_or_empty, value_write_text, "string", 0,
     0, "\"\"", "a file as output.routes writes it, whose experts every arm takes; \"\": none"},
    {"contract.path", KEYS_CONTRACT, AT(contract.path), value_read_text_or_empty, value_write_text, "string",
     0, 0, "\"\"", "a contract; a run whose report does not keep it ends with 3; \"\": none"},
    {"derive.draws", KEYS_DERIVE, INTEGER(derive.draws), "integer from 2 to 100000", 2, 100000, "60",
     "runs that give the bounds: other windows of text, other last bits of the embedding"},
    {"derive.checks", KEYS_DERIVE, INTEGER(derive.checks), "integer from 0 to 100000", 0, 100000, "20",
     "fresh runs that the bounds are tried on"},
    {"derive.seed", KEYS_DERIVE, INTEGER(derive.seed), "integer >= 0", 0, 0x1p63, "0", "of windows and bits"},
    {"derive.rate", KEYS_DERIVE, REAL(derive.rate), "number above 0, at most 0.5", DBL_TRUE_MIN, 0.5, "0.01",
     "false alarms of a whole run, shared out evenly to its gates"},
    {"derive.file", KEYS_DERIVE, AT(derive.file), value_read_text_or_empty, value_write_text, "string", 0, 0,
     "\"\"", "text that windows as long as the input are cut from; \"\": the input"},
    {"trace.probes", KEYS_TRACE, AT(trace.probes), value_read_probes, value_write_probes,
     "list of probes (docs/trace.md)", 0, 0, "[]", "tensors by name: \"l_out\", \"ffn_moe_logits\"; []: all"},
    {"trace.layers", KEYS_TRACE, AT(trace), value_read_layers, value_write_layers, "list of layers from 0", 0,
     0, "[]", "the layers whose tensors are written; []: all"},
    {"bisect.tensor", KEYS_BISECT, AT(bisect.tensor), value_read_text_or_empty, value_write_text, "string", 0,
     0, "\"\"", "one product: the tensor, \"blk.0.attn_k.weight\"; \"\": the first matrix of the type Q4_K"},
    {"bisect.rows", KEYS_BISECT, INTEGER(bisect.rows), "integer from 0 to 2147483647", 0, INT32_MAX, "0",
     "one product: rows from the tensor's start; 0: at most 64"},
    {"bisect.cols", KEYS_BISECT, INTEGER(bisect.cols), "integer from 0 to 2147483647", 0, INT32_MAX, "0",
     "one product: cuts the tensor's bytes again to rows of so many columns; 0: its own"},
    {"bisect.activations", KEYS_BISECT, AT(bisect.activations), value_read_activations, value_write_text,
     "\"uniform\" or the name of a probe", 0, 0, "\"uniform\"",
     "one product: drawn, or a probe of the tensor's layer in the first of run.arms"},
    {"bisect.seed", KEYS_BISECT, INTEGER(bisect.seed), "integer from 1 to 4294967295", 1, UINT32_MAX,
     "360906762", "one product: of xorshift32, from which the activations are drawn"},
    {"bisect.draws", KEYS_BISECT, INTEGER(bisect.draws), "integer from 1 to 1000000", 1, 1000000, "1",
     "one product: so many activations are drawn, for the distribution of each distance"},
    {"bisect.a", KEYS_BISECT, AT(bisect.a), value_read_any_arm_or_empty, value_write_arm,
     "arm (\"path@backend\" or \"ranks\") or \"\"", 0, 0, "\"\"",
     "the whole model: an arm; \"\": one product"},
    {"bisect.b", KEYS_BISECT, AT(bisect.b), value_read_any_arm_or_empty, value_write_arm,
     "arm (\"path@backend\" or \"ranks\") or \"\"", 0, 0, "\"\"",
     "the whole model: the arm as which parts of a are computed"},
    {"bisect.model_b", KEYS_BISECT, AT(bisect.model_b), value_read_text_or_empty, value_write_text, "string",
     0, 0, "\"\"", "the whole model: the GGUF file of b; \"\": model.path"},
    {"bisect.kv_b", KEYS_BISECT, AT(bisect.kv_b), value_read_kv_choice, value_write_kv_choice,
     "\"f16\", \"f32\" or \"\"", 0, 0, "\"\"", "the whole model: type of b's cache; \"\": run.kv"},
    {"bisect.rows_b", KEYS_BISECT, AT(bisect.rows_b), value_read_text_or_empty, value_write_text, "string", 0,
     0, "\"\"", "the whole model: b's ISA row of the cpu backend; \"\": run.rows"},
    {"bisect.budget", KEYS_BISECT, INTEGER(bisect.budget), "integer from 3 to 1000000", 3, 1000000, "64",
     "the whole model: passes over the input, those of a and b among them"},
    {"falsify.only", KEYS_FALSIFY, SIZES(falsify.only), 1, 10, "[]",
     "numbers of the experiments to run; []: all"},
    {"falsify.draws", KEYS_FALSIFY, INTEGER(falsify.draws), "integer from 0 to 1000000", 0, 1000000, "0",
     "seeds over which figures are taken; 0: as each experiment's file says"},
    {"falsify.tokens", KEYS_FALSIFY, INTEGER(falsify.tokens), "integer from 0 to 2147483647", 0, INT32_MAX,
     "0", "tokens of whole passes: after a shorter input drawn ids follow; 0: as each file says"},
    {"falsify.experiments", KEYS_FALSIFY, AT(falsify.experiments), value_read_text_or_empty, value_write_text,
     "string", 0, 0, "\"\"",
     "folder with a TOML file for each experiment; \"\": configs/falsify, as built in"},
    {"bench.prompt", KEYS_BENCH, SIZES(bench.prompt), 1, INT32_MAX, "[512]",
     "prompts to measure, in tokens: pp512"},
    {"bench.generate", KEYS_BENCH, SIZES(bench.generate), 1, INT32_MAX, "[128]",
     "decoded tokens to measure, one after the other: tg128"},
    {"bench.depth", KEYS_BENCH, SIZES(bench.depth), 0, INT32_MAX, "[0]", "positions already in the context"},
    {"bench.batch", KEYS_BENCH, SIZES(bench.batch), 1, 4096, "[1]", "sequences at once"},
    {"bench.repeats", KEYS_BENCH, INTEGER(bench.repeats), "integer from 1 to 10000", 1, 10000, "5",
     "timed runs of each"},
    {"bench.warmup", KEYS_BENCH, INTEGER(bench.warmup), "integer from 0 to 10000", 0, 10000, "1",
     "runs of each that are not timed, before those that are"},
    {"bench.format", KEYS_BENCH, AT(bench.format), value_read_format, value_write_format,
     "\"md\", \"csv\" or \"json\"", 0, 0, "\"md\"", "how the rates are printed"},
    {"bench.phases", KEYS_BENCH, FLAG(bench.phases), "false",
     "also the time of each phase of the forward pass (md, json)"},
    {"screen.seconds", KEYS_SCREEN, REAL(screen.seconds), "number above 0, at most 1e9", DBL_TRUE_MIN, 1e9,
     "60", "of the rounds; each piece of work is done once at least"},
    {"screen.arms", KEYS_SCREEN, AT(screen.arms), value_read_auto_arms, value_write_arms,
     "list of 1 to 16 arms (\"path@backend\" or \"path@auto\")", 0, 0, "[\"q8k@auto\", \"f32@auto\"]",
     "what every rank computes; auto: on its GPU where it has one to itself, else on its cores"},
    {"screen.tokens", KEYS_SCREEN, INTEGER(screen.tokens), "integer from 1 to 1048576", 1, 1 << 20, "128",
     "positions of the sequence that is computed"},
    {"screen.sequences", KEYS_SCREEN, INTEGER(screen.sequences), "integer from 1 to 4096", 1, 4096, "4",
     "of it at once, in the wide batches"},
    {"known.path", KEYS_KNOWN, AT(known.path), value_read_text_or_empty, value_write_text, "string", 0, 0,
     "\"\"", "table of known answers; \"\": configs/known-answers.toml, as built in"},
    {"output.dir", KEYS_OUTPUT, AT(output.dir), value_read_text_or_empty, value_write_text, "string", 0, 0,
     "\"\"", "folder of the report (--out); \"\": no files"},
    {"output.format", KEYS_FORMAT, AT(output.format), value_read_output, value_write_output,
     "\"text\" or \"json\"", 0, 0, "\"text\"", "how inspect prints"},
    {"output.logits", KEYS_LOGITS, FLAG(output.logits), "false", "parity: write logits.<arm>.npy as well"},
    {"output.routes", KEYS_LOGITS, FLAG(output.routes), "false",
     "parity: write routes.<arm>.npy, route_weights.<arm>.npy and placement.npy as well"},
    {"output.timeline", KEYS_OUTPUT, FLAG(output.timeline), "false",
     "write timeline.json, what every rank did when, for Perfetto; and ranges for Nsight"},
};
enum { N_KEYS = sizeof KEYS / sizeof KEYS[0] };

_Static_assert(offsetof(config, experts) == offsetof(config, experts.placement),
               "value_read_placement takes the struct");
_Static_assert((int)INPUT_TOKENS == KEY_INPUT && (int)INPUT_FILE == KEY_INPUT + N_INPUTS - 1,
               "order of the inputs");

static bool is_input(const value_key *k) {
  return k >= KEYS + KEY_INPUT && k < KEYS + KEY_INPUT + N_INPUTS;
}

static const value_key *find_key(const char *name) {
  for (int i = 0; i < N_KEYS; i++)
    if (!strcmp(KEYS[i].name, name)) return &KEYS[i];
  return NULL;
}

// A name without a dot is held against each half of the key too: "chunk" means run.chunk, "model" model.path.
static int key_distance(const char *name, const value_key *k) {
  int whole = edit_distance(name, k->name);
  if (strchr(name, '.')) return whole;
  char section[VALUE_SHOWN];
  const char *dot = strchr(k->name, '.');
  snprintf(section, sizeof section, "%.*s", (int)(dot - k->name), k->name);
  int first = edit_distance(name, section), second = edit_distance(name, dot + 1);
  int half = first < second ? first : second;
  return half < whole ? half : whole;
}

static status refuse_key(const char *name, const value_origin *from, int line) {
  const value_key *nearest = KEYS;
  char place[VALUE_PLACE_BYTES], shown[VALUE_SHOWN + 8];
  for (int i = 1; i < N_KEYS; i++)
    if (key_distance(name, &KEYS[i]) < key_distance(name, nearest)) nearest = &KEYS[i];
  value_place(place, from, line);
  value_shorten(shown, sizeof shown, name, strlen(name));
  return REFUSE("%s: unknown key \"%s\": did you mean \"%s\"?", place, shown, nearest->name);
}

static bool is_in_section(const value_key *k, const char *section) {
  size_t n = strlen(section);
  return !strncmp(k->name, section, n) && k->name[n] == '.';
}

static bool is_section(const char *name) {
  for (int i = 0; i < N_SECTIONS; i++)
    if (!strcmp(SECTIONS[i].name, name)) return true;
  return false;
}

static status read_key(config *c, const value_key *k, const toml_value *v, const value_origin *from) {
  return k->read((char *)c + k->offset, k, v, from);
}

// ---- sources of values ----

static status apply_document(config *c, const config_toml *document, const value_origin *from) {
  const value_key *input = NULL;
  for (size_t i = 0; i < config_toml_count(document); i++) {
    const char *name = config_toml_key(document, i);
    const value_key *k = find_key(name);
    toml_value v;
    config_toml_value(&v, document, i);
    if (!k && v.kind == TOML_TABLE && is_section(name)) continue; // [run] with nothing under it
    if (!k) return refuse_key(name, from, v.line);
    if (is_input(k) && input)
      return REFUSE("%s:%d: %s: expected one input in a file, found %s as well", from->file, v.line, k->name,
                    input->name);
    if (is_input(k)) input = k;
    TRY(read_key(c, k, &v, from));
  }
  return 0;
}

static status apply_text(config *c, const char *text, size_t length, const value_origin *from) {
  config_toml *document = NULL;
  toml_error error;
  status result;
  if (config_toml_parse(&document, &error, text, length))
    result = apply_document(c, document, from);
  else
    result = REFUSE("%s:%d: expected TOML: %s", from->file, error.line, error.text);
  config_toml_close(document);
  return result;
}

static status apply_file(config *c, const char *path) {
  const value_origin from = {.file = path};
  char *text;
  size_t length = 0;
  TRY(status_as_refusal(read_file(&text, &length, path, "config", FILE_LIMIT, READ_ANY)));
  status result = apply_text(c, text, length, &from);
  free(text);
  return result;
}

static status apply_value(config *c, const value_key *k, const char *text, const value_origin *from) {
  config_toml *document;
  toml_value v;
  status result = config_set_parse(&v, &document, text, k->name, from);
  if (!result) result = read_key(c, k, &v, from);
  config_toml_close(document);
  return result;
}

static status apply_set(config *c, const char *set) {
  const value_origin from = {.set = set};
  char name[128];
  const char *equals = strchr(set, '=');
  if (!equals) return REFUSE("--set %.200s: expected KEY=VALUE, found no \"=\"", set);
  size_t n = (size_t)(equals - set);
  while (n && (set[n - 1] == ' ' || set[n - 1] == '\t')) n--;
  snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1), set);
  const value_key *k = find_key(name);
  return k ? apply_value(c, k, equals + 1, &from) : refuse_key(name, &from, 1);
}

// As one TOML document, read like a file.
static status apply_defaults(config *c) {
  const value_origin from = {.file = "defaults"};
  char *text = NULL;
  size_t length;
  FILE *f = open_memstream(&text, &length);
  if (!f) return FAIL("cannot allocate the defaults: %s", strerror(errno));
  for (int i = 0; i < N_KEYS; i++)
    if (KEYS[i].initial) fprintf(f, "%s = %s\n", KEYS[i].name, KEYS[i].initial);
  status result = fclose(f) ? FAIL("cannot allocate the defaults: out of memory") : 0;
  if (!result) result = apply_text(c, text, length, &from);
  free(text);
  return result;
}

static bool sets_key(const char *const *sets, size_t n_sets, const char *name) {
  for (size_t i = 0; i < n_sets; i++) {
    size_t n = strlen(name);
    if (!strncmp(sets[i], name, n) && sets[i][n + strspn(sets[i] + n, " \t")] == '=') return true;
  }
  return false;
}

// ranks.arm and the arm "ranks" need each other; but a --set of run.arms over the file's does not have to
// undo the file's ranks.arm.
static status check_ranks(const config *c, const char *place, const char *const *sets, size_t n_sets) {
  bool has_ranks = false;
  for (size_t i = 0; i < c->run.arms.count; i++)
    has_ranks = has_ranks || c->run.arms.arm[i].kind == ARM_MIXED;
  has_ranks = has_ranks || c->bisect.a.kind == ARM_MIXED || c->bisect.b.kind == ARM_MIXED;
  if (has_ranks && !c->ranks.arm.count)
    return REFUSE("%s: run.arms: the arm \"ranks\" expects ranks.arm to be set, found it empty", place);
  if (has_ranks || !c->ranks.arm.count) return 0;
  if ((sets_key(sets, n_sets, "run.arms") || sets_key(sets, n_sets, "bisect.a")) &&
      !sets_key(sets, n_sets, "ranks.arm"))
    return 0;
  return REFUSE(
      "%s: ranks.arm: a mixed job runs as the arm \"ranks\", expected it in run.arms, found it missing",
      place);
}

// Checks that need all values together.
static status check_whole(const config *c, const char *const *sets, size_t n_sets) {
  const char *place = c->file ? c->file : "--set";
  if (!c->model.path)
    return REFUSE("%s: model.path: expected the path of a GGUF file, found nothing: name it in the file of "
                  "--config, or with --set model.path=FILE",
                  place);
  return check_ranks(c, place, sets, n_sets);
}

status config_load(config *out, const char *file, const char *const *sets, size_t n_sets) {
  status result;
  memset(out, 0, sizeof *out);
  TRY_DONE(result, apply_defaults(out));
  if (file) {
    TRY_DONE(result, TAKE(&out->file, strlen(file) + 1, "config"));
    strcpy(out->file, file);
    TRY_DONE(result, apply_file(out, file));
  }
  for (size_t i = 0; i < n_sets; i++) TRY_DONE(result, apply_set(out, sets[i]));
  result = check_whole(out, sets, n_sets);
done:
  if (result) config_close(out);
  return result;
}

status config_set_dir(config *c, const char *dir) {
  const value_origin from = {.set = "output.dir (--out)"};
  const toml_value v = {.kind = TOML_STRING, .line = 1, .text = dir, .length = strlen(dir)};
  return read_key(c, find_key("output.dir"), &v, &from);
}

void config_close(config *c) {
  if (!c) return;
  value_clear_input(&c->input);
  free(c->file);
  free(c->model.path);
  free(c->run.rows);
  value_clear_stop(&c->run.stop);
  free(c->ranks.arm.arm);
  free(c->ranks.shared_ranks.id);
  free(c->experts.rank_of_expert);
  free(c->experts.counts);
  free(c->trace.layers);
  free(c->bisect.tensor);
  free(c->bisect.activations);
  free(c->bisect.model_b);
  free(c->bisect.rows_b);
  free(c->falsify.experiments);
  free(c->parity.routes);
  free(c->parity.reference);
  free(c->derive.file);
  free(c->contract.path);
  free(c->known.path);
  free(c->output.dir);
  memset(c, 0, sizeof *c);
}

status config_text(const config *c, char **out) {
  size_t length;
  FILE *f = open_memstream(out, &length);
  if (!f) return FAIL("cannot allocate the config's text: %s", strerror(errno));
  for (int i = 0; i < N_KEYS; i++) {
    if (is_input(&KEYS[i]) && (int)c->input.kind != i) continue;
    fprintf(f, "%s = ", KEYS[i].name);
    KEYS[i].write(f, (const char *)c + KEYS[i].offset);
    fputc('\n', f);
  }
  bool bad = ferror(f);
  if (fclose(f) || bad) {
    free(*out);
    *out = NULL;
    return FAIL("cannot allocate the config's text: out of memory");
  }
  return 0;
}

static void print_key(FILE *out, const value_key *k) {
  enum { ROOM = 80 }; // columns of type and default, if they are to stand in one line
  const char *initial = k->initial ? k->initial : "none";
  bool fits = strlen(k->type) + strlen(initial) <= ROOM;
  fprintf(out, "  %-18s %s\n", k->name, k->help);
  fprintf(out, "  %-18s   %s", "", k->type);
  if (!fits) fprintf(out, "\n  %-18s   ", "");
  fprintf(out, "%sdefault: %s\n", fits ? "; " : "", initial);
}

void config_print_keys(FILE *out, unsigned groups) {
  for (int s = 0; s < N_SECTIONS; s++) {
    bool has_heading = false;
    for (int i = 0; i < N_KEYS; i++) {
      if (!is_in_section(&KEYS[i], SECTIONS[s].name) || !(KEYS[i].groups & groups)) continue;
      if (!has_heading) fprintf(out, "\n[%s] %s\n", SECTIONS[s].name, SECTIONS[s].help);
      has_heading = true;
      print_key(out, &KEYS[i]);
    }
  }
}
