// model_bisection: which steps, layers and experts make the difference between two arms: each is computed as
// in b inside a forward pass of a (hybrid.h), largest first, halved until one is left.
//
// Owns: what a pass is measured by, the order of the search, the conclusion. Independent of: how an arm is
// opened, printing.
// Invariant: every number is that of a pass that was run; a part that was not is not in the table.
#pragma once
#include "src/lab/hybrid.h"

enum { PART_NAME_BYTES = 224 };

typedef struct {  // of a pass's logits to a reference's, over positions
  double kl;      // mean
  double rel_l2;  // mean
  double top1;    // share of positions whose first token agrees
  int64_t flips;  // experts that the pass chose and the reference did not, over layers and positions
  bool same_bits; // every logit is the reference's
} pass_distance;

typedef struct {
  char name[PART_NAME_BYTES]; // "down of expert 3 of layer 1"
  model_part part;
  pass_distance to_a, to_b;
  double gone;    // share of the KL between a and b that goes away: 1 - kl(to_b) / kl(a, b)
  double appears; // what it brings into a: kl(to_a) / kl(b, a)
  double size;    // steps times layers times the share of experts
  bool is_split;  // its parts have been looked at
} model_node;

typedef struct { // one setting of a as in b, all others as in a: a plain arm
  const char *name;
  pass_distance to_a, to_b;
  double gone, appears;
} model_setting;

enum { MODEL_SETTINGS_MOST = 6 };

typedef struct {
  uint64_t digest_a, digest_b; // of their logits
  pass_distance a_b, b_a;      // the reference is the second
  model_node *node;            // [n_nodes], largest `gone` first
  size_t n_nodes;
  model_setting setting[MODEL_SETTINGS_MOST];
  size_t n_settings;
  int64_t n_layers, passes, budget;
  bool budget_spent; // parts were left that might be split further
} model_bisection;

typedef struct model_reference model_reference; // the logits and choices of a and b, on the reporting rank

// Collective. The passes of a and of b; they are kept on the reporting rank, which needs
// 16 bytes * tokens * vocabulary for it.
status model_bisection_start(model_bisection *out, model_reference **kept, hybrid *h, job *j, arm *a, arm *b,
                             int64_t budget);
// Collective. An arm like a, but for one setting that is as in b; costs a pass of the budget.
status model_bisection_setting(model_bisection *m, model_reference *kept, const char *name, job *j,
                               arm *like_a);
// Local. The only setting in which they differ, so that a with it is b; costs no pass.
void model_bisection_only_setting(model_bisection *m, const char *name);
// Collective. Spends what is left of the budget; does nothing where a and b have the same bits.
status model_bisection_search(model_bisection *m, model_reference *kept, hybrid *h);
void model_bisection_close(model_bisection *m, model_reference *kept); // takes NULL

// The conclusion in one sentence, of "a" and "b".
void model_bisection_say(char *text, size_t size, const model_bisection *m);

enum { PRODUCT_TENSOR_BYTES = 64 };

// A tensor whose product is of the step that takes most away, of one layer where such a part was tried, and
// the probe that it reads: for a bisection of that product. False: no step with a product takes any away.
bool model_bisection_product(char tensor[PRODUCT_TENSOR_BYTES], probe_point *reads, const model_bisection *m);
