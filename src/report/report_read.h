// report_read: report.json as another run, perhaps on another machine, left it.
//
// Owns: the check of every value that it takes: its type, its range, and that the parts agree with each
// other. Independent of: metrics and pairs of arms, which it skips.
// Invariant: what is not a complete report of this schema is an error that names file and key.
#pragma once
#include "kernels/backend.h"
#include "src/report/report.h"

typedef struct {
  const char *name, *path; // "q8k@cpu"; the path of all but the experts
  path_kind path_kind;
  int64_t path_version;
  uint64_t expert_paths;   // see report_arm
  uint64_t digest;         // of the logits: the sum of its sequences'
  uint64_t *layer_digests; // [n_layers] of the model
  report_sequence *sequences;
  size_t n_sequences;
  report_text *texts; // tokens and digest alone
  size_t n_texts;
} recorded_arm;

typedef struct { // texts are views into `tree`
  char *file;
  void *tree;
  const char *version, *cpu, *row, *kv, *config, *model;
  command_kind command;
  int64_t skip;         // of perplexity, as in report.h
  uint64_t fingerprint; // of the model
  uint64_t input;       // of the tokens of all sequences
  bool imposes_routes;  // parity.routes was set: `routes` is the hash of its experts
  uint64_t routes;
  int64_t n_layers, context, hosts;
  size_t n_ranks;
  recorded_arm *arms;
  size_t n_arms;
} recorded_report;

// PATH: the file, or the folder that holds it. After an error nothing stays open.
status report_read(recorded_report *out, const char *path);
// The same from `length` bytes of text; errors call it `file`.
status report_read_text(recorded_report *out, const char *file, const char *text, size_t length);
void report_read_close(recorded_report *r);
