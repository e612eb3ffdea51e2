// What the pass over keys needs of a query beyond its slot: written by the pass over queries, in the order of slots.
#pragma once
#include "attention.cuh"

struct alignas(16) QueryTail {
  float inverse;                        // 1 / Z; 0 for a query that gives no gradients
  float delta;                          // D
  float square;                         // gamma^2
  float padding;
};
