// Tests of report: the files against the schema, exact numbers, and that a failed run leaves nothing that
// looks whole.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/report/npy.h"
#include "src/report/report_read.h"
#include "base/whole_file.h"
#include "tests/support/seed.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_LAYERS = 48, N_ARMS = 3, N_PAIRS = 3, N_RANKS = 2, N_SEQUENCES = 2, N_ROWS = 6 };

static char folder[256];

static const char *in_folder(const char *name) {
  static char path[2][600];
  static int turn;
  turn = !turn;
  snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
  return path[turn];
}

static void empty_folder(void) {
  DIR *d = opendir(folder);
  for (struct dirent *e; (e = readdir(d));)
    if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) assert_int_equal(remove(in_folder(e->d_name)), 0);
  closedir(d);
}

static int count_files(void) {
  int n = 0;
  DIR *d = opendir(folder);
  for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
  closedir(d);
  return n;
}

static int make_folder(void **state) {
  (void)state;
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/test_report.XXXXXX", base && *base ? base : "/tmp");
  srand((unsigned)test_seed());
  return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
  (void)state;
  empty_folder();
  return rmdir(folder);
}

static int fresh(void **state) {
  (void)state;
  empty_folder();
  status_reset();
  return 0;
}

// ---- a report of fresh random numbers ----

static double small_random(void) {
  return ldexp(1 + rand() / (RAND_MAX + 1.0), -(rand() % 40));
}

static spread random_spread(void) {
  double x = small_random();
  return (spread){.min = x / 3, .median = x / 2, .max = x, .worst = rand() % 100};
}

static uint64_t random_digest(void) {
  return (uint64_t)rand() << 40 ^ (uint64_t)rand() << 20 ^ (uint64_t)rand();
}

// Ascending percentiles with the mean among them.
static distribution random_distribution(int64_t n, double max) {
  distribution d = {.n = n, .mean = max / 3, .standard_error = max / 9, .rms = max / 2, .rms_error = max / 8};
  d.min = -max;
  d.max = max;
  for (int p = 0; p < N_PERCENTILES; p++) d.percentile[p] = max * (p - 3) / 4;
  return d;
}

enum { N_EXPERTS = 16, N_PROBES = 2 };

typedef struct {
  report r;
  report_rank ranks[N_RANKS];
  report_arm arms[N_ARMS];
  pair_statistics pairs[N_PAIRS];
  report_token tokens[N_ROWS];
  report_sequence sequences[N_ARMS][N_SEQUENCES];
  uint64_t digests[N_ARMS][MAX_LAYERS];
  layer_statistics layers[N_PAIRS][MAX_LAYERS];
  probe_statistics probes[MAX_LAYERS * N_PROBES];
  expert_sample experts[MAX_LAYERS * N_EXPERTS];
  pair_statistics mode_pairs[2][N_PAIRS];
  uint64_t mode_digests[N_ARMS * MAX_LAYERS];
  account accounts[N_PAIRS];
  account_layer account_layers[MAX_LAYERS];
  report_text texts[2];
  const char *rank_arms[N_RANKS];
} sample;

static void fill_arm(sample *s, int i, size_t n_layers) {
  static const char *const NAMES[N_ARMS] = {"f64@cpu", "f32@cpu", "q8k@cpu"};
  static const char *const PATHS[N_ARMS] = {"f64", "f32", "q8k"};
  static const char *const CACHES[N_ARMS] = {"f64", "f16", "limbs"};
  report_arm *a = &s->arms[i];
  *a = (report_arm){.name = NAMES[i],
                    .path = PATHS[i],
                    .is_truth = !i,
                    .path_version = 1,
                    .cache = CACHES[i],
                    .expert_paths = random_digest(),
                    .tokens = 12,
                    .decode_tokens_per_s = NAN};
  a->layer_digests = s->digests[i];
  a->sequences = s->sequences[i];
  for (size_t l = 0; l < n_layers; l++) s->digests[i][l] = random_digest();
  for (int q = 0; q < N_SEQUENCES; q++) {
    s->sequences[i][q] = (report_sequence){6, random_digest() << 4};
    a->digest += s->sequences[i][q].digest;
  }
  a->prefill_tokens_per_s = 100 * small_random();
  a->transport = "mpi";
  a->exchange_seconds = small_random();
  a->perplexity = 1 + 30 * small_random();
  a->scored = 11;
  a->rank_arms = s->rank_arms;
}

