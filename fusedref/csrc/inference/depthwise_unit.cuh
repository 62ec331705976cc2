// UNIT neighbouring elements of x, which a thread of a depthwise kernel loads at once.
#pragma once

#include "elements.cuh"

struct alignas(UNIT * sizeof(Element)) Unit { Element value[UNIT]; };

// Loads a unit; x may begin anywhere, as a view does.
__device__ __forceinline__ Unit load(const Element* from, bool aligned) {
    if (aligned) return *reinterpret_cast<const Unit*>(from);
    Unit unit;
    #pragma unroll
    for (int e = 0; e < UNIT; e++) unit.value[e] = from[e];
    return unit;
}
