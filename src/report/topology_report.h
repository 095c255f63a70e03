// topology_report: what each rank sees of its machine and of the others, and what of it makes a run slow or
// wrong.
//
// Independent of: how it was found out. Pure: the same text on every rank.
#pragma once
#include "base/device.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct { // of one rank, gathered
  char host[96], cores[96], nodes[64], cpu[128], rows[96], interfaces[512];
  int32_t host_cores, threads, devices; // of the host; of the rank; that it can see
  bool is_far;                          // its GPU is on another socket
  device_id device;                     // index -1: none
  int32_t device_node;                  // -1: not known
  uint64_t build, build_cuda;           // hashes of the sources; 0: not built in
  uint64_t model_bytes, model_hash;     // of the file and of its first and last MiB; 0: no model.path
  int32_t model_error;                  // errno
} topology_rank;

typedef struct {
  const topology_rank *ranks; // [n_ranks]
  int n_ranks;
  const uint8_t *links; // [n_ranks][n_ranks] device_link of the GPUs of two ranks of a host
  const char *library, *transport, *reason; // of MPI; that the ranks would take, and why
  const char *model;                        // model.path; "": none
  const char *launcher;                     // variable that says `tasks`; "" where none does
  int tasks;
} topology_report;

void topology_report_print(const topology_report *r, FILE *out);
// Prints what makes a run slow or wrong, a line each; returns how many.
int topology_report_warn(const topology_report *r, FILE *out);