static void fill_pair(sample *s, int i, size_t n_layers) {
  static const size_t A[N_PAIRS] = {2, 1, 2}, B[N_PAIRS] = {1, 0, 0};
  s->pairs[i] = (pair_statistics){.a = A[i], .b = B[i], .finite = true, .layers = s->layers[i]};
  pair_statistics *p = &s->pairs[i];
  spread *of_pair[] = {&p->rel_l2, &p->one_minus_cos, &p->max_abs, &p->max_rel, &p->max_ulp, &p->kl};
  for (int m = 0; m < 6; m++) *of_pair[m] = random_spread();
  p->top1_agreement = 11.0 / 12;
  p->top1_error = small_random();
  p->kl_spread = random_distribution(12, p->kl.max);
  p->delta_p = random_distribution(11, 0.5);
  p->nll_delta = random_distribution(0, (double)NAN);
  p->perplexity_delta = small_random() - 0.5;
  for (size_t l = 0; l < n_layers; l++) {
    layer_statistics *y = &s->layers[i][l];
    *y = (layer_statistics){
        .layer = (int32_t)l, .router_flips = rand() % 9, .flipped_tokens = 3, .flip_margin = NAN};
    spread *of_layer[] = {&y->rel_l2, &y->one_minus_cos, &y->max_abs, &y->max_rel, &y->max_ulp};
    for (int m = 0; m < 5; m++) *of_layer[m] = random_spread();
    y->min_margin = small_random();
  }
}

static void fill(sample *s, size_t n_layers) {
  memset(s, 0, sizeof *s);
  report *r = &s->r;
  *r = (report){.command = COMMAND_PARITY,
                .config_text = "run.chunk = 512\n",
                .transport = "mpi",
                .placement = "contiguous"};
  r->kv = "f16";
  r->skip = -1;
  r->chunk = 512;
  r->context = 64;
  r->input = random_digest();
  r->model.name = "tiny \"quoted\"";
  r->model.path = "models/tiny\xff.gguf"; // a path need not be UTF-8
  r->model.architecture = "qwen3moe";
  r->model.fingerprint = 0xabc;
  r->model.n_layers = (int64_t)n_layers;
  r->model.hidden = 768;
  r->model.n_experts = 16;
  r->model.bytes = (uint64_t)18 << 30;
  r->model.types = "Q4_K 30, Q6_K 6, F32 40";
  r->machine.cpu = "a processor";
  r->machine.os = "Linux";
  r->machine.hosts = 1;
  r->machine.cores = 2;
  r->build.version = "0.1.0";
  r->build.compiler = "gcc";
  r->build.flags = "-O2";
  r->build.mpi = "some MPI";
  r->build.row = "portable";
  for (int i = 0; i < N_RANKS; i++) {
    s->ranks[i] =
        (report_rank){i, "a-host", "0-1", 2, "", "shared", 1000, 234, 99, 8, i ? i : -1, -1, "", ""};
    if (i) s->ranks[i].gpu_pci = "0000:3b:00.0", s->ranks[i].gpu_node = i - 1, s->ranks[i].gpu_name = "a GPU";
    s->rank_arms[i] = "f32@cpu";
  }
  for (int i = 0; i < N_ARMS; i++) fill_arm(s, i, n_layers);
  for (int i = 0; i < N_PAIRS; i++) fill_pair(s, i, n_layers);
  for (int i = 0; i < N_ROWS; i++)
    s->tokens[i] = (report_token){i / 3,          i % 3,          7 + i,
                                  (size_t)i % 3,  small_random(), small_random(),
                                  small_random(), small_random(), i ? small_random() : (double)NAN,
                                  i % 2,          small_random(), i};
  static int32_t ids[] = {5, 6, 7};
  static char text[] = "Once \x1b[2Jupon \xc3\xa9\n";
  s->texts[0] = (report_text){0, ids, 3, text, 0x123, (char *)"run.generate"};
  s->texts[1] = (report_text){1, ids, 2, NULL, 0x456, (char *)"end token 7 <|im_end|>"};
  s->arms[2].texts = s->texts;
  s->arms[2].n_texts = 2;
  s->arms[2].decode_tokens_per_s = 12.5;
  r->ranks = s->ranks, r->n_ranks = N_RANKS;
  r->arms = s->arms, r->n_arms = N_ARMS;
  r->pairs = s->pairs, r->n_pairs = N_PAIRS;
  r->tokens = s->tokens, r->n_tokens = N_ROWS;
  r->n_layers = n_layers;
  r->n_sequences = N_SEQUENCES;
}

