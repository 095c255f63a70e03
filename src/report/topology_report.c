#include "src/report/topology_report.h"
#include <inttypes.h>
#include <string.h>

static bool same_host(const topology_rank *a, const topology_rank *b) {
  return !strcmp(a->host, b->host);
}

static bool same_device(const topology_rank *a, const topology_rank *b) {
  return a->device.index >= 0 && b->device.index >= 0 &&
         !memcmp(a->device.uuid, b->device.uuid, sizeof a->device.uuid);
}

// ---- what there is ----

static const char *link_name(const topology_report *r, int a, int b) {
  const topology_rank *x = &r->ranks[a], *y = &r->ranks[b];
  if (!same_host(x, y)) return "network";
  if (x->device.index < 0 || y->device.index < 0) return "shared memory";
  if (same_device(x, y)) return "the same GPU";
  switch ((device_link)r->links[a * r->n_ranks + b]) {
  case DEVICE_LINK_HOST:
    return "host memory";
  case DEVICE_LINK_PEER:
    return "PCIe, GPU to GPU";
  case DEVICE_LINK_ATOMIC:
    return "NVLink";
  }
  return "unknown";
}

// "NVLink to 1-3, network to 4-7": each kind of link once, with the ranks that it leads to.
static void print_links(const topology_report *r, int rank, FILE *out) {
  const char *shown[8];
  int n = 0;
  for (int q = 0; q < r->n_ranks; q++) {
    const char *name = link_name(r, rank, q);
    bool known = q == rank;
    for (int i = 0; i < n; i++) known = known || !strcmp(shown[i], name);
    if (known || n == 8) continue;
    fprintf(out, "%s%s to", n ? ", " : "", name);
    shown[n++] = name;
    for (int a = 0, b; a < r->n_ranks; a = b + 1) {
      for (b = a; b < r->n_ranks && b != rank && !strcmp(link_name(r, rank, b), name);) b++;
      if (b == a) continue;
      fprintf(out, b - a > 1 ? " %d-%d" : " %d", a, b - 1);
    }
  }
  fprintf(out, "%s\n", n ? "" : "none: one rank");
}

static void print_rank(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank];
  fprintf(out, "rank %d  %s, %d threads on cores %s, NUMA nodes %s\n", rank, k->host, k->threads, k->cores,
          k->nodes[0] ? k->nodes : "unknown");
  if (k->device.index >= 0) {
    char node[16] = "unknown";
    if (k->device_node >= 0) snprintf(node, sizeof node, "%d", k->device_node);
    fprintf(out, "  GPU      %d of %d, %s, %s, NUMA node %s\n", k->device.index, k->devices, k->device.name,
            k->device.pci, node);
  }
  fputs("  links    ", out);
  print_links(r, rank, out);
}

static bool is_first_of_host(const topology_report *r, int rank) {
  for (int q = 0; q < rank; q++)
    if (same_host(&r->ranks[q], &r->ranks[rank])) return false;
  return true;
}

static void print_host(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank];
  int ranks = 0;
  for (int q = 0; q < r->n_ranks; q++) ranks += same_host(&r->ranks[q], k);
  fprintf(out, "host %s: %d ranks, %d cores, %s\n  rows     %s\n  network  %s\n  build    %016" PRIx64,
          k->host, ranks, k->host_cores, k->cpu, k->rows,
          k->interfaces[0] ? k->interfaces : "no interface with an address", k->build);
  if (k->build_cuda) fprintf(out, ", cuda %016" PRIx64, k->build_cuda);
  if (k->model_error) fprintf(out, "\n  model    %s", strerror(k->model_error));
  if (k->model_hash)
    fprintf(out, "\n  model    %" PRIu64 " bytes, %016" PRIx64, k->model_bytes, k->model_hash);
  fputc('\n', out);
}

void topology_report_print(const topology_report *r, FILE *out) {
  fprintf(out, "%d ranks, %s, transport %s%s%s\n\n", r->n_ranks, r->library, r->transport,
          r->reason[0] ? ": " : "", r->reason);
  for (int q = 0; q < r->n_ranks; q++)
    if (is_first_of_host(r, q)) print_host(r, q, out);
  fputc('\n', out);
  for (int q = 0; q < r->n_ranks; q++) print_rank(r, q, out);
}

// ---- what makes a run slow or wrong ----

static int warn_of_cores(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank];
  int threads = 0, ranks = 0;
  for (int q = 0; q < r->n_ranks; q++)
    if (same_host(&r->ranks[q], k)) {
      threads += r->ranks[q].threads;
      ranks++;
    }
  if (!is_first_of_host(r, rank) || threads <= k->host_cores) return 0;
  fprintf(out, "  %s: %d threads of %d ranks on %d cores: slow; fewer ranks, or run.threads\n", k->host,
          threads, ranks, k->host_cores);
  return 1;
}

