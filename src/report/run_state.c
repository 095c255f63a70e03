#include "src/report/run_state.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "kernels/build_hash.h"
#include "kernels/formats/numerics.h"
#include "src/report/json_place.h"
#include "src/report/json_tree.h"
#include "src/report/report_file.h"
#include <errno.h>
#include <signal.h>
#include <unistd.h>

enum { STATE_VERSION = 1, MOST_STEPS = 4096 };
static const char file_name[] = "state.json";
static const size_t most_bytes = (size_t)1 << 30;
static const double ask_seconds = 1; // between agreements

// ---- signals ----

enum { N_SIGNALS = 2 };
static const int signals[N_SIGNALS] = {SIGTERM, SIGUSR1};
static struct sigaction
    before[N_SIGNALS];                 // what the second one of a kind does: base/temporary.c removes files
static volatile sig_atomic_t asked_by; // the signal; 0: none

static void on_signal(int number) {
  asked_by = number;
  for (int i = 0; i < N_SIGNALS; i++)
    if (signals[i] == number) sigaction(number, &before[i], NULL);
}

static void catch_signals(void) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  for (int i = 0; i < N_SIGNALS; i++) {
    sigaction(signals[i], NULL, &before[i]);
    if (before[i].sa_handler != on_signal && before[i].sa_handler != SIG_IGN)
      sigaction(signals[i], &action, NULL);
  }
}

// ---- the settings that decide what is computed ----

static const char *const keys[] = {"run.arms",        "run.kv",          "run.context",  "run.seed",
                                   "run.generate",    "run.temperature", "run.top_k",    "run.top_p",
                                   "perplexity.skip", "ranks.arm",       "ranks.shared", "run.stop",
                                   "run.ignore_eos"};
enum { N_KEYS = sizeof keys / sizeof *keys };

// The value of `key` in a canonical text of the configuration; NULL: it has none. `text` is cut there.
static char *value_of(char *text, const char *key) {
  size_t length = strlen(key);
  for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
    if (!strncmp(line, key, length) && !strncmp(line + length, " = ", 3)) {
      char *value = line + length + 3;
      return strndup(value, strcspn(value, "\n"));
    }
  return NULL;
}

static status put_settings(branch root, const run_state *s) {
  branch o = put_object(root, "settings");
  char *text = NULL;
  TRY(config_text(s->j->cfg, &text));
  for (int i = 0; i < N_KEYS; i++) {
    char *value = value_of(text, keys[i]);
    if (value) put_text(o, keys[i], value);
    free(value);
  }
  free(text);
  return 0;
}

static status check_settings(const run_state *s, const place *root) {
  place o;
  char *text = NULL;
  status result = 0;
  TRY(take(&o, root, "settings", JSON_OBJECT));
  TRY(config_text(s->j->cfg, &text));
  for (int i = 0; i < N_KEYS && !result; i++) {
    char *value = value_of(text, keys[i]);
    const char *kept = json_string_value(json_object_get(o.node, keys[i]));
    if (strcmp(value ? value : "", kept ? kept : ""))
      result = REFUSE("run.resume: %s is of a run with %s = %s, expected that value, found %s", o.file,
                      keys[i], kept ? kept : "nothing", value ? value : "nothing");
    free(value);
  }
  free(text);
  return result;
}

// ---- the file ----

// Of everything in the lists, so that a spoilt file is seen.
static uint64_t hash_arms(const run_state *s) {
  uint64_t sum = 0;
  for (size_t a = 0; a < s->j->cfg->run.arms.count; a++) {
    const run_state_arm *x = &s->arm[a];
    sum = num_mix64(sum + x->n_numbers);
    for (size_t i = 0; i < x->n_numbers; i++) sum = num_mix64(sum + (uint64_t)x->number[i]);
    sum = num_mix64(sum + x->n_words);
    for (size_t i = 0; i < x->n_words; i++) sum = num_mix64(sum + x->word[i]);
  }
  return sum;
}

static const path_info *path_of(const run_state *s, size_t index) {
  const arm_choice *choice = &s->j->cfg->run.arms.arm[index];
  return path_for(choice->kind == ARM_MIXED ? s->j->roles.shared_arm.path : choice->path, &s->j->m->weights);
}

static uint64_t expert_paths_of(const run_state *s, size_t index) {
  return job_expert_paths(s->j, &s->j->cfg->run.arms.arm[index]);
}