// Probes, experts, the other two modes and the account, over at most two layers.
static void fill_modes(sample *s, size_t n_layers) {
  report *r = &s->r;
  for (size_t i = 0; i < n_layers * N_PROBES; i++)
    s->probes[i] = (probe_statistics){i % N_PROBES ? PROBE_FFN_MOE_DOWN : PROBE_KQV_OUT,
                                      (int32_t)(i / N_PROBES),
                                      12,
                                      random_spread(),
                                      random_spread(),
                                      random_spread()};
  s->probes[1].n = 0;
  s->probes[1].rel_l2 = s->probes[1].max_abs = s->probes[1].one_minus_cos = (spread){NAN, NAN, NAN, 0};
  for (size_t i = 0; i < n_layers * N_EXPERTS; i++)
    s->experts[i] = (expert_sample){3, 4, (int64_t)i % 3, 1e-6 * (double)i, 1, 1e-3, true};
  for (size_t i = 0; i < N_PAIRS; i++) {
    s->pairs[i].probes = s->probes;
    s->pairs[i].n_probes = N_PROBES;
    s->pairs[i].experts = s->experts;
  }
  s->pairs[0].first = (first_above){true, (int32_t)n_layers - 1, PROBE_KQV_OUT, 0.25, 0.125, 7};
  for (int m = 0; m < 2; m++) {
    memcpy(s->mode_pairs[m], s->pairs, sizeof s->pairs);
    r->modes[m] = (report_mode){(parity_mode)(m + 1), s->mode_digests, s->mode_digests, s->mode_pairs[m]};
  }
  r->n_modes = 2;
  for (size_t l = 0; l < n_layers; l++) s->account_layers[l] = (account_layer){{0.25, 0.125}, -0.5};
  for (size_t i = 0; i < N_PAIRS; i++) {
    s->accounts[i] = (account){.a = s->pairs[i].a, .b = s->pairs[i].b, .verdict = ACCOUNT_NEGATIVE};
    account *a = &s->accounts[i];
    a->total = (estimate){2, 0.5};
    a->local = (estimate){1, 0.25};
    a->compounding = (estimate){3, (double)NAN};
    a->flips = (estimate){-2, 0.5};
    a->layers = s->account_layers;
  }
  r->accounts = s->accounts;
}

static void check_read_back(const sample *s) {
  recorded_report r;
  if (report_read(&r, folder)) fail_msg("%s", status_text());
  assert_int_equal(r.command, s->r.command);
  assert_int_equal(r.skip, s->r.skip);
  assert_string_equal(r.config, s->r.config_text);
  assert_string_equal(r.model, s->r.model.name);
  assert_true(r.fingerprint == s->r.model.fingerprint && r.input == s->r.input);
  assert_true(r.imposes_routes == s->r.imposes_routes && r.routes == s->r.imposed_routes);
  assert_int_equal(r.n_layers, s->r.n_layers);
  assert_int_equal(r.n_ranks, N_RANKS);
  assert_int_equal(r.n_arms, N_ARMS);
  for (size_t i = 0; i < N_ARMS; i++) {
    const recorded_arm *a = &r.arms[i];
    const report_arm *was = &s->arms[i];
    assert_string_equal(a->name, was->name);
    assert_string_equal(a->path, was->path);
    assert_int_equal(a->path_version, was->path_version);
    assert_true(a->digest == was->digest && a->expert_paths == was->expert_paths);
    assert_memory_equal(a->layer_digests, was->layer_digests, s->r.n_layers * sizeof *a->layer_digests);
    assert_int_equal(a->n_sequences, N_SEQUENCES);
    assert_memory_equal(a->sequences, was->sequences, sizeof s->sequences[i]);
    assert_int_equal(a->n_texts, was->n_texts);
    for (size_t t = 0; t < a->n_texts; t++) {
      assert_true(a->texts[t].digest == was->texts[t].digest);
      assert_int_equal(a->texts[t].n_tokens, was->texts[t].n_tokens);
      assert_memory_equal(a->texts[t].tokens, was->texts[t].tokens, a->texts[t].n_tokens * sizeof(int32_t));
    }
  }
  report_read_close(&r);
}

static void write_report(const sample *s) {
  if (report_write(&s->r, folder)) fail_msg("%s", status_text());
}

static json_t *load(void) {
  json_error_t e;
  json_t *root = json_load_file(in_folder("report.json"), 0, &e);
  if (!root) fail_msg("report.json:%d: %s", e.line, e.text);
  return root;
}

static int run_python(const char *options) {
  char command[1200];
  snprintf(command, sizeof command, "python3 %s/tests/support/check_schema.py %s %s >%s 2>&1", MOE_SOURCE_DIR,
           options, in_folder("report.json"), in_folder("log"));
  int how = system(command);
  return WIFEXITED(how) ? WEXITSTATUS(how) : -1;
}

