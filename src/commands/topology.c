#include "src/commands/topology.h"
#include "base/memory.h"
#include "dist/launched.h"
#include "dist/network.h"
#include "dist/topology.h"
#include "dist/transport.h"
#include "kernels/backend.h"
#include "kernels/build_hash.h"
#include "src/report/topology_report.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { END_BYTES = 1 << 20 }; // of the model's file, at its start and at its end

typedef struct {
  const config *cfg;
  comm *c;
  topology *place;
  transport *t;
  topology_rank mine, *all;
  uint8_t *mine_links, *links; // [ranks]; [ranks][ranks]
} overview;

// ---- what this rank sees: local ----

static const backend_ops *device_backend(void) {
  for (const backend_ops *const *b = backend_table(); *b; b++)
    if ((*b)->device) return *b;
  return NULL;
}

static void see_device(overview *o) {
  const backend_ops *b = device_backend();
  o->mine.device.index = -1;
  if (!b || !b->device(&o->mine.device, comm_host_rank(o->c))) return;
  o->mine.devices = b->devices ? b->devices() : 0;
}

// A pipe without a writer is not waited for, nor is a device read.
static int open_regular(struct stat *s, const char *path) {
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return -1;
  if (!fstat(file, s) && S_ISREG(s->st_mode)) return file;
  int error = S_ISDIR(s->st_mode) ? EISDIR : EINVAL;
  close(file);
  errno = error;
  return -1;
}

// Its size, and a hash of its ends: reading a large model would take minutes.
static int see_file(topology_rank *mine, const char *path) {
  struct stat s = {.st_mode = 0};
  char *bytes = malloc(2 * END_BYTES);
  int file = open_regular(&s, path), error = 0;
  if (!bytes || file < 0) {
    error = errno;
  } else {
    ssize_t head = pread(file, bytes, END_BYTES, 0);
    off_t from = s.st_size > END_BYTES ? s.st_size - END_BYTES : 0;
    ssize_t tail = head < 0 ? -1 : pread(file, bytes + head, END_BYTES, from);
    if (tail < 0)
      error = errno;
    else
      mine->model_hash = XXH3_64bits(bytes, (size_t)(head + tail));
    mine->model_bytes = (uint64_t)s.st_size;
  }
  if (file >= 0) close(file);
  free(bytes);
  return error;
}

static void see(overview *o) {
  topology_rank *m = &o->mine;
  const char *path = o->cfg->model.path;
  build_hash build = build_hash_get();
  snprintf(m->host, sizeof m->host, "%.95s", comm_host(o->c));
  snprintf(m->cores, sizeof m->cores, "%.95s", topology_cores(o->place));
  snprintf(m->nodes, sizeof m->nodes, "%.63s", topology_nodes(o->place));
  snprintf(m->cpu, sizeof m->cpu, "%.127s", topology_cpu(o->place));
  snprintf(m->rows, sizeof m->rows, "%.95s", backend_get(BACKEND_CPU)->rows());
  network_interfaces(m->interfaces, sizeof m->interfaces);
  m->host_cores = topology_host_cores(o->place);
  m->threads = topology_threads(o->place);
  m->is_far = topology_device_is_far(o->place);
  m->device_node = topology_device_node(o->place);
  m->build = build.common;
  m->build_cuda = build.cuda;
  if (path && path[0]) m->model_error = see_file(m, path);
}

static void see_links(overview *o) {
  const backend_ops *b = device_backend();
  for (int q = 0; q < comm_size(o->c); q++) {
    const topology_rank *other = &o->all[q];
    bool here = b && b->link && other->device.index >= 0 && o->mine.device.index >= 0 &&
                !strcmp(other->host, o->mine.host) && other->device.index != o->mine.device.index;
    if (here) o->mine_links[q] = (uint8_t)b->link(o->mine.device.index, other->device.index);
  }
}

// ---- all ranks ----

static status gather(overview *o) {
  size_t size = (size_t)comm_size(o->c);
  status mine = TAKE(&o->all, size, "what the ranks see");
  if (!mine) mine = TAKE(&o->links, size * size, "what the ranks see");
  if (!mine) mine = TAKE(&o->mine_links, size, "what the ranks see");
  TRY(comm_agree(o->c, mine, "what the ranks see"));
  TRY(comm_allgather(o->c, o->all, &o->mine, sizeof o->mine, "the gathering of what ranks see"));
  see_links(o);
  return comm_allgather(o->c, o->links, o->mine_links, size, "the gathering of links");
}

static status print(const overview *o) {
  const char *variable, *path = o->cfg->model.path;
  int tasks = launched_tasks(&variable);
  const topology_report r = {.ranks = o->all,
                             .n_ranks = comm_size(o->c),
                             .links = o->links,
                             .library = comm_library(o->c),
                             .transport = transport_name(o->t),
                             .reason = transport_reason(o->t),
                             .model = path ? path : "",
                             .launcher = variable,
                             .tasks = tasks};
  if (comm_rank(o->c)) return 0;
  topology_report_print(&r, stdout);
  printf("\nWarnings\n");
  if (!topology_report_warn(&r, stdout)) printf("  none\n");
  return fflush(stdout) ? FAIL("standard output: what the ranks see could not be written: %m") : 0;
}

status topology_run(const config *cfg, comm *c) {
  overview o = {.cfg = cfg, .c = c};
  status result;
  see_device(&o);
  TRY_DONE(result, topology_open(&o.place, c, cfg->run.threads, cfg->run.bind, &o.mine.device));
  TRY_DONE(result, transport_choose(&o.t, c, cfg->comm.transport, &o.mine.device, o.mine.device.index >= 0));
  see(&o);
  TRY_DONE(result, gather(&o));
  result = comm_agree(c, print(&o), "writing what the ranks see");
done:
  transport_close(o.t);
  topology_close(o.place);
  free(o.all);
  free(o.links);
  free(o.mine_links);
  return result;
}
