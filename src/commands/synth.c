#include "src/commands/synth.h"
#include "base/clock.h"
#include "dist/topology.h"
#include "src/commands/synth_options.h"
#include "src/synth/synth_write.h"
#include <errno.h>
#include <string.h>

static const double deadline_seconds = 3600; // ranks wait for each other's disks

static status open_layout(synth_layout *l, synth_options *o, int n_args, char **args) {
  TRY(synth_options_parse(o, n_args, args));
  return synth_layout_open(l, &o->model);
}

static status print_written(const synth_layout *l, const char *path, double seconds) {
  char types[160];
  double bytes = (double)l->file_bytes;
  synth_layout_types(types, sizeof types, l);
  printf("%s: %zu tensors (%s), %.2f GB in %.1f s, %.2f GB/s\n", path, l->n_tensors, types, bytes * 1e-9,
         seconds, bytes * 1e-9 / seconds);
  return fflush(stdout) ? FAIL("standard output: could not be written: %s", strerror(errno)) : 0;
}

status synth_run(comm *c, int n_args, char **args) {
  synth_options options;
  synth_layout layout = {.n_tensors = 0};
  topology *place = NULL;
  double start = clock_seconds();
  comm_set_deadline(c, deadline_seconds);
  status result;
  TRY_DONE(result, comm_agree(c, open_layout(&layout, &options, n_args, args), "the arguments of synth"));
  TRY_DONE(result, topology_open(&place, c, options.threads, true, NULL));
  topology_bind_threads(place);
  TRY_DONE(result, synth_write(c, options.out, &layout, topology_threads(place)));
  bool prints = comm_rank(c) == 0;
  result = comm_agree(c, prints ? print_written(&layout, options.out, clock_seconds() - start) : 0, "synth");
done:
  topology_close(place);
  synth_layout_close(&layout);
  return result;
}

void synth_print_options(FILE *out) {
  synth_options_print(out);
}
