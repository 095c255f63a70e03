// arm_choice: an arm as a user names it, parsed once.
//
// Independent of: which backends this build has, except in arm_choice_resolve.
#pragma once
#include "kernels/backend.h"
#include <stdbool.h>
#include <stddef.h>

enum { ARM_NAME_BYTES = 24 };

typedef enum {
  ARM_NONE,
  ARM_PLAIN, // "q8k@cpu"
  ARM_AUTO,  // "q8k@auto", in ranks.arm and screen.arms: cuda on a rank with a GPU to itself, else cpu
  ARM_MIXED, // "ranks": each rank's experts as ranks.arm says
} arm_kind;

typedef struct {
  arm_kind kind;
  path_kind path;       // of ARM_PLAIN and ARM_AUTO
  backend_kind backend; // of ARM_PLAIN
  char name[ARM_NAME_BYTES];
} arm_choice;

typedef enum { ARM_NAME_GOOD, ARM_NAME_WITHOUT_AT, ARM_NAME_BAD_PATH, ARM_NAME_BAD_BACKEND } arm_name_check;

arm_choice arm_choice_of(path_kind path, backend_kind where);
// Any kind of arm; *out is set only where the name is good. `text` need not end with NUL.
arm_name_check arm_choice_parse(arm_choice *out, const char *text, size_t length);

bool arm_is_truth(const arm_choice *a);                          // what others are measured against: f64
bool arm_may_need(const arm_choice *a, backend_kind what);       // on some rank; for ARM_MIXED ask ranks.arm
bool arm_choice_equal(const arm_choice *a, const arm_choice *b); // one name

// For ARM_PLAIN. The error names what this build lacks.
status arm_choice_resolve(arm_spec *out, const arm_choice *a);
