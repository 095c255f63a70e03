// job: what every command needs before it starts: ranks that agree, the model, the plan, the input.
//
// Owns: the model, tokenizer, plan, topology and token sequences of a run.
// Invariant: after job_open all ranks have the same configuration, the same model and the same tokens; each
// local phase that can fail is followed by an agreement, so one rank's bad file ends all and hangs none.
#pragma once
#include "src/config/config.h"
#include "src/run/arm.h"
#include "src/run/batcher.h"
#include "src/run/rank_roles.h"
#include "src/text/tokenizer.h"

typedef struct {
  const char *command;
  const config *cfg;
  comm *c;
  topology *place;
  device_id device; // that this rank takes, whatever its arm; index -1: no arm needs one, or there is none
  model *m;
  tokenizer *words; // NULL: the file has none
  placement experts;
  rank_roles roles; // in the arm "ranks"
  uint64_t fingerprint;
  uint64_t input; // hash of the tokens of all sequences
  token_sequence *sequences;
  int64_t n_sequences, n_tokens; // of all sequences
  int64_t context;               // positions that the run needs
  int64_t max_batch;
} job;

typedef enum { INPUT_REQUIRED, INPUT_UNUSED } input_use;

// Collective.
status job_open(job *out, const char *command, const config *cfg, comm *c, input_use input);
void job_close(job *j);

// Collective: faults of any rank become faults of all.
status job_agree(job *j, status mine, const char *what);

// The one that reports: the first rank that has every result, mostly rank 0.
bool job_is_reporting(const job *j);

bool job_is_mixed(const char *arm_name);                                   // "ranks"
const char *job_arm_of_rank(const job *j, const char *arm_name, int rank); // of its experts: "q8k@cpu"

// Collective. Every rank reads the shared tensors and its own experts once: values are checked, pages are
// warm, and the sum over ranks is j->fingerprint, that of the whole file. job_open has done it where input is
// required.
status job_check_weights(job *j);

// Collective. Opens the arm `name` of run.arms; the engine's caches hold the job's sequences.
status job_open_arm(job *j, const char *name, arm **out);

// Local. After a fault: a model file that changed in mid-run makes faults of many kinds, so the change is
// told in their place.
void job_explain_fault(const job *j);

// Collective: the model's files are as they were, and every shared rank's digests of the arm are the same, or
// the law is broken and the fault says so.
status job_check_digest(job *j, arm *e);
