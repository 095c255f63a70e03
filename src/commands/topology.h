// topology: what each rank sees, and what of it makes a run slow or wrong.
#pragma once
#include "src/config/config.h"
#include "dist/comm.h"

status topology_run(const config *cfg, comm *c); // collective; works where a job would be refused