static void check_schema(const char *options) {
  if (!run_python(options)) return;
  char text[2000] = "";
  FILE *f = fopen(in_folder("log"), "r");
  text[fread(text, 1, sizeof text - 1, f)] = 0;
  fclose(f);
  fail_msg("%s", text);
}

// ---- tests ----

static void test_schema(void **state) {
  (void)state;
  static sample s;
  fill(&s, 2);
  write_report(&s);
  check_read_back(&s);
  check_schema("");
  fill_modes(&s, 2);
  s.r.imposes_routes = true;
  write_report(&s);
  check_read_back(&s);
  check_schema("");
  fill(&s, 1); // every copy is checked whole, so a small one is spoiled
  fill_modes(&s, 1);
  s.r.n_pairs = 1;
  s.r.n_tokens = 0;
  write_report(&s);
  check_schema("--self-test");
  fill(&s, 2);
  s.r.command = COMMAND_PERPLEXITY; // arms only
  s.r.skip = 8;
  s.r.n_pairs = s.r.n_tokens = 0;
  write_report(&s);
  check_schema("");
  s.r.arms[0].layer_digests = NULL;
  s.r.arms[0].sequences = NULL;
  s.r.arms[0].rank_arms = NULL;
  write_report(&s);
  check_schema("");
}

static void test_json_numbers_are_exact(void **state) {
  (void)state;
  static sample s;
  fill(&s, 3);
  write_report(&s);
  json_t *root = load();
  for (size_t p = 0; p < N_PAIRS; p++) {
    json_t *pair = json_array_get(json_object_get(root, "pairs"), p),
           *logits = json_object_get(pair, "logits");
    assert_string_equal(json_string_value(json_object_get(pair, "a")), s.arms[s.pairs[p].a].name);
    assert_string_equal(json_string_value(json_object_get(pair, "b")), s.arms[s.pairs[p].b].name);
    assert_true(json_real_value(json_object_get(logits, "rel_l2")) == s.pairs[p].rel_l2.max);
    assert_true(json_real_value(json_object_get(logits, "kl")) == s.pairs[p].kl.max);
    assert_true(json_real_value(json_object_get(logits, "max_rel")) == s.pairs[p].max_rel.max);
    assert_true(json_real_value(json_object_get(logits, "top1_agreement")) == s.pairs[p].top1_agreement);
    for (size_t l = 0; l < 3; l++) {
      json_t *layer = json_array_get(json_object_get(pair, "layers"), l), *cosine;
      cosine = json_object_get(json_object_get(layer, "spread"), "one_minus_cos");
      assert_true(json_real_value(json_object_get(layer, "one_minus_cos")) ==
                  s.layers[p][l].one_minus_cos.max);
      assert_true(json_real_value(json_object_get(cosine, "median")) == s.layers[p][l].one_minus_cos.median);
      assert_int_equal(json_integer_value(json_object_get(cosine, "worst")),
                       s.layers[p][l].one_minus_cos.worst);
      assert_int_equal(json_integer_value(json_object_get(layer, "router_flips")),
                       s.layers[p][l].router_flips);
      assert_true(json_is_null(json_object_get(layer, "flip_margin")));
    }
  }
  json_t *arm = json_array_get(json_object_get(root, "arms"), 2),
         *bytes = json_object_get(arm, "bytes_per_rank");
  char digest[17];
  snprintf(digest, sizeof digest, "%016llx", (unsigned long long)s.arms[2].digest);
  assert_string_equal(json_string_value(json_object_get(arm, "digest")), digest);
  assert_int_equal(json_integer_value(json_array_get(bytes, 1)), 1234);
  json_t *model = json_object_get(root, "model");
  assert_string_equal(json_string_value(json_object_get(model, "fingerprint")), "0000000000000abc");
  assert_string_equal(json_string_value(json_object_get(model, "path")), "models/tiny\xef\xbf\xbd.gguf");
  json_decref(root);
}

static void test_nan_never_looks_good(void **state) {
  (void)state;
  static sample s;
  fill(&s, 2);
  s.pairs[1].finite = false;
  s.pairs[1].rel_l2 = (spread){NAN, NAN, NAN, 3};
  s.pairs[1].kl = (spread){0, 0, INFINITY, 3};
  s.pairs[1].kl_spread = random_distribution(12, (double)INFINITY);
  s.pairs[1].top1_agreement = NAN;
  s.layers[1][1].max_abs = (spread){NAN, NAN, NAN, 0};
  write_report(&s);
  check_schema("");
  json_t *root = load(), *pair = json_array_get(json_object_get(root, "pairs"), 1);
  json_t *logits = json_object_get(pair, "logits");
  assert_true(json_is_false(json_object_get(pair, "finite")));
  assert_true(json_is_null(json_object_get(logits, "rel_l2")) && json_is_null(json_object_get(logits, "kl")));
  assert_true(json_is_null(json_object_get(logits, "top1_agreement")));
  json_decref(root);
  char *text;
  size_t size;
  FILE *f = open_memstream(&text, &size);
  report_print(&s.r, f);
  fclose(f);
  assert_non_null(strstr(text, "nan"));
  assert_null(strstr(text, "-nan"));
  assert_non_null(strstr(text, "! a NaN or an infinity"));
  free(text);
}

