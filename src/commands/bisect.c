#include "src/commands/bisect.h"
#include "src/commands/bisect_product.h"

status bisect_run(job *j) {
  return bisect_product_run(j);
}
