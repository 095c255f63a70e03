#include "kernels/cpu/row.h"
#include "kernels/table.h"
#include <string.h>

const cpu_row *const *cpu_row_table(void) {
  static const cpu_row *const table[] = {CPU_ROW_TABLE_ROWS NULL};
  return table;
}

const cpu_row *cpu_row_find(const char *name) {
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if ((!strcmp(name, "auto") || !strcmp(name, (*row)->name)) && (*row)->usable()) return *row;
  return NULL;
}
