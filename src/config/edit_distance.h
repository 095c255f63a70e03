// edit_distance: how far a name that is unknown is from one that is known.
#pragma once

// Edits of Damerau and Levenshtein: insert, delete, replace, swap of neighbours (no place is edited twice).
int edit_distance(const char *a, const char *b);
