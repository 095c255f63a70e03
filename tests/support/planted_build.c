// planted_build: moe_run as another build of it would be, for tests of hosts that differ. Compiled twice:
//   PLANTED_SOURCES  says that it was built from other sources
//   PLANTED_KERNEL   says nothing, but its SwiGLU is 1.0001 times the right one, on every row
// Linked before the library, whose function of the same name is then not.
#include "kernels/build_hash.h"
#include "kernels/cpu/row.h"
#include "kernels/table.h"
#include <string.h>

#ifdef PLANTED_SOURCES
build_hash build_hash_get(void) {
  return (build_hash){0x0123456789abcdefu, 0};
}
#endif

#ifdef PLANTED_KERNEL
enum { MOST_ROWS = 16 };
static void (*right)(void *gate, const void *up, int64_t n); // portable's: of the same bits as every row's

static void swiglu_scaled(void *gate, const void *up, int64_t n) {
  right(gate, up, n);
  for (int64_t i = 0; i < n; i++) ((float *)gate)[i] *= 1.0001f;
}

const cpu_row *const *cpu_row_table(void) {
  static const cpu_row *const built_in[] = {CPU_ROW_TABLE_ROWS NULL};
  static cpu_row row[MOST_ROWS];
  static real_ops ops[MOST_ROWS];
  static const cpu_row *table[MOST_ROWS + 1];
  for (int i = 0; built_in[i] && i < MOST_ROWS && !table[i]; i++) {
    row[i] = *built_in[i];
    ops[i] = *row[i].f32;
    right = ops[i].swiglu;
    ops[i].swiglu = swiglu_scaled;
    row[i].f32 = &ops[i];
    table[i] = &row[i];
  }
  return table;
}

const cpu_row *cpu_row_find(const char *name) {
  for (const cpu_row *const *r = cpu_row_table(); *r; r++)
    if ((!strcmp(name, "auto") || !strcmp(name, (*r)->name)) && (*r)->usable()) return *r;
  return NULL;
}
#endif
