// The warnings of topology: each from both sides, and the ranks and hosts that they name.
#include "src/report/topology_report.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// after those that it needs
#include <cmocka.h>

enum { RANKS = 4 };

typedef struct {
  topology_rank rank[RANKS];
  uint8_t links[RANKS * RANKS];
  topology_report report;
  char *text;
  size_t size;
  int warnings;
} machine;

// Two hosts of two ranks, each with a GPU and four of the host's eight cores: nothing to warn of.
static void good(machine *m) {
  memset(m, 0, sizeof *m);
  for (int r = 0; r < RANKS; r++) {
    topology_rank *k = &m->rank[r];
    snprintf(k->host, sizeof k->host, "node%d", r / 2);
    snprintf(k->cores, sizeof k->cores, "%d-%d", r % 2 * 4, r % 2 * 4 + 3);
    strcpy(k->nodes, "0");
    strcpy(k->rows, "avx2, portable");
    snprintf(k->interfaces, sizeof k->interfaces, "eth0 10.0.0.%d", r / 2 + 1);
    k->host_cores = 8;
    k->threads = 4;
    k->device.index = r % 2;
    k->device.uuid[0] = (uint8_t)r;
    snprintf(k->device.pci, sizeof k->device.pci, "0000:%02x:00.0", r);
    k->build = 1;
    k->model_bytes = k->model_hash = 7;
  }
  m->report = (topology_report){.ranks = m->rank,
                                .n_ranks = RANKS,
                                .links = m->links,
                                .library = "MPI",
                                .transport = "nccl",
                                .reason = "",
                                .model = "m.gguf",
                                .launcher = ""};
}

static void warn(machine *m) {
  free(m->text);
  FILE *f = open_memstream(&m->text, &m->size);
  m->warnings = topology_report_warn(&m->report, f);
  fclose(f);
}

static void expect(machine *m, int warnings, const char *text) {
  warn(m);
  if (m->warnings != warnings || !strstr(m->text, text))
    fail_msg("expected %d warnings with \"%s\", found %d: %s", warnings, text, m->warnings, m->text);
  free(m->text);
  m->text = NULL;
}

static void each_warning(void **state) {
  machine m;
  (void)state;
  good(&m);
  expect(&m, 0, "");
  m.rank[3].threads = 5;
  expect(&m, 1, "node1: 9 threads of 2 ranks on 8 cores");
  good(&m);
  m.rank[0].threads = m.rank[1].threads = 1;
  expect(&m, 1, "node0: its ranks use 2 of 8 cores: does the launcher bind them?");
  good(&m);
  m.rank[2].is_far = true;
  m.rank[2].device_node = 1;
  expect(&m, 1, "rank 2 (node1): its GPU 0000:02:00.0 is on NUMA node 1, its cores on 0");
  good(&m);
  m.rank[1].device = m.rank[0].device;
  expect(&m, 1, "ranks 0 and 1 (node0): one GPU, 0000:00:00.0, for both");
  good(&m);
  m.rank[2].build = m.rank[3].build = 2;
  expect(&m, 1, "node1: another build than node0");
  good(&m);
  m.rank[2].build_cuda = 5; // a host without CUDA may share its job
  expect(&m, 0, "");
  m.rank[0].build_cuda = 6;
  expect(&m, 1, "node1: another build");
  good(&m);
  m.rank[2].model_hash = 8;
  expect(&m, 1, "node1: another model file than node0");
  m.rank[2].model_error = ENOENT;
  expect(&m, 1, "node1: m.gguf: No such file");
  good(&m);
  strcpy(m.rank[2].rows, "portable");
  expect(&m, 1, "node1: ISA rows portable, and avx2, portable on node0");
  good(&m);
  strcpy(m.rank[0].interfaces, "eth0 10.0.0.1, docker0 172.17.0.1");
  strcpy(m.rank[2].interfaces, "eth0 10.0.0.2, docker0 172.17.0.1");
  expect(&m, 1, "node1: docker0 has the address 172.17.0.1 of node0");
  good(&m);
  m.report.n_ranks = 1;
  m.rank[0].threads = 8;
  m.report.launcher = "PMI_SIZE";
  m.report.tasks = 1;
  expect(&m, 0, "");
  m.report.tasks = 4;
  expect(&m, 1, "PMI_SIZE = 4, but MPI knows one rank");
}

static void links_are_told(void **state) {
  machine m;
  char *text;
  size_t size;
  (void)state;
  good(&m);
  m.links[0 * RANKS + 1] = m.links[1 * RANKS + 0] = DEVICE_LINK_ATOMIC;
  m.links[2 * RANKS + 3] = DEVICE_LINK_PEER;
  FILE *f = open_memstream(&text, &size);
  topology_report_print(&m.report, f);
  fclose(f);
  assert_non_null(strstr(text, "NVLink to 1, network to 2-3\n"));
  assert_non_null(strstr(text, "network to 0-1, PCIe, GPU to GPU to 3\n"));
  free(text);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(each_warning), cmocka_unit_test(links_are_told)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
