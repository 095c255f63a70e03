// weight_check: a model's weights before a run: each rank reads those that it holds, and all agree on the
// whole.
//
// Owns: the sum over ranks. Independent of: what is wrong with a weight (model_check_weights).
#pragma once
#include "dist/comm.h"
#include "src/model/model.h"

// Collective. *fingerprint: of the file's header and all tensors, the same on every rank and however experts
// are placed. held: the experts of this rank. Adds a warning to m->warnings of each tensor whose
// bytes are 0. An error where ranks have other shared tensors, or a tensor holds what is no number.
status weight_check(uint64_t *fingerprint, comm *c, model *m, const expert_map *held, int threads);
