#include "src/commands/bisect.h"
#include "src/commands/bisect_model.h"
#include "src/commands/bisect_product.h"

status bisect_run(job *j) {
  bool has_a = j->cfg->bisect.a.kind != ARM_NONE, has_b = j->cfg->bisect.b.kind != ARM_NONE;
  if (has_a != has_b)
    return job_agree(
        j, REFUSE("bisect.%s is set: expected bisect.%s as well", has_a ? "a" : "b", has_a ? "b" : "a"),
        "the arms of a bisection");
  return has_a ? bisect_model_run(j) : bisect_product_run(j);
}