static status write_file(const run_state *s) {
  bool bad = false;
  branch root = {json_object(), &bad};
  put_integer(root, "state", STATE_VERSION);
  put_text(root, "command", command_name(s->j->command));
  put_digest(root, "model", s->j->fingerprint);
  put_digest(root, "input", s->j->input);
  put_digest(root, "sources", build_hash_get().common);
  status result = put_settings(root, s);
  branch arms = put_array(root, "arms");
  for (size_t a = 0; a < s->j->cfg->run.arms.count; a++) {
    const run_state_arm *x = &s->arm[a];
    branch o = put_object(arms, NULL);
    put_text(o, "name", s->j->cfg->run.arms.arm[a].name);
    put_integer(o, "path_version", path_of(s, a)->version);
    put_digest(o, "expert_paths", expert_paths_of(s, a));
    branch numbers = put_array(o, "numbers"), words = put_array(o, "words");
    for (size_t i = 0; i < x->n_numbers; i++) put_integer(numbers, NULL, x->number[i]);
    for (size_t i = 0; i < x->n_words; i++) put_digest(words, NULL, x->word[i]);
  }
  put_digest(root, "hash", hash_arms(s));
  if (!result) return json_tree_write(s->j->cfg->output.dir, file_name, root);
  json_decref(root.node);
  return result;
}

static status expect_digest(const place *root, const char *key, uint64_t here, const char *what) {
  uint64_t kept;
  TRY(take_digest(&kept, root, key));
  return kept == here ? 0
                      : REFUSE("run.resume: %s is of a run with another %s: %016" PRIx64 ", here %016" PRIx64,
                               root->file, what, kept, here);
}

static status read_lists(run_state_arm *out, const place *of) {
  place list, p;
  TRY(take(&list, of, "numbers", JSON_ARRAY));
  out->n_numbers = json_array_size(list.node);
  TRY(TAKE(&out->number, out->n_numbers, "the kept state"));
  for (size_t i = 0; i < out->n_numbers; i++) {
    TRY(take_element(&p, &list, i, JSON_INTEGER, "an integer"));
    out->number[i] = json_integer_value(p.node);
  }
  TRY(take(&list, of, "words", JSON_ARRAY));
  out->n_words = json_array_size(list.node);
  TRY(TAKE(&out->word, out->n_words, "the kept state"));
  for (size_t i = 0; i < out->n_words; i++) {
    TRY(take_element(&p, &list, i, JSON_STRING, "a string"));
    TRY(read_digest(&out->word[i], &p));
  }
  return 0;
}

static status read_arms(run_state *s, const place *root) {
  place arms, one;
  uint64_t hash;
  int64_t version;
  TRY(take(&arms, root, "arms", JSON_ARRAY));
  for (size_t a = 0; a < s->j->cfg->run.arms.count; a++) {
    TRY(take_element(&one, &arms, a, JSON_OBJECT, "an arm"));
    TRY(take_integer(&version, &one, "path_version", 0, INT32_MAX));
    if (version != path_of(s, a)->version)
      return REFUSE("run.resume: %s: %s: expected version %d of the path %s, found %" PRId64, root->file,
                    one.where, path_of(s, a)->version, path_of(s, a)->name, version);
    TRY(expect_digest(&one, "expert_paths", expert_paths_of(s, a), "map of experts to paths"));
    TRY(read_lists(&s->arm[a], &one));
  }
  TRY(take_digest(&hash, root, "hash"));
  return hash == hash_arms(s) ? 0 : REFUSE("run.resume: %s: its content does not match its hash", root->file);
}

static status check_tree(run_state *s, const place *root) {
  const char *command;
  int64_t version;
  TRY(take_integer(&version, root, "state", STATE_VERSION, STATE_VERSION));
  TRY(take_text(&command, root, "command"));
  if (strcmp(command, command_name(s->j->command)))
    return REFUSE("run.resume: %s is of the command %.40s, expected %s", root->file, command,
                  command_name(s->j->command));
  TRY(expect_digest(root, "model", s->j->fingerprint, "model (fingerprint)"));
  TRY(expect_digest(root, "input", s->j->input, "input (hash of its tokens)"));
  TRY(check_settings(s, root));
  TRY(expect_digest(root, "sources", build_hash_get().common, "build (hash of its sources)"));
  return read_arms(s, root);
}

// On the reporting rank. No file: there is nothing to go on with, and the run starts at its beginning.
static status read_file_there(run_state *s) {
  char path[4096], *text;
  size_t length;
  json_error_t e;
  snprintf(path, sizeof path, "%s/%s", s->j->cfg->output.dir, file_name);
  if (access(path, F_OK) && errno == ENOENT) return 0;
  TRY(status_as_refusal(read_file(&text, &length, path, "state", most_bytes, READ_REGULAR)));
  json_t *tree = json_loadb(text, length, JSON_REJECT_DUPLICATES, &e);
  place root = {.file = path, .node = tree};
  status result = tree ? check_tree(s, &root) : REFUSE("%s: no JSON: %s", path, e.text);
  json_decref(tree);
  free(text);
  return result;
}

// ---- the same on every rank ----

// Every rank's `bytes` become the reporting rank's.
static status broadcast(const job *j, void *data, size_t bytes) {
  char *all;
  size_t size = (size_t)comm_size(j->c);
  if (!bytes) return 0;
  TRY(TAKE(&all, size * bytes, "the kept state"));
  status result = comm_allgather(j->c, all, data, bytes, "the kept state");
  if (!result) memcpy(data, all + (size_t)j->roles.reporting * bytes, bytes);
  free(all);
  return result;
}

