// bisect_product: one product in every way at hand, on the reporting rank. For bisect.c alone.
#pragma once
#include "src/run/job.h"

status bisect_product_run(job *j); // collective
