// transport_kind: the transports by name, built in or not.
#pragma once

typedef enum {
  TRANSPORT_AUTO, // to choose: see transport_choose
  TRANSPORT_SELF,
  TRANSPORT_MPI,
  TRANSPORT_NCCL,
} transport_kind;

enum { TRANSPORT_COUNT = TRANSPORT_NCCL + 1 };

static inline const char *transport_kind_name(transport_kind kind) {
  switch (kind) {
  case TRANSPORT_AUTO:
    return "auto";
  case TRANSPORT_SELF:
    return "self";
  case TRANSPORT_MPI:
    return "mpi";
  case TRANSPORT_NCCL:
    return "nccl";
  }
  __builtin_unreachable();
}
