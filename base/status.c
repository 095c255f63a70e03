#include "base/status.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char text[2048];

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void status_fail(const char *file, int line, const char *format, ...) {
  pthread_mutex_lock(&lock);
  if (!text[0]) {
    int n = snprintf(text, sizeof text, "%s:%d: ", base_name(file), line);
    va_list args;
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
  }
  pthread_mutex_unlock(&lock);
}

void status_within(const char *format, ...) {
  char where[128];
  va_list args;
  va_start(args, format);
  vsnprintf(where, sizeof where, format, args);
  va_end(args);
  pthread_mutex_lock(&lock);
  char *said = strstr(text, ": "); // after file and line
  if (said) {
    char rest[sizeof text];
    snprintf(rest, sizeof rest, "%s", said + 2);
    snprintf(said, sizeof text - (size_t)(said - text), ": %s: %s", where, rest);
  }
  pthread_mutex_unlock(&lock);
}

const char *status_text(void) {
  return text;
}

void status_reset(void) {
  pthread_mutex_lock(&lock);
  text[0] = 0;
  pthread_mutex_unlock(&lock);
}
