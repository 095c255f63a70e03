// step_products: the products of the steps: which launches make one on a path, and the inputs of part of a
// batch.
//
// Independent of: how a kernel computes a product (products/), the order of the steps.
#include "kernels/cuda/steps.cuh"

bool takes_q8k(const path_info *path, const dev_matrix *m) {
  return product_form(path->kind, m->type) == ACTIVATION_Q8K;
}

static status multiply_q8k(cuda_backend *b, const path_info *path, product_set *set) {
  TRY(product_q8k_launch(set, b->stream));
  return path_splits_outliers(path->kind) ? product_outliers_launch(set, b->stream) : 0;
}

static status multiply_q8_0(cuda_backend *b, const path_info *path, product_set *one) {
  const product *p = &one->p[0];
  bool splits = path_splits_outliers(path->kind) && p->in.outliers;
  TRY(product_q8_0_launch(p, splits, b->stream));
  return splits ? product_outliers_launch(one, b->stream) : 0;
}

static status multiply_one(cuda_backend *b, const path_info *path, product_set *one) {
  switch (product_form(path->kind, one->p[0].w.type)) {
  case ACTIVATION_REAL:
    return product_f32_launch(&one->p[0], b->stream);
  case ACTIVATION_Q8K:
    return multiply_q8k(b, path, one);
  case ACTIVATION_Q8_0:
    return multiply_q8_0(b, path, one);
  }
  __builtin_unreachable();
}

status multiply(cuda_backend *b, const path_info *path, product_set *set) {
  bool all_q8k = true;
  for (int i = 0; i < set->count; i++) all_q8k = all_q8k && takes_q8k(path, &set->p[i].w);
  if (all_q8k) return multiply_q8k(b, path, set);
  for (int i = 0; i < set->count; i++) {
    product_set one = {{set->p[i]}, {0}, 1};
    TRY(multiply_one(b, path, &one));
  }
  return 0;
}

dev_inputs rows_from(dev_inputs in, int64_t first) {
  size_t elements = (size_t)first * (size_t)in.width;
  in.x += elements;
  if (in.outliers) in.outliers += elements / QK_K;
  if (!in.qs) return in;
  in.qs += elements;
  in.d += elements / QK_K;
  in.bsums += elements / 16;
  in.sums32 += elements / 16;
  return in;
}

dev_inputs rounded_for(dev_inputs in, const path_info *path) {
  if (!path_splits_outliers(path->kind)) in.outliers = nullptr;
  return in;
}

product shared_product(float *out, const dev_matrix *m, const dev_inputs *in, int n) {
  product p = {};
  p.w = *m;
  p.in = *in;
  p.n_items = n;
  p.input_divisor = 1;
  p.out = out;
  return p;
}

status product_shared(cuda_backend *b, float *out, const dev_matrix *m, const dev_inputs *in, int n) {
  product_set set = {{shared_product(out, m, in, n)}, {0}, 1};
  return multiply(b, b->shared, &set);
}

dev_batch batch_from(const dev_batch &b, int first, int n) {
  return dev_batch{b.token + first, b.sequence + first, b.position + first, n};
}
