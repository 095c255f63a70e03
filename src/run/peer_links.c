#include "src/run/peer_links.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Beyond comm.deadline, so that the host's own wait, which names who is missing, ends first.
static const double MARGIN_SECONDS = 2;

typedef struct { // of one rank, all-gathered
  int32_t good;
  char why[200]; // where it is not
  peer_handle handle;
} rank_link;

bool peer_links_apply(const comm *c, const backend_ops *ops) {
  int size = comm_size(c);
  return ops->peers_open && size > 1 && size <= MOST_PEERS && comm_is_one_host(c);
}

static void note(rank_link *mine, status result) {
  mine->good = !result;
  if (!result) return;
  snprintf(mine->why, sizeof mine->why, "%s", status_text());
  status_reset(); // the caller goes on without peers
}

// *linked: all ranks have succeeded so far.
static status share(bool *linked, char *why, size_t size, comm *c, rank_link *all, const rank_link *mine) {
  TRY(comm_allgather(c, all, mine, sizeof *mine, "the links between GPUs"));
  *linked = true;
  for (int r = 0; r < comm_size(c) && *linked; r++) {
    *linked = all[r].good;
    if (!*linked) snprintf(why, size, "rank %d: %s", r, all[r].why);
  }
  return 0;
}

static status link_all(bool *linked, char *why, size_t size, comm *c, backend *b, rank_link *all) {
  rank_link mine = {0};
  note(&mine, b->ops->peers_export(b, &mine.handle));
  TRY(share(linked, why, size, c, all, &mine));
  if (!*linked) return 0;
  peer_handle handle[MOST_PEERS];
  for (int r = 0; r < comm_size(c); r++) handle[r] = all[r].handle;
  note(&mine, b->ops->peers_open(b, handle, comm_patience(c) + MARGIN_SECONDS));
  TRY(share(linked, why, size, c, all, &mine));
  if (!*linked) return 0;
  note(&mine, b->ops->peers_try(b));
  return share(linked, why, size, c, all, &mine);
}

status peer_links_open(bool *linked, char *why, size_t size, comm *c, backend *b) {
  rank_link *all;
  *linked = false;
  why[0] = 0;
  TRY(TAKE(&all, (size_t)comm_size(c), "the links between GPUs"));
  status result = link_all(linked, why, size, c, b, all);
  free(all);
  if (!*linked) b->ops->peers_leave(b);
  return result;
}
