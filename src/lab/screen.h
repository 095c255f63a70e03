// screen: every rank computes the same work again and again; because the law says what the bits must be, one
// that gives others is faulty, and its fault is named.
//
// Owns: the rounds, the vote on what is right, the findings of all ranks.
// Independent of: how findings are printed. Invariant: all ranks have the same result.
#pragma once
#include "src/lab/screen_unit.h"
#include "src/run/job.h"

enum { SCREEN_UNITS = CONFIG_MAX_ARMS, SCREEN_VOTERS = 8, SCREEN_FINDINGS = 32, SCREEN_NAME = 96 };

typedef enum { AT_CORES, AT_DEVICE, AT_LINK } screen_place;

typedef struct { // a fault at one place and step, as often as it was seen
  screen_place place;
  int32_t rank;               // of the link: that received
  int32_t from;               // of the link: that sent; else -1
  char arm[24];               // "q8k@cuda"; of a link the transport
  char row[32];               // ISA row or device in use; of a link ""
  char work[16];              // a cut's name, "start" or "exchange"
  char step[48];              // the first that differs: a tensor, a layer, "result_output", "row 3 of 64"
  bool undecided;             // as many gave this answer as the other, so the fault may be the others'
  uint64_t times;             // that it was seen
  double seconds;             // after the start of the rounds, when first seen; before them: 0
  int64_t rows, values, bits; // of the step, that differ when first seen; -1: not compared
} screen_finding;

typedef struct { // what a unit did
  char arm[24], row[32];
  bool on_device;
  uint64_t runs[SCREEN_CUTS], tokens[SCREEN_CUTS]; // compared with what is expected
  double seconds[SCREEN_CUTS];
} screen_coverage;

typedef struct {
  char host[SCREEN_NAME], cores[SCREEN_NAME], cpu_rows[SCREEN_NAME]; // that voted
  device_id device;
  int32_t n_units;
  screen_coverage unit[SCREEN_UNITS];
  uint64_t link_bytes; // received and compared
  int32_t n_findings;
  uint64_t lost_findings; // beyond SCREEN_FINDINGS places
} screen_rank;

typedef struct { // of a path: the digests that its units agree on
  const path_info *path;
  uint64_t logits; // of all positions of the sequence: the digest of bench's tg test of that length
  int voters;
} screen_answer;

typedef struct {
  double seconds; // of the rounds
  int64_t n_tokens, sequences, rounds;
  const char *transport;
  screen_rank *ranks; // [n_ranks]
  int n_ranks;
  screen_finding *findings; // of all ranks
  size_t n_findings;
  screen_answer answers[SCREEN_UNITS];
  size_t n_answers;
} screen_result;

// Collective. Needs the weights of all experts on every rank; job_check_weights was called.
status screen_run(job *j, screen_result *out);
void screen_close(screen_result *r);
