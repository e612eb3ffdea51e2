// The table of sequences alone, where no search along the curves writes it.
#include "table.cuh"

ZETA_KERNEL(rows_kernel, 256) { write_table(a); }
