#include "src/config/arm_choice.h"
#include <stdio.h>
#include <string.h>

static const char MIXED[] = "ranks", AUTO[] = "auto";

static bool is_word(const char *text, size_t length, const char *word) {
  return length == strlen(word) && !memcmp(text, word, length);
}

arm_choice arm_choice_of(path_kind path, backend_kind where) {
  arm_choice a = {.kind = ARM_PLAIN, .path = path, .backend = where};
  snprintf(a.name, sizeof a.name, "%s@%s", path_get(path)->name, backend_name(where));
  return a;
}

static arm_name_check parse_backend(arm_choice *out, path_kind path, const char *text, size_t length) {
  if (is_word(text, length, AUTO)) {
    *out = (arm_choice){.kind = ARM_AUTO, .path = path};
    snprintf(out->name, sizeof out->name, "%s@%s", path_get(path)->name, AUTO);
    return ARM_NAME_GOOD;
  }
  for (int b = 0; b < BACKEND_COUNT; b++)
    if (is_word(text, length, backend_name((backend_kind)b))) {
      *out = arm_choice_of(path, (backend_kind)b);
      return ARM_NAME_GOOD;
    }
  return ARM_NAME_BAD_BACKEND;
}

arm_name_check arm_choice_parse(arm_choice *out, const char *text, size_t length) {
  if (is_word(text, length, MIXED)) {
    *out = (arm_choice){.kind = ARM_MIXED};
    memcpy(out->name, MIXED, sizeof MIXED);
    return ARM_NAME_GOOD;
  }
  const char *at = memchr(text, '@', length);
  if (!at) return ARM_NAME_WITHOUT_AT;
  const path_info *path = path_find(text, (size_t)(at - text));
  if (!path) return ARM_NAME_BAD_PATH;
  return parse_backend(out, path->kind, at + 1, length - (size_t)(at + 1 - text));
}

bool arm_is_truth(const arm_choice *a) {
  return a->kind == ARM_PLAIN && a->path == PATH_F64;
}

bool arm_may_need(const arm_choice *a, backend_kind what) {
  switch (a->kind) {
  case ARM_NONE:
  case ARM_MIXED:
    return false;
  case ARM_AUTO:
    return true;
  case ARM_PLAIN:
    return a->backend == what;
  }
  __builtin_unreachable();
}

bool arm_choice_equal(const arm_choice *a, const arm_choice *b) {
  return !strcmp(a->name, b->name);
}

status arm_choice_resolve(arm_spec *out, const arm_choice *a) {
  switch (a->kind) {
  case ARM_PLAIN:
    return arm_spec_get(out, a->path, a->backend);
  case ARM_NONE:
  case ARM_AUTO:
  case ARM_MIXED:
    return REFUSE("arm \"%s\": expected path@backend", a->name);
  }
  __builtin_unreachable();
}
