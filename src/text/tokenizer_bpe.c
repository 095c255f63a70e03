// A word is a linked list of symbols, and a heap holds the pairs that may merge. A pair whose symbols have
// meanwhile merged with others stays in the heap; its rank is then no longer that of the symbol at its
// position, and it is passed over.
#include "src/text/tokenizer_bpe.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define NO_RANK UINT32_MAX
#define NO_LINK UINT32_MAX

// A hash table beside base/name_table: its keys are pairs of ids, and it is read in the innermost loop.
typedef struct {
  uint64_t pair; // left id in the high half
  uint32_t rank; // NO_RANK: the slot is empty
  int32_t joined;
} merge;

struct bpe {
  merge *slot;
  size_t mask; // slots - 1; at least half of the slots are empty
};

typedef struct {
  int32_t id, joined; // joined: with the next symbol, where rank is one
  uint32_t rank; // of the pair with the next symbol; NO_RANK: does not merge, or is part of another symbol
  uint32_t previous, next;
} symbol_node;

struct bpe_work {
  symbol_node *node;
  uint64_t *heap; // rank in the high half, position in the low half: a smaller number merges earlier
  size_t capacity, heap_count;
};

status id_list_push(id_list *list, int32_t id) {
  TRY(memory_grow((void **)&list->id, &list->capacity, list->count, sizeof *list->id, "token ids"));
  list->id[list->count++] = id;
  return 0;
}

// ---- merges ----

status bpe_open(bpe **out, size_t merges) {
  size_t slots = 16, wanted;
  *out = NULL;
  if (!size_mul(&wanted, merges, 2) || merges >= NO_RANK) return FAIL("%zu merges are too many", merges);
  while (slots < wanted) slots *= 2;
  TRY(TAKE(out, 1, "merges"));
  (*out)->mask = slots - 1;
  if (TAKE(&(*out)->slot, slots, "merges")) {
    bpe_close(*out);
    *out = NULL;
    return 1;
  }
  for (size_t i = 0; i < slots; i++) (*out)->slot[i].rank = NO_RANK;
  return 0;
}

void bpe_close(bpe *b) {
  if (!b) return;
  free(b->slot);
  free(b);
}

static merge *find_slot(const bpe *b, int32_t left, int32_t right) { // the pair's, or the empty one for it
  uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  size_t i = XXH3_64bits(&pair, sizeof pair) & b->mask;
  while (b->slot[i].rank != NO_RANK && b->slot[i].pair != pair) i = (i + 1) & b->mask;
  return &b->slot[i];
}

void bpe_add(uint32_t *known, bpe *b, int32_t left, int32_t right, int32_t joined, uint32_t rank) {
  merge *slot = find_slot(b, left, right);
  if (slot->rank == NO_RANK) *slot = (merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, joined};
  *known = slot->rank;
}

// ---- one word ----

status bpe_work_open(bpe_work **out) {
  return TAKE(out, 1, "scratch of the tokenizer");
}

void bpe_work_close(bpe_work *w) {
  if (!w) return;
  free(w->node);
  free(w->heap);
  free(w);
}

static status work_reserve(bpe_work *w, size_t count) {
  if (count <= w->capacity) return 0;
  free(w->node);
  free(w->heap);
  w->node = NULL;
  w->heap = NULL;
  w->capacity = 0;
  size_t capacity = count < 64 ? 64 : count + count / 2;
  TRY(TAKE(&w->node, capacity, "symbols of a word"));
  TRY(TAKE(&w->heap, 3 * capacity,
           "pairs of a word")); // a pair for each symbol, and two new ones for each merge
  w->capacity = capacity;
  return 0;
}

static void heap_push(bpe_work *w, uint64_t entry) {
  size_t i = w->heap_count++;
  for (size_t parent; i && w->heap[parent = (i - 1) / 2] > entry; i = parent) w->heap[i] = w->heap[parent];
  w->heap[i] = entry;
}

static uint64_t heap_pop(bpe_work *w) {
  uint64_t top = w->heap[0], last = w->heap[--w->heap_count];
  size_t i = 0, child;
  while ((child = 2 * i + 1) < w->heap_count) {
    if (child + 1 < w->heap_count && w->heap[child + 1] < w->heap[child]) child++;
    if (w->heap[child] >= last) break;
    w->heap[i] = w->heap[child];
    i = child;
  }
  w->heap[i] = last;
  return top;
}

// Looks up the pair that starts at `position` and queues it where it merges.
static void pair_renew(const bpe *b, bpe_work *w, uint32_t position) {
  symbol_node *left = &w->node[position];
  left->rank = NO_RANK;
  if (left->next == NO_LINK) return;
  const merge *found = find_slot(b, left->id, w->node[left->next].id);
  if (found->rank == NO_RANK) return;
  left->rank = found->rank;
  left->joined = found->joined;
  heap_push(w, (uint64_t)left->rank << 32 | position);
}

static void pair_merge(const bpe *b, bpe_work *w, uint32_t position) {
  symbol_node *left = &w->node[position], *right = &w->node[left->next];
  left->id = left->joined;
  left->next = right->next;
  right->rank = NO_RANK; // its queued pair is stale
  if (left->next != NO_LINK) w->node[left->next].previous = position;
  pair_renew(b, w, position);
  if (left->previous != NO_LINK) pair_renew(b, w, left->previous);
}

status bpe_encode(id_list *out, const bpe *b, bpe_work *w, const int32_t *symbol, size_t count) {
  if (!count) return 0;
  if (count > BPE_MAX_WORD)
    return FAIL("a word of %zu bytes is longer than the limit of %d", count, BPE_MAX_WORD);
  TRY(work_reserve(w, count));
  w->heap_count = 0;
  for (uint32_t i = 0; i < count; i++)
    w->node[i] = (symbol_node){symbol[i], -1, NO_RANK, i ? i - 1 : NO_LINK, i + 1 < count ? i + 1 : NO_LINK};
  for (uint32_t i = 0; i + 1 < count; i++) pair_renew(b, w, i);
  while (w->heap_count) {
    uint64_t top = heap_pop(w);
    uint32_t position = (uint32_t)top;
    if (w->node[position].rank == top >> 32) pair_merge(b, w, position);
  }
  for (uint32_t i = 0; i != NO_LINK; i = w->node[i].next) TRY(id_list_push(out, w->node[i].id));
  return 0;
}