static void test_csv(void **state) {
  (void)state;
  static sample s;
  fill(&s, 3);
  fill_modes(&s, 3);
  write_report(&s);
  static const struct {
    const char *name, *head;
    int lines;
  } files[] = {{"layers.csv", "a,b,layer,rel_l2_min,", 1 + 3 * N_PAIRS},
               {"tokens.csv", "a,b,sequence,", 1 + N_ROWS},
               {"modes.csv", "mode,a,b,layer,rel_l2_min,", 1 + 2 * 3 * N_PAIRS},
               {"experts.csv", "mode,a,b,layer,expert,", 1 + 3 * N_PAIRS * 3 * N_EXPERTS}};
  for (int i = 0; i < 4; i++) {
    char line[1000];
    int lines = 0, commas = 0;
    FILE *f = fopen(in_folder(files[i].name), "r");
    assert_non_null(f);
    for (; fgets(line, sizeof line, f); lines++) {
      int n = 0;
      for (char *c = line; *c; c++) n += *c == ',';
      if (!lines) assert_non_null(strstr(line, files[i].head));
      assert_int_equal(lines ? n : commas, lines ? commas : 0);
      commas = n;
      if (lines != 1 || i > 1) continue;
      double x = strtod(strstr(line, i ? ",7," : ",0,") + 3, NULL); // the first number of the first row
      assert_true(x == (i ? s.tokens[0].rel_l2 : s.layers[0][0].rel_l2.min));
      if (i) assert_non_null(strstr(line, ",nan,"));
    }
    fclose(f);
    assert_int_equal(lines, files[i].lines);
  }
}

static void test_console(void **state) {
  (void)state;
  static const size_t layers[] = {1, 4, 12, 13, 48};
  static const command_kind commands[] = {COMMAND_PARITY, COMMAND_GENERATE, COMMAND_PERPLEXITY};
  for (int i = 0; i < 15; i++) {
    static sample s;
    fill(&s, layers[i % 5]);
    s.r.command = commands[i / 5];
    if (i >= 5) s.r.n_pairs = 0; // parity alone compares
    s.r.model.name = "a name of a model \x1b[31m that is far too long to stand in any table "
                     "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9";
    s.r.model.path =
        "/a/very/long/path/to/a/folder/of/models/that/goes/on/and/on/and/on/and/on/to/the/model.gguf";
    s.ranks[1].arm = "q8k@cpu";
    s.ranks[1].role = "experts";
    size_t worst = layers[i % 5] - 1 - (layers[i % 5] > 2);
    s.layers[1][worst].rel_l2.max = 7.77e7;
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    report_print(&s.r, f);
    fclose(f);
    assert_null(strchr(text, '\x1b'));
    assert_true(!strstr(text, "7.77e+07") == (i >= 5)); // the worst layer is always shown
    assert_non_null(strstr(text, "Once ?[2Jupon \xc3\xa9"));
    const char *truth = strstr(text, "f32@cpu - f64@cpu"), *other = strstr(text, "q8k@cpu - f32@cpu");
    assert_true(i >= 5 ? !truth && !other : truth && truth < other); // the truth comes first
    assert_true(!strstr(text, "f64 is the truth") == (i >= 5));
    assert_true(!strstr(text, "over 11 scored of 12 computed tokens") == (i < 10));
    int lines = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), lines++) {
      size_t width = 0;
      for (char *c = line; *c; c++) width += ((unsigned char)*c & 0xc0) != 0x80;
      if (width > 110) fail_msg("%zu columns: %s", width, line);
    }
    assert_true(lines < 60);
    free(text);
  }
}

// The tables of the modes and of the account, at 110 columns even so.
static void test_console_of_modes(void **state) {
  (void)state;
  static sample s;
  char *text;
  size_t size;
  fill(&s, 2);
  fill_modes(&s, 2);
  FILE *f = open_memstream(&text, &size);
  report_print(&s.r, f);
  fclose(f);
  static const char *const SAID[] = {"Forced: each arm takes the truth's experts",
                                     "Teacher-forced: each layer",
                                     "kqv_out-1  2.50e-01 > 1.25e-01 at position 7", "parts cancel",
                                     "50.0%      0.0%    150.0%   -100.0%  L0 25%, L1 25%"};
  for (size_t i = 0; i < sizeof SAID / sizeof *SAID; i++)
    if (!strstr(text, SAID[i])) fail_msg("not said: %s\n%s", SAID[i], text);
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
    if (strlen(line) > 110) fail_msg("%zu columns: %s", strlen(line), line);
  free(text);
}

