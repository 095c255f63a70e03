#include "dist/topology.h"
#include "base/memory.h"
#include <hwloc.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CORES_TEXT = 224 };

typedef struct { // of one rank, all-gathered
  char host[96];
  char cores[CORES_TEXT]; // the cores that the launcher allows, as a list
  char near[CORES_TEXT];  // those of them at its device's socket; "": no device, or its socket is not known
} rank_place;

struct topology {
  hwloc_topology_t hw;
  int threads, host_cores, hosts, device_node;
  bool bound;
  int *core_of_thread; // [threads], logical index of a core; only when bound
  char text[CORES_TEXT + 16];
  char nodes[64];
  bool device_is_far;
  char cpu[128];
};

// "0-3,8" of a set of cores' logical indices
static void cores_text(char *out, size_t size, const int *cores, int n) {
  out[0] = 0;
  for (int i = 0; i < n;) {
    int j = i;
    while (j + 1 < n && cores[j + 1] == cores[j] + 1) j++;
    size_t used = strlen(out);
    if (j > i)
      snprintf(out + used, size - used, "%s%d-%d", used ? "," : "", cores[i], cores[j]);
    else
      snprintf(out + used, size - used, "%s%d", used ? "," : "", cores[i]);
    i = j + 1;
  }
}

static hwloc_obj_t core_at(const topology *t, int index) {
  hwloc_obj_t core = hwloc_get_obj_by_type(t->hw, HWLOC_OBJ_CORE, (unsigned)index);
  return core ? core : hwloc_get_obj_by_type(t->hw, HWLOC_OBJ_PU, (unsigned)index);
}

static int count_cores(const topology *t) {
  int n = hwloc_get_nbobjs_by_type(t->hw, HWLOC_OBJ_CORE);
  if (n <= 0) n = hwloc_get_nbobjs_by_type(t->hw, HWLOC_OBJ_PU); // some virtual machines show no cores
  return n > 0 ? n : 1;
}

// The CPUs of the device's socket, or NULL: a virtual machine may not say where its devices are.
static hwloc_const_cpuset_t device_cpus(topology *t, const device_id *device) {
  t->device_node = -1;
  hwloc_obj_t at = device && device->index >= 0 ? hwloc_get_pcidev_by_busidstring(t->hw, device->pci) : NULL;
  at = at ? hwloc_get_non_io_ancestor_obj(t->hw, at) : NULL;
  if (!at || !at->cpuset || !at->nodeset || hwloc_bitmap_iszero(at->cpuset)) return NULL;
  bool whole = hwloc_bitmap_isequal(at->cpuset, hwloc_get_root_obj(t->hw)->cpuset);
  if (whole && hwloc_get_nbobjs_by_type(t->hw, HWLOC_OBJ_NUMANODE) > 1) return NULL; // it says nothing
  if (hwloc_bitmap_weight(at->nodeset) == 1) t->device_node = hwloc_bitmap_first(at->nodeset);
  return at->cpuset;
}

// Those of the n cores that are in `cpus`; NULL: none.
static int cores_within(const topology *t, int *out, const int *cores, int n, hwloc_const_cpuset_t cpus) {
  int count = 0;
  for (int i = 0; i < n && cpus; i++)
    if (hwloc_bitmap_intersects(core_at(t, cores[i])->cpuset, cpus)) out[count++] = cores[i];
  return count;
}

// Cores that this process may use, in ascending order.
static int allowed_cores(const topology *t, int *cores) {
  hwloc_cpuset_t set = hwloc_bitmap_alloc();
  int n = 0;
  if (hwloc_get_cpubind(t->hw, set, HWLOC_CPUBIND_PROCESS) || hwloc_bitmap_iszero(set))
    hwloc_bitmap_fill(set);
  for (int i = 0; i < t->host_cores; i++)
    if (core_at(t, i) && hwloc_bitmap_intersects(core_at(t, i)->cpuset, set)) cores[n++] = i;
  hwloc_bitmap_free(set);
  return n;
}

static void read_cpu_name(topology *t) {
  hwloc_obj_t package = hwloc_get_obj_by_type(t->hw, HWLOC_OBJ_PACKAGE, 0);
  const char *name = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
  snprintf(t->cpu, sizeof t->cpu, "%s", name ? name : "unknown");
}

static bool same_cores(const rank_place *a, const rank_place *b) {
  return !strcmp(a->host, b->host) && !strcmp(a->cores, b->cores);
}

// Ranks with the same host and cores as this one share them: how many they are, and this one's index among
// them. near: only those whose devices are at the same socket.
static void count_sharers(const rank_place *all, int size, int rank, bool near, int *sharers, int *place) {
  *sharers = *place = 0;
  for (int r = 0; r < size; r++) {
    if (!same_cores(&all[r], &all[rank]) || (near && strcmp(all[r].near, all[rank].near))) continue;
    *sharers += 1;
    *place += r < rank;
  }
}

// Where only some of the ranks that share cores moved to their devices' sockets, they would overlap with
// those that did not: all move, or none.
static bool all_have_devices(const rank_place *all, int size, int rank) {
  for (int r = 0; r < size; r++)
    if (same_cores(&all[r], &all[rank]) && !all[r].near[0]) return false;
  return true;
}

