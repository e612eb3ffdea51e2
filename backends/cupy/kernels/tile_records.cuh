// What the pass over keys needs of a query, in one piece: written by the pass over queries, staged by the pass over
// keys.
#pragma once
#include "attention.cuh"

struct alignas(16) QueryRecord {
  Coordinate x[DK];
  int visible;
  float inverse;                        // 1 / Z; 0 for a query that gives no gradients
  float delta;                          // D
  float square;                         // gamma^2
  Coordinate cut_distance;
  int cut_position;
  int2 ranges[CURVES];                  // in entries of the batch item and head
};