static void test_no_truth_is_claimed_without_f64(void **state) {
  (void)state;
  static sample s;
  char *text;
  size_t size;
  fill(&s, 2);
  s.r.arms++; // without the first arm, f64@cpu
  s.r.n_arms--;
  s.pairs[0].a = 1;
  s.pairs[0].b = 0;
  s.r.n_pairs = 1;
  FILE *f = open_memstream(&text, &size);
  report_print(&s.r, f);
  fclose(f);
  assert_non_null(strstr(text, "q8k@cpu - f32@cpu"));
  assert_null(strstr(text, "f64 is the truth"));
  assert_non_null(strstr(text, "without f64 there is no truth"));
  free(text);
}

// ---- failures ----

// Runs `act` in a child that may write no file beyond `limit` bytes, as on a full disk. True: it gave a fault
// that names the file.
static bool fails_in_child(bool (*act)(const sample *s), const sample *s, rlim_t limit) {
  pid_t child = fork();
  if (!child) {
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){limit, limit});
    _exit(act(s) ? 0 : 1);
  }
  int how;
  assert_int_equal(waitpid(child, &how, 0), child);
  return WIFEXITED(how) && !WEXITSTATUS(how);
}

static bool write_fails(const sample *s) {
  return report_write(&s->r, folder) && (strstr(status_text(), ".json") || strstr(status_text(), ".csv"));
}

static void test_full_disk(void **state) {
  (void)state;
  static sample s;
  fill(&s, MAX_LAYERS);
  write_report(&s);
  struct stat json, csv;
  assert_int_equal(stat(in_folder("report.json"), &json), 0);
  assert_int_equal(stat(in_folder("layers.csv"), &csv), 0);
  const off_t limits[] = {0, 1, 4096, csv.st_size - 1, csv.st_size, json.st_size / 2, json.st_size - 1};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    empty_folder();
    assert_true(fails_in_child(write_fails, &s, (rlim_t)limits[i]));
    assert_int_equal(count_files(), 0); // neither a report nor what is left of one
  }
  assert_false(fails_in_child(write_fails, &s, (rlim_t)json.st_size)); // just enough
  assert_int_equal(access(in_folder("report.json"), F_OK), 0);
}

static bool npy_fails(const sample *s) {
  (void)s;
  static float rows[4096];
  npy *f;
  if (npy_open(&f, folder, "logits.x.npy", &(npy_row){NPY_F32, 1, {4096}})) return false;
  bool failed = false;
  for (int i = 0; i < 3 && !failed; i++) failed = npy_append(f, rows, 1);
  if (failed)
    npy_abandon(f);
  else
    failed = npy_finish(f);
  return failed && strstr(status_text(), "logits.x.npy");
}

static void test_full_disk_npy(void **state) {
  (void)state;
  for (rlim_t limit = 0; limit < 128 + 3 * 16384; limit += 4001) {
    assert_true(fails_in_child(npy_fails, NULL, limit));
    assert_int_equal(count_files(), 0);
  }
  assert_false(fails_in_child(npy_fails, NULL, 128 + 3 * 16384));
  assert_int_equal(count_files(), 1);
}

static void test_old_report_goes_first(void **state) {
  (void)state;
  static sample s;
  npy *f;
  fill(&s, 2);
  write_report(&s);
  assert_int_equal(npy_open(&f, folder, "logits.q8k@cpu.npy", &(npy_row){NPY_F64, 1, {2}}), 0);
  assert_int_equal(access(in_folder("report.json"), F_OK), 0); // still whole: nothing of it was replaced
  assert_int_equal(npy_append(f, (double[]){1, 2}, 1), 0);
  assert_int_equal(npy_finish(f), 0);
  assert_int_equal(access(in_folder("report.json"), F_OK),
                   -1); // or it would stand beside another run's logits
  s.r.has_logits = true;
  write_report(&s);
  assert_int_equal(count_files(), 4);
  s.r.arms[0].perplexity = 123;
  write_report(&s); // over an old one
  json_t *root = load();
  assert_true(json_real_value(
                  json_object_get(json_array_get(json_object_get(root, "arms"), 0), "perplexity")) == 123);
  json_decref(root);
}

