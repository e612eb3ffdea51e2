// The CUDA kernels as a library for the CPU: each can be launched by name.
#define ZETA_HOST
#include "rows.cu"
#include "encode.cu"
#include "levels.cu"
#include "points.cu"
#include "ranges.cu"
#include "cut.cu"
#include "list.cu"
#include "exact.cu"

#define ZETA_LAUNCH(kernel) \
  if (!std::strcmp(name, #kernel)) return host::launch(kernel, blocks, threads, *arguments), 0;

// 1 if there is no kernel of that name.
extern "C" int launch(const char* name, unsigned blocks, unsigned threads, const Args* arguments) {
  ZETA_LAUNCH(rows_kernel)
  ZETA_LAUNCH(encode_keys_kernel)
  ZETA_LAUNCH(rows_of_sorted_kernel)
  ZETA_LAUNCH(gather_sorted_kernel)
  ZETA_LAUNCH(encode_queries_kernel)
  ZETA_LAUNCH(level_count_kernel)
  ZETA_LAUNCH(level_scan_kernel)
  ZETA_LAUNCH(level_fill_kernel)
  ZETA_LAUNCH(points_kernel)
  ZETA_LAUNCH(ranges_kernel)
  ZETA_LAUNCH(cut_kernel)
  ZETA_LAUNCH(list_kernel)
  ZETA_LAUNCH(exact_kernel)
  return 1;
}

extern "C" unsigned size_of_point() { return sizeof(Point); }
extern "C" unsigned size_of_sequence() { return sizeof(Sequence); }
extern "C" unsigned size_of_args() { return sizeof(Args); }
