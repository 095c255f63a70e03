#define _GNU_SOURCE // getifaddrs, IFF_*
#include "dist/network.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void network_interfaces(char *out, size_t size) {
  struct ifaddrs *list;
  out[0] = 0;
  if (getifaddrs(&list)) return;
  for (const struct ifaddrs *i = list; i; i = i->ifa_next) {
    char address[INET_ADDRSTRLEN], one[96];
    struct sockaddr_in in;
    if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
    if (!(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK) continue;
    memcpy(&in, i->ifa_addr, sizeof in);
    if (!inet_ntop(AF_INET, &in.sin_addr, address, sizeof address)) continue;
    snprintf(one, sizeof one, "%s%.40s %s", out[0] ? ", " : "", i->ifa_name, address);
    if (strlen(out) + strlen(one) < size) strcat(out, one);
  }
  freeifaddrs(list);
}

int network_launcher_tasks(const char **variable) {
  static const char *const NAMES[] = {"SLURM_STEP_NUM_TASKS", "PMI_SIZE"};
  *variable = "";
  if (getenv("OMPI_COMM_WORLD_SIZE")) return 0; // mpirun's own; Slurm's then counts mpirun's daemons
  for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
    const char *text = getenv(NAMES[i]);
    if (!text || atoi(text) < 1) continue;
    *variable = NAMES[i];
    return atoi(text);
  }
  return 0;
}

status network_check_launcher(const comm *c) {
  const char *variable;
  int tasks = network_launcher_tasks(&variable);
  if (comm_size(c) > 1 || tasks <= 1) return 0;
  return REFUSE(
      "%s = %d, but MPI knows one rank: the tasks have not found each other, and each would run the "
      "whole job; start them with srun --mpi=pmix, or with mpirun (launch/run)",
      variable, tasks);
}