// Of another run's logits only those that moe_run names so go, and none of the run's own.
static void test_old_logits_go(void **state) {
  (void)state;
  static sample s;
  static const char *const OLD[] = {"logits.f32@cuda.npy", "logits.ranks.npy", "routes.ranks.npy",
                                    "modes.csv", "experts.csv"};
  static const char *const OWN[] = {"logits.q8k@cpu.npy", "logits.f64@cpu.npy", "routes.npy",
                                    "routes.f64@cpu.npy", "route_weights.npy"};
  static const char *const FOREIGN[] = {"logits.npy",      "logits.mine.npy", "logits.f32@cpu.old.npy",
                                        "routes.mine.npy", "a.npy",           "routes_.npy"};
  const char *const *lists[] = {OLD, OWN, FOREIGN};
  const size_t counts[] = {5, 5, 6};
  fill(&s, 2);
  for (int has = 1; has >= 0; has--) {
    for (int l = 0; l < 3; l++)
      for (size_t i = 0; i < counts[l]; i++) assert_int_equal(fclose(fopen(in_folder(lists[l][i]), "w")), 0);
    s.r.has_logits = s.r.has_routes = has;
    write_report(&s);
    for (int l = 0; l < 3; l++)
      for (size_t i = 0; i < counts[l]; i++) {
        bool stays = l == 2 || (l == 1 && has), there = !access(in_folder(lists[l][i]), F_OK);
        if (stays != there) fail_msg("%s: %s", lists[l][i], there ? "still there" : "gone");
      }
  }
}

// A fault between the new names: the old report.json is gone by then, for the files beside it are not its
// own.
static void test_interrupted_naming(void **state) {
  (void)state;
  static sample s;
  fill(&s, 2);
  write_report(&s);
  assert_int_equal(remove(in_folder("tokens.csv")), 0);
  assert_int_equal(mkdir(in_folder("tokens.csv"), 0777), 0); // a file cannot take its name
  assert_int_equal(report_write(&s.r, folder), 1);
  assert_non_null(strstr(status_text(), "tokens.csv"));
  assert_int_equal(access(in_folder("report.json"), F_OK), -1);
  assert_int_equal(count_files(), 2); // layers.csv and the folder: no temporary file
}

static void test_folders(void **state) {
  (void)state;
  char deep[600];
  snprintf(deep, sizeof deep, "%s", in_folder("a/b//c/"));
  assert_int_equal(output_dir_check(deep), 0);
  assert_int_equal(output_dir_check(deep), 0);
  assert_int_equal(rmdir(deep), 0); // nothing is left in it
  rmdir(in_folder("a/b"));
  rmdir(in_folder("a"));
  assert_int_equal(fclose(fopen(in_folder("file"), "w")), 0);
  const char *bad[] = {"", in_folder("file"), "/proc/no/such", "/dev/null/x"};
  char below[600];
  for (int i = 0; i < 4; i++) {
    status_reset();
    assert_int_equal(output_dir_check(bad[i]), 1);
    if (!strstr(status_text(), bad[i])) fail_msg("%s", status_text());
  }
  snprintf(below, sizeof below, "%s/x", in_folder("file"));
  status_reset();
  assert_int_equal(output_dir_check(below), 1);
  static sample s;
  fill(&s, 2);
  status_reset();
  assert_int_equal(report_write(&s.r, in_folder("none")), 1);
  assert_non_null(strstr(status_text(), "/none/layers.csv"));
  status_reset();
}

// ---- npy ----

static void check_npy(bool is_f64, size_t columns, size_t rows) {
  char expected[200], header[129] = "";
  npy *f;
  size_t size = is_f64 ? sizeof(double) : sizeof(float);
  remove(in_folder("x.npy"));
  char *data = calloc(columns * rows + 1, size), *back = calloc(columns * rows + 1, size);
  for (size_t i = 0; i < columns * rows * size; i++) data[i] = (char)rand();
  assert_int_equal(
      npy_open(&f, folder, "x.npy", &(npy_row){is_f64 ? NPY_F64 : NPY_F32, 1, {(int64_t)columns}}), 0);
  assert_int_equal(access(in_folder("x.npy"), F_OK), -1);
  for (size_t done = 0, n; done < rows; done += n) {
    n = 1 + (size_t)rand() % (rows - done);
    assert_int_equal(npy_append(f, data + done * columns * size, n), 0);
  }
  assert_int_equal(npy_finish(f), 0);
  FILE *in = fopen(in_folder("x.npy"), "rb");
  assert_non_null(in);
  assert_int_equal(fread(header, 1, 128, in), 128);
  assert_memory_equal(header, "\x93NUMPY\x01\x00\x76\x00", 10);
  snprintf(expected, sizeof expected, "{'descr': '<f%zu', 'fortran_order': False, 'shape': (%zu, %zu), }",
           size, rows, columns);
  assert_memory_equal(header + 10, expected, strlen(expected));
  assert_int_equal(header[127], '\n');
  assert_int_equal(fread(back, size, columns * rows + 1, in), columns * rows);
  assert_memory_equal(back, data, columns * rows * size);
  fclose(in);
  free(data);
  free(back);
}