static int count_hosts(const rank_place *all, int size) {
  int hosts = 0;
  for (int r = 0; r < size; r++) {
    bool first = true;
    for (int q = 0; q < r; q++) first = first && strcmp(all[q].host, all[r].host);
    hosts += first;
  }
  return hosts;
}

// Divides the n allowed cores among the ranks that share them, in contiguous ranges.
static status place_threads(topology *t, const int *cores, int n, int sharers, int place, int64_t wanted,
                            bool bind) {
  int first = (int)((int64_t)n * place / sharers), share = (int)((int64_t)n * (place + 1) / sharers) - first;
  t->threads = wanted ? (int)wanted : share > 0 ? share : 1;
  t->bound = bind && n >= sharers && share >= t->threads;
  if (!t->bound) {
    memcpy(t->text, "any of ", 8);
    cores_text(t->text + 7, sizeof t->text - 7, cores, n);
    return 0;
  }
  TRY(TAKE(&t->core_of_thread, (size_t)t->threads, "threads' cores"));
  memcpy(t->core_of_thread, cores + first, (size_t)t->threads * sizeof *cores);
  cores_text(t->text, sizeof t->text, t->core_of_thread, t->threads);
  return 0;
}

// NUMA nodes of the cores that this rank uses, after place_threads; `cores` may be used where none is bound.
static void find_nodes(topology *t, const int *cores, int n) {
  hwloc_nodeset_t set = hwloc_bitmap_alloc();
  int nodes[256] = {0}, count = 0;
  unsigned node;
  if (!set) return;
  for (int i = 0; i < (t->bound ? t->threads : n); i++) {
    hwloc_obj_t core = core_at(t, t->bound ? t->core_of_thread[i] : cores[i]);
    if (core && core->nodeset) hwloc_bitmap_or(set, set, core->nodeset);
  }
  hwloc_bitmap_foreach_begin(node, set) if (count < 256) nodes[count++] = (int)node;
  hwloc_bitmap_foreach_end();
  cores_text(t->nodes, sizeof t->nodes, nodes, count);
  t->device_is_far = t->device_node >= 0 && count && !hwloc_bitmap_isset(set, (unsigned)t->device_node);
  hwloc_bitmap_free(set);
}

static status topology_place(topology *t, comm *c, int64_t threads, bool bind, const device_id *device) {
  int *cores, *near, n, n_near, sharers, place, rank = comm_rank(c), size = comm_size(c);
  rank_place mine = {0}, *all;
  TRY(TAKE(&cores, 2 * (size_t)t->host_cores, "cores"));
  near = cores + t->host_cores;
  status result = TAKE(&all, (size_t)size, "ranks' places");
  n = allowed_cores(t, cores);
  n_near = cores_within(t, near, cores, n, device_cpus(t, device));
  snprintf(mine.host, sizeof mine.host, "%s", comm_host(c));
  cores_text(mine.cores, sizeof mine.cores, cores, n);
  cores_text(mine.near, sizeof mine.near, near, n_near);
  if (!result) result = comm_allgather(c, all, &mine, sizeof mine, "the exchange of ranks' cores");
  if (!result) {
    bool moves = all_have_devices(all, size, rank);
    t->hosts = count_hosts(all, size);
    count_sharers(all, size, rank, moves, &sharers, &place);
    result = place_threads(t, moves ? near : cores, moves ? n_near : n, sharers, place, threads, bind);
    if (!result) find_nodes(t, moves ? near : cores, moves ? n_near : n);
  }
  free(cores);
  free(all);
  return result;
}

status topology_open(topology **out, comm *c, int64_t threads, bool bind, const device_id *device) {
  *out = NULL;
  topology *t;
  TRY(memory_take((void **)&t, 1, sizeof *t, "the topology"));
  if (hwloc_topology_init(&t->hw)) {
    free(t);
    return FAIL("hwloc could not be initialised");
  }
  // devices are looked for only where one is used: reading the buses takes time
  if (device && device->index >= 0)
    hwloc_topology_set_io_types_filter(t->hw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  if (hwloc_topology_load(t->hw)) {
    topology_close(t);
    return FAIL("hwloc could not read this host's topology");
  }
  t->host_cores = count_cores(t);
  read_cpu_name(t);
  if (topology_place(t, c, threads, bind, device)) {
    topology_close(t);
    return 1;
  }
  *out = t;
  return 0;
}

void topology_close(topology *t) {
  if (!t) return;
  hwloc_topology_destroy(t->hw);
  free(t->core_of_thread);
  free(t);
}

int topology_threads(const topology *t) {
  return t->threads;
}

const char *topology_cores(const topology *t) {
  return t->text;
}

const char *topology_cpu(const topology *t) {
  return t->cpu;
}

int topology_host_cores(const topology *t) {
  return t->host_cores;
}

int topology_device_node(const topology *t) {
  return t->device_node;
}

const char *topology_nodes(const topology *t) {
  return t->nodes;
}

bool topology_device_is_far(const topology *t) {
  return t->device_is_far;
}

int topology_hosts(const topology *t) {
  return t->hosts;
}

void topology_bind_threads(const topology *t) {
  if (!t->bound) return;
#pragma omp parallel num_threads(t->threads)
  {
    // where it is refused (a container without the permission), only speed is lost
    hwloc_set_cpubind(t->hw, core_at(t, t->core_of_thread[omp_get_thread_num()])->cpuset,
                      HWLOC_CPUBIND_THREAD);
  }
}
