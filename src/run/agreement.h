// agreement: before any work, ranks agree that they compute the same: that they were built from the same
// arithmetic, and that every kernel which they will use gives the same bits.
//
// Independent of: the model's weights. Invariant: after an error every rank has it, and one rank tells it:
// the host, what differs, and the digests.
#pragma once
#include "src/run/job.h"

// Collective. Of the builds (kernels/build_hash.h): first of all, since other builds may have other keys.
status agreement_of_builds(comm *c);
// Collective, after the roles are known. Of kernels (kernels/self_check.h), with more than one rank.
status agreement_of_kernels(job *j);
