// Sorted places of keys on all curves but the last, where searches are sorted together: those that are sorted by
// themselves find them in their last pass. One thread an item.
#include "items.cuh"

ZETA_KERNEL(places_kernel, 256) {
  const i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  const int items = items_of_search(a), search = int(thread / items), place = int(thread % items);
  if (search >= a.batch * a.kv_heads * (a.num_curves - 1)) return;
  const Order order(a, search);
  const int number = order.number(order.load(place));
  if (number < a.k_len) sorted_places(a, search)[number] = place;
}
