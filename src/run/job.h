// job: what every command needs before it starts: ranks that agree, the model, the placement, the input.
//
// Owns: the model, tokenizer, placement, topology and token sequences of a run.
// Invariant: after job_open all ranks have the same configuration, the same model and the same tokens; each
// local phase that can fail is followed by an agreement, so one rank's bad file ends all and hangs none.
#pragma once
#include "dist/timeline.h"
#include "src/config/command_kind.h"
#include "src/config/config.h"
#include "src/run/arm.h"
#include "src/run/batcher.h"
#include "src/run/rank_roles.h"
#include "src/text/end_tokens.h"
#include "src/text/tokenizer.h"

typedef struct {
  command_kind command;
  const config *cfg;
  comm *c;
  topology *place;
  timeline *timeline; // output.timeline, the caller's to close; NULL: none is kept
  device_id device;   // of this rank, whatever its arm; index -1: no arm needs one, or there is none
  model *m;
  tokenizer *tokenizer;  // NULL: no text is read or written, or the file has none that can be read
  end_tokens *ends;      // of the model; NULL until job_open_ends
  message_list warnings; // what every report repeats; the reporting rank has printed them
  size_t n_told;         // of them
  message_list refusals; // of inspect: why a run would refuse the model
  placement experts;
  rank_roles roles;     // in the mixed arm
  uint64_t fingerprint; // of the model: header and weights; 0 until job_check_weights
  model *reference;     // parity.reference, of the arm that the others are measured against; NULL: `m`
  uint64_t reference_fingerprint; // 0 where there is none
  uint64_t input;                 // hash of the tokens of all sequences
  token_sequence *sequences;
  int64_t n_sequences, n_tokens; // of all sequences
  int64_t context;               // positions that the run needs
  int64_t chunk;     // tokens of a prompt at once: run.chunk, or what the arms' backends are quickest with
  int64_t max_batch; // tokens; both fall to what fits once an arm is opened, where run.chunk is 0
} job;

// Collective. job_close releases what there is, after an error too. For inspect a model that a run would
// refuse is opened to be shown; where it is not whole there are no roles and no placement. With needs_input
// false there are no sequences, and the command sets context and max_batch itself.
status job_open(job *out, command_kind command, const config *cfg, comm *c, bool needs_input);
void job_close(job *j);
// Collective. What job_open does with needs_input: reads the input, chooses context and batch, checks the
// output folder and all weights. For a command that needs an input only sometimes.
status job_read_input(job *j);

// Local. Opens the tokenizer, for a command that reads or writes text; job_open does where the input is text.
// *out NULL: the file has none. One that cannot be read is an error.
status job_need_tokenizer(job *j);
// Local. For a command that continues a text: the end tokens, and the tokenizer if there is one; one that
// cannot be read is a warning, and then text is left out.
status job_open_ends(job *j);
// Local. Moves the model's warnings to the job's, and prints those that are new on the reporting rank.
status job_warn(job *j);

// Collective: an error on any rank becomes an error on all.
status job_agree(job *j, status mine, const char *what);

// Local. This is the reporting rank: the first shared rank, which has every result; mostly rank 0.
bool job_is_reporting(const job *j);

// Local. The arm of a rank's experts in an arm of run.arms: that arm itself, unless it is the mixed one.
const arm_choice *job_arm_of_rank(const job *j, const arm_choice *choice, int rank);

// Local, the same on every rank. Equal of two arms where the experts have equal paths, whatever ranks hold
// them and whichever backends compute them.
uint64_t job_expert_paths(const job *j, const arm_choice *choice);

// Collective. Every rank reads the shared tensors and the experts that it holds once: values are checked,
// pages are in memory, and the ranks' hashes add up to j->fingerprint, that of the whole file. job_open does
// it where it reads the input. The same of j->reference.
status job_check_weights(job *j);

// Collective. Opens an arm of run.arms; its caches hold the job's sequences. Lowers chunk and max_batch where
// they are free to fall and the arm's devices lack memory: batches are cut after the last arm has been
// opened.
status job_open_arm(job *j, const arm_choice *choice, arm **out);

// Local. Of the model of the arm that the others are measured against.
uint64_t job_reference_fingerprint(const job *j);

// Local, after an error. A model file that changed during the run causes errors of many kinds, so the change
// replaces them as the reported error.
void job_explain_error(const job *j);

// Collective: the model's files are as they were, and every shared rank's digests of the arm are the same, or
// the law is broken and the error says so.
status job_check_digest(job *j, arm *a);