// More files than may be open grow side by side; of each type, with rows of two dimensions.
static void test_paused_npy(void **state) {
  (void)state;
  enum { FILES = 40, ROWS = 3 };
  static const char *const TYPES[] = {"<f4", "<f8", "<i4"};
  npy *f[FILES];
  char name[32], header[128], expected[120];
  struct rlimit was, few;
  assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
  few = was;
  few.rlim_cur = 20;
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
  for (int i = 0; i < FILES; i++) {
    snprintf(name, sizeof name, "x%d.npy", i);
    assert_int_equal(npy_open(&f[i], folder, name, &(npy_row){(npy_type)(i % 3), 2, {5, 2}}), 0);
    assert_int_equal(npy_pause(f[i]), 0);
    assert_int_equal(npy_pause(f[i]), 0);
  }
  for (int row = 0; row < ROWS; row++)
    for (int i = 0; i < FILES; i++) {
      int32_t numbers[20] = {i, row};
      assert_int_equal(npy_append(f[i], numbers, 1), 0);
      assert_int_equal(npy_pause(f[i]), 0);
    }
  for (int i = 0; i < FILES; i++) assert_int_equal(npy_complete(f[i]), 0);
  assert_int_equal(access(in_folder("x0.npy"), F_OK), -1);
  for (int i = 0; i < FILES; i++) assert_int_equal(npy_name(f[i]), 0);
  assert_int_equal(count_files(), FILES);
  for (int i = 0; i < FILES; i++) {
    snprintf(name, sizeof name, "x%d.npy", i);
    FILE *in = fopen(in_folder(name), "rb");
    assert_non_null(in);
    assert_int_equal(fread(header, 1, sizeof header, in), sizeof header);
    int n = snprintf(expected, sizeof expected,
                     "{'descr': '%s', 'fortran_order': False, 'shape': (3, 5, 2), }", TYPES[i % 3]);
    assert_memory_equal(header + 10, expected, (size_t)n);
    for (int row = 0; row < ROWS; row++) {
      int32_t numbers[20];
      size_t bytes = 10 * npy_number_bytes((npy_type)(i % 3));
      assert_int_equal(fread(numbers, 1, bytes, in), bytes);
      assert_true(numbers[0] == i && numbers[1] == row);
    }
    assert_int_equal(fgetc(in), EOF);
    fclose(in);
  }
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
}

static void test_npy(void **state) {
  (void)state;
  check_npy(false, 7, 5);
  check_npy(true, 3, 11);
  check_npy(true, 300, 100);
  check_npy(false, 4, 0);
  assert_int_equal(count_files(), 1);
  npy *f;
  assert_int_equal(npy_open(&f, folder, "y.npy", &(npy_row){NPY_F32, 1, {4}}), 0);
  npy_abandon(f);
  npy_abandon(NULL);
  assert_int_equal(count_files(), 1);
  assert_int_equal(npy_open(&f, in_folder("none"), "y.npy", &(npy_row){NPY_F32, 1, {4}}), 1);
  assert_null(f);
  assert_non_null(strstr(status_text(), "/none/y.npy"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_schema, fresh),
      cmocka_unit_test_setup(test_json_numbers_are_exact, fresh),
      cmocka_unit_test_setup(test_nan_never_looks_good, fresh),
      cmocka_unit_test_setup(test_csv, fresh),
      cmocka_unit_test_setup(test_console, fresh),
      cmocka_unit_test_setup(test_console_of_modes, fresh),
      cmocka_unit_test_setup(test_no_truth_is_claimed_without_f64, fresh),
      cmocka_unit_test_setup(test_full_disk, fresh),
      cmocka_unit_test_setup(test_full_disk_npy, fresh),
      cmocka_unit_test_setup(test_old_report_goes_first, fresh),
      cmocka_unit_test_setup(test_old_logits_go, fresh),
      cmocka_unit_test_setup(test_interrupted_naming, fresh),
      cmocka_unit_test_setup(test_folders, fresh),
      cmocka_unit_test_setup(test_npy, fresh),
      cmocka_unit_test_setup(test_paused_npy, fresh),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
