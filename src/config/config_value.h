// config_value: reads a value of each kind from TOML, refuses it by name, and writes it back. For config.c
// alone.
//
// Owns: bounds, the names of choices, and the texts of refusals.
// Independent of: which keys there are. Invariant: a refused value leaves the field as it was.
#pragma once
#include "base/status.h"
#include "src/config/config_toml.h"
#include "src/config/config_types.h"
#include <stdio.h>

enum { VALUE_SHOWN = 48, VALUE_PLACE_BYTES = 512 }; // bytes of a user's text in an error; of a place

typedef struct { // where a value comes from, for errors: a file or a --set; the other is NULL
  const char *file;
  const char *set;
} value_origin;

typedef struct value_key value_key;
struct value_key {
  const char *name;
  unsigned groups; // key_groups, one or more
  size_t offset;   // of the field in config
  status (*read)(void *field, const value_key *k, const toml_value *v, const value_origin *from);
  void (*write)(FILE *out, const void *field); // as TOML
  const char *type;                            // what is expected, as a user reads it
  double low, high;                            // of numbers
  const char *initial;                         // TOML; NULL: stays unset
  const char *help;
};

// *out: the head of a text without control characters, at most VALUE_SHOWN bytes, then "..." where it is
// longer.
void value_shorten(char *out, size_t size, const char *text, size_t length);
// "FILE:LINE" or "--set KEY=VALUE".
void value_place(char out[VALUE_PLACE_BYTES], const value_origin *from, int line);

// The error of a value that the key does not take; `expected` differs from k->type for an element of a list.
status value_refuse(const value_key *k, const toml_value *v, const value_origin *from, const char *expected);
// A list of int32 from 0 up, in fresh memory.
status value_read_ids(int32_t **out, size_t *count, const value_key *k, const toml_value *list,
                      const value_origin *from);
void value_write_ids(FILE *out, const int32_t *ids, size_t count);

// The error of a name that is no probe's; `name` as value_shorten leaves it.
status value_refuse_probe(const value_key *k, const toml_value *v, const value_origin *from,
                          const char *name);

// A new NUL-terminated copy of a string value in *out.
status value_copy_string(char **out, const value_key *k, const toml_value *v, const value_origin *from,
                         bool may_be_empty);
void value_write_string(FILE *out, const char *text); // as TOML; NULL: ""

status value_read_integer(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_real(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_flag(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_text(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_text_or_empty(void *field, const value_key *k, const toml_value *v,
                                const value_origin *from);
status value_read_transport(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_kv(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_arms(void *field, const value_key *k, const toml_value *v, const value_origin *from);
// One "path@backend" or "path@auto"; names of arms as a list of strings.
status value_read_auto_arm(arm_choice *out, const value_key *k, const toml_value *v,
                           const value_origin *from);
void value_write_arm_names(FILE *out, const arm_choice *arm, size_t count);
// "path@auto" as well, each arm once.
status value_read_auto_arms(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_ranks(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_rank_arms(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_arm_or_empty(void *field, const value_key *k, const toml_value *v,
                               const value_origin *from);
status value_read_any_arm_or_empty(void *field, const value_key *k, const toml_value *v,
                                   const value_origin *from); // "ranks" as well
status value_read_placement(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_replicas(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_attention(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_tokens(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_prompts(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_prompt(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_input_file(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_sizes(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_probes(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_layer_probes(void *field, const value_key *k, const toml_value *v,
                               const value_origin *from);
status value_read_modes(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_bounds(void *field, const value_key *k, const toml_value *v, const value_origin *from);
// Takes the section `trace`.
status value_read_layers(void *field, const value_key *k, const toml_value *v, const value_origin *from);
// The error of a name that no probe has; names the nearest.
status value_refuse_probe(const value_key *k, const toml_value *v, const value_origin *from,
                          const char *name);
status value_read_activations(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_kv_choice(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_format(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_output(void *field, const value_key *k, const toml_value *v, const value_origin *from);
status value_read_stop(void *field, const value_key *k, const toml_value *v, const value_origin *from);

void value_write_integer(FILE *out, const void *field);
void value_write_real(FILE *out, const void *field);
void value_write_flag(FILE *out, const void *field);
void value_write_text(FILE *out, const void *field);
void value_write_transport(FILE *out, const void *field);
void value_write_kv(FILE *out, const void *field);
void value_write_arms(FILE *out, const void *field);
void value_write_rank_arms(FILE *out, const void *field);
void value_write_ranks(FILE *out, const void *field);
void value_write_arm(FILE *out, const void *field);
void value_write_placement(FILE *out, const void *field);
void value_write_replicas(FILE *out, const void *field);
void value_write_attention(FILE *out, const void *field);
void value_write_tokens(FILE *out, const void *field);
void value_write_prompt(FILE *out, const void *field);
void value_write_prompts(FILE *out, const void *field);
void value_write_input_file(FILE *out, const void *field);
void value_write_sizes(FILE *out, const void *field);
void value_write_probes(FILE *out, const void *field);
void value_write_modes(FILE *out, const void *field);
void value_write_bounds(FILE *out, const void *field);
void value_write_layers(FILE *out, const void *field);
void value_write_kv_choice(FILE *out, const void *field);
void value_write_format(FILE *out, const void *field);
void value_write_output(FILE *out, const void *field);
void value_write_stop(FILE *out, const void *field);

void value_clear_stop(void *field);  // releases what a config_stop owns and empties it
void value_clear_input(void *field); // releases what a config_input owns and makes it INPUT_NONE
