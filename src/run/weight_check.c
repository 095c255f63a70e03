#include "src/run/weight_check.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <stdlib.h>

// Every rank counts in the shared tensors and in the experts that it holds, of replicas only the
// first holder.
static status gather_zeros(comm *c, model *m, const zero_bytes *mine) {
  size_t n = gguf_tensor_count(m->file);
  zero_bytes *all = NULL, *sum = NULL;
  status result = TAKE(&all, n * (size_t)comm_size(c), "zeros in tensors");
  if (!result) result = TAKE(&sum, n, "zeros in tensors");
  result = comm_agree(c, result, "zeros in tensors");
  if (!result) result = comm_allgather(c, all, mine, n * sizeof *mine, "the gathering of zeros in tensors");
  for (size_t i = 0; i < n && !result; i++) {
    int64_t layer;
    bool experts = model_is_expert_stack(&layer, m, gguf_tensor_at(m->file, i));
    for (int r = 0; r < (experts ? comm_size(c) : 1); r++) {
      zero_bytes found = all[(size_t)r * n + i];
      if (found.bytes && (!sum[i].bytes || found.first < sum[i].first)) sum[i].first = found.first;
      sum[i].bytes += found.bytes;
    }
  }
  if (!result) result = model_warn_of_zeros(m, sum);
  free(all);
  free(sum);
  return result;
}

status weight_check(uint64_t *fingerprint, comm *c, model *m, const expert_map *held, int threads) {
  uint64_t shared, owned, *all;
  zero_bytes *zeros = NULL;
  status mine = TAKE(&zeros, gguf_tensor_count(m->file), "zeros in tensors");
  if (!mine) mine = model_check_weights(m, held, comm_rank(c), threads, &shared, &owned, zeros);
  mine = comm_agree(c, mine, "the check of the weights");
  if (!mine) mine = gather_zeros(c, m, zeros);
  free(zeros);
  TRY(mine);
  TRY(comm_equal(c, &shared, sizeof shared, "the model's shared tensors"));
  TRY(TAKE(&all, (size_t)comm_size(c), "the fingerprint"));
  status result = comm_allgather(c, all, &owned, sizeof owned, "the sum of the fingerprint");
  *fingerprint = num_mix64(gguf_header_hash(m->file)) + shared;
  for (int r = 0; r < comm_size(c); r++) *fingerprint += all[r];
  free(all);
  return result;
}