static status take_lists(run_state_arm *x) {
  if (!x->number) TRY(TAKE(&x->number, x->n_numbers, "the kept state"));
  if (!x->word) TRY(TAKE(&x->word, x->n_words, "the kept state"));
  return 0;
}

static status broadcast_arms(run_state *s) {
  for (size_t a = 0; a < s->j->cfg->run.arms.count; a++) {
    run_state_arm *x = &s->arm[a];
    size_t sizes[] = {x->n_numbers, x->n_words};
    TRY(broadcast(s->j, sizes, sizeof sizes));
    x->n_numbers = sizes[0];
    x->n_words = sizes[1];
    TRY(job_agree(s->j, take_lists(x), "the kept state"));
    TRY(broadcast(s->j, x->number, x->n_numbers * sizeof *x->number));
    TRY(broadcast(s->j, x->word, x->n_words * sizeof *x->word));
  }
  return 0;
}

// ---- open, step, write ----

status run_state_open(run_state *out, job *j) {
  *out = (run_state){.j = j, .is_kept = j->cfg->output.dir[0], .interval = 1};
  bool resumes = j->cfg->run.resume;
  status mine = resumes && !out->is_kept
                    ? REFUSE("run.resume: the state lies in the output folder: expected --out DIR")
                    : 0;
  TRY(job_agree(j, mine, "run.resume"));
  if (!out->is_kept) return 0;
  if (resumes) {
    TRY(job_agree(j, job_is_reporting(j) ? read_file_there(out) : 0, "run.resume"));
    TRY(broadcast_arms(out));
  }
  catch_signals();
  out->written = out->asked = clock_seconds();
  return 0;
}

void run_state_close(run_state *s) {
  for (size_t a = 0; a < CONFIG_MAX_ARMS; a++) {
    free(s->arm[a].number);
    free(s->arm[a].word);
  }
}

typedef struct { // of one rank, where all agree
  int32_t signal;
  double since_asked, since_written;
} question;

// The next agreement is about a second away for the slowest rank.
static int64_t next_interval(const run_state *s, const question *all) {
  double longest = 1e-6;
  for (int r = 0; r < comm_size(s->j->c); r++)
    if (all[r].since_asked > longest) longest = all[r].since_asked;
  double steps = (double)s->steps * ask_seconds / longest;
  return steps < 1 ? 1 : steps > MOST_STEPS ? MOST_STEPS : (int64_t)steps;
}

static status ask(run_state *s, question *all, bool *due) {
  double now = clock_seconds();
  question mine = {asked_by, now - s->asked, now - s->written};
  TRY(comm_allgather(s->j->c, all, &mine, sizeof mine, "whether the run goes on"));
  for (int r = 0; r < comm_size(s->j->c) && !s->ends_by; r++) s->ends_by = all[r].signal;
  *due = s->ends_by != 0;
  *due = *due || all[s->j->roles.reporting].since_written >= s->j->cfg->run.keep;
  s->interval = next_interval(s, all);
  s->asked = now;
  s->steps = 0;
  return 0;
}

status run_state_step(run_state *s, bool *due) {
  question *all;
  *due = false;
  if (!s->is_kept || ++s->steps < s->interval) return 0;
  TRY(TAKE(&all, (size_t)comm_size(s->j->c), "the kept state"));
  status result = ask(s, all, due);
  free(all);
  return result;
}

status run_state_keep(run_state *s, size_t index, const int64_t *number, size_t n_numbers,
                      const uint64_t *word, size_t n_words) {
  run_state_arm *x = &s->arm[index];
  if (!s->is_kept) return 0;
  free(x->number);
  free(x->word);
  *x = (run_state_arm){.n_numbers = n_numbers, .n_words = n_words};
  TRY(take_lists(x));
  memcpy(x->number, number, n_numbers * sizeof *number);
  memcpy(x->word, word, n_words * sizeof *word);
  return 0;
}

status run_state_write(run_state *s) {
  job *j = s->j;
  if (!s->is_kept) return 0;
  TRY(job_agree(j, job_is_reporting(j) ? write_file(s) : 0, "writing the state"));
  s->written = clock_seconds();
  if (!s->ends_by) return 0;
  return job_agree(
      j,
      FAIL("signal %d ended the run; what was done is kept in %s/%s: the same command with --resume "
           "goes on",
           s->ends_by, j->cfg->output.dir, file_name),
      "the end by a signal");
}

status run_state_remove(run_state *s) {
  const char *dir = s->j->cfg->output.dir;
  if (!s->is_kept) return 0;
  return job_agree(s->j, job_is_reporting(s->j) ? report_file_retract_name(dir, file_name) : 0,
                   "removing the state");
}
