// experiment: a falsifier as its file describes it, and what running it has found.
//
// The file (configs/falsify/NNN-*.toml) says what is claimed, what goes in and which figures the claim
// predicts; the code (falsify_*.c) says how the figures are measured. The verdict follows from the two alone.
//
// Owns: the reader of such files, the list of figures, the verdict.
// Independent of: how a figure is measured, ranks, printing.
#pragma once
#include "base/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  EXPERIMENT_NAME = 48,
  EXPERIMENT_TEXT = 1024,
  EXPERIMENT_VALUES = 16,  // numbers of one input
  EXPERIMENT_ENTRIES = 48, // inputs, predictions or known figures of a file
  EXPERIMENT_FIGURES = 512,
  EXPERIMENT_NOTES = 8,
};

typedef struct { // a number or a list of them; or a text
  char name[EXPERIMENT_NAME];
  double value[EXPERIMENT_VALUES];
  size_t count;
  char text[EXPERIMENT_NAME]; // count 0
} experiment_input;

typedef struct { // the claim predicts low <= figure <= high; an end that is not given is infinite
  char figure[EXPERIMENT_NAME];
  double low, high;
} experiment_bound;

typedef struct {
  char name[EXPERIMENT_NAME];
  double value;
  bool of_draws; // NAME_p01, ...: where the figure NAME stands among the draws
} experiment_figure;

typedef struct {
  int id; // 1 to 10
  char name[EXPERIMENT_NAME], hypothesis[EXPERIMENT_TEXT];
  experiment_input inputs[EXPERIMENT_ENTRIES];
  size_t n_inputs;
  experiment_bound bounds[EXPERIMENT_ENTRIES];
  size_t n_bounds;
  experiment_figure known[EXPERIMENT_ENTRIES]; // of docs/falsify.md, by the name of our figure
  size_t n_known;
} experiment;

// text[length] is the file of `path`, which errors name with the line.
status experiment_read(experiment *out, const char *path, const char *text, size_t length);

// Inputs: NULL where the file has none of that name.
const experiment_input *experiment_find_input(const experiment *e, const char *name);
// names[n]: what the method reads; each is there, and nothing else is, or the error names it.
status experiment_check_inputs(const experiment *e, const char *const *names, size_t n);
// Of an input that experiment_check_inputs has seen.
int64_t experiment_integer(const experiment *e, const char *name);
double experiment_real(const experiment *e, const char *name);
const char *experiment_text(const experiment *e, const char *name);
// The known figure, or NaN.
double experiment_known(const experiment *e, const char *figure);

typedef enum { VERDICT_NONE, VERDICT_REFUTED, VERDICT_SUPPORTED } experiment_verdict;
const char *experiment_verdict_name(experiment_verdict v); // "refuted", "supported"

typedef struct {
  const experiment *settings;
  const char *method; // text
  experiment_verdict verdict;
  experiment_figure figures[EXPERIMENT_FIGURES];
  size_t n_figures;
  char notes[EXPERIMENT_NOTES][EXPERIMENT_TEXT]; // what else a reader must know: which tensor, which stand-in
  size_t n_notes;
  double seconds;
  // Of experiment 9: the local error of each expert, NaN where no token chose it, infinite where it
  // was no number; NULL otherwise.
  int64_t n_layers, n_experts;
  char expert_arm[EXPERIMENT_NAME]; // whose errors:
  double *expert_error;             // [n_layers][n_experts]; owned
  int64_t *expert_hits;             // tokens that chose it, [n_layers][n_experts]; owned
} experiment_result;

void experiment_result_close(experiment_result *r); // takes NULL

// Adds a figure under a name that is put together as by printf. Too many are dropped and reported by
// experiment_judge.
void experiment_add(experiment_result *r, double value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// The figure NAME_<end> of the draws of NAME.
void experiment_add_of_draws(experiment_result *r, double value, const char *name, const char *end);
void experiment_note(experiment_result *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
double experiment_figure_of(const experiment_result *r, const char *name); // NaN: there is none
// Of the draws of a figure: experiment_figure_of NAME_<end>.
double experiment_of_draws(const experiment_result *r, const char *name, const char *end);

// True where the figure lies in the bound; NaN never does.
bool experiment_bound_holds(const experiment_bound *b, double figure);
// Supported where every prediction holds, else refuted. An error where a prediction or a known figure names a
// figure that was not measured, or one that is not a number.
status experiment_judge(experiment_result *r);
// "0.002 <= a_b_rel_l2 <= 0.01, ..." into out[size].
void experiment_bound_text(char *out, size_t size, const experiment *e);
