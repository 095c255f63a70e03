// The kernels of the row avx512_vnni as they are, under other names.
#define product_q8k_avx512 law_product_ordered
#include "kernels/cpu/isa/avx512/avx512_q8k.h"
#include "tests/support/law_kernels.h"

const law_kernels law_ordered = {vector_q8k_avx512, product_q8k_avx512};
