// arm_struct: what an arm is made of, for arm.c, arm_head.c and arm_results.c alone.
#pragma once
#include "src/run/arm.h"
#include "src/run/batch_fit.h"
#include "src/run/digest_sums.h"
#include "src/run/forward.h"
#include "src/run/probe_given.h"
#include "src/run/probe_rows.h"
#include "src/run/routing_room.h"

struct arm {
  arm_params params;
  forward_state forward;
  transport *transport;
  int64_t vocabulary, n_layers;
  bool keeps_logits;
  const void *logits; // of the last arm_head that copied them to the host
  digest_sums digests;
  double seconds;
  double exchange_seconds_before;
  probe_rows probes;
  uint32_t probes_wanted;
  probe_given given;   // of the next layer
  int64_t n_head_rows; // of the last arm_head
  bool may_have_peers;
  char peers[256]; // arm_peers
};

uint32_t arm_points_of(const arm *a, probe_scope scope); // the probes of this scope that are wanted
