#define _GNU_SOURCE // getifaddrs, IFF_*
#include "dist/network.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
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