// Ranks that the launcher gave one core each of many, as mpirun does where it is not told to bind nothing.
static int warn_of_binding(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank];
  int threads = 0;
  for (int q = 0; q < r->n_ranks; q++)
    if (same_host(&r->ranks[q], k)) threads += r->ranks[q].threads;
  if (!is_first_of_host(r, rank) || threads > k->host_cores / 2) return 0;
  fprintf(out,
          "  %s: its ranks use %d of %d cores: does the launcher bind them? mpirun --bind-to none, or srun "
          "--cpus-per-task\n",
          k->host, threads, k->host_cores);
  return 1;
}

static int warn_of_devices(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank];
  int n = 0;
  if (k->is_far)
    n += fprintf(out,
                 "  rank %d (%s): its GPU %s is on NUMA node %d, its cores on %s: slow; bind it to the GPU's "
                 "socket\n",
                 rank, k->host, k->device.pci, k->device_node, k->nodes) > 0;
  for (int q = 0; q < rank; q++)
    if (same_device(&r->ranks[q], k)) {
      n += fprintf(out,
                   "  ranks %d and %d (%s): one GPU, %s, for both: slow, and without nccl; as many ranks as "
                   "GPUs\n",
                   q, rank, k->host, k->device.pci) > 0;
      break;
    }
  return n;
}

// The first host with other builds, models or rows than rank 0's.
static int warn_of_differences(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank], *first = &r->ranks[0];
  int n = 0;
  if (!is_first_of_host(r, rank)) return 0;
  if (k->build != first->build || (k->build_cuda && first->build_cuda && k->build_cuda != first->build_cuda))
    n += fprintf(out,
                 "  %s: another build than %s: wrong, and refused by every run; install the same sources\n",
                 k->host, first->host) > 0;
  if (k->model_error)
    n += fprintf(out, "  %s: %s: %s: wrong, and refused\n", k->host, r->model, strerror(k->model_error)) > 0;
  else if (k->model_bytes != first->model_bytes || k->model_hash != first->model_hash)
    n += fprintf(out, "  %s: another model file than %s: wrong, and refused\n", k->host, first->host) > 0;
  if (strcmp(k->rows, first->rows))
    n += fprintf(out,
                 "  %s: ISA rows %s, and %s on %s: the same bits, but one waits for the other; "
                 "experts.placement = \"balanced\"\n",
                 k->host, k->rows, first->rows, first->host) > 0;
  return n;
}

// The next of "eth0 10.0.0.1, docker0 172.17.0.1".
static bool next_interface(char name[48], char address[32], const char **list) {
  int used = 0;
  const char *at = *list + strspn(*list, ", ");
  if (sscanf(at, "%47s %31[0-9.]%n", name, address, &used) != 2) return false;
  *list = at + used;
  return true;
}

static bool has_address(const topology_rank *k, const char *address) {
  char name[48], other[32];
  for (const char *list = k->interfaces; next_interface(name, other, &list);)
    if (!strcmp(other, address)) return true;
  return false;
}

// MPI would try to reach another host at its own address.
static int warn_of_addresses(const topology_report *r, int rank, FILE *out) {
  const topology_rank *k = &r->ranks[rank];
  char name[48], address[32];
  int n = 0;
  if (rank == 0 || same_host(k, &r->ranks[0]) || !is_first_of_host(r, rank)) return 0;
  for (const char *list = k->interfaces; next_interface(name, address, &list);)
    if (has_address(&r->ranks[0], address))
      n += fprintf(out,
                   "  %s: %s has the address %s of %s: a start may hang; name the network with --mca "
                   "btl_tcp_if_include, --mca oob_tcp_if_include\n",
                   k->host, name, address, r->ranks[0].host) > 0;
  return n;
}

static int warn_of_launcher(const topology_report *r, FILE *out) {
  if (!r->launcher[0] || r->tasks <= 1 || r->n_ranks > 1) return 0;
  fprintf(out,
          "  %s = %d, but MPI knows one rank: wrong, and refused: the tasks have not found each other; srun "
          "--mpi=pmix, or launch/run\n",
          r->launcher, r->tasks);
  return 1;
}

int topology_report_warn(const topology_report *r, FILE *out) {
  int n = warn_of_launcher(r, out);
  for (int q = 0; q < r->n_ranks; q++) {
    n += warn_of_cores(r, q, out);
    n += warn_of_binding(r, q, out);
    n += warn_of_devices(r, q, out);
    n += warn_of_differences(r, q, out);
    n += warn_of_addresses(r, q, out);
  }
  return n;
}
