// moments.cu: its constants, shared memory and the products that both kinds of warps compute.
#pragma once

#include "moments_layout.cuh"
#include "ptx.cuh"

__host__ __device__ constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

constexpr int INTERIOR_WARPS = 8, BORDER_WARPS = 4;
constexpr int THREADS = (INTERIOR_WARPS + BORDER_WARPS) * 32;

constexpr int WINDOW_ROWS = GROUP + KERNEL_HEIGHT - 1;
constexpr int MARGIN = KERNEL_WIDTH > 1 ? 2 : 0;                // columns that a window has to both sides of the pixels
constexpr bool OPEN_COLUMNS = LEFT < MARGIN || RIGHT < MARGIN;  // whether those can lie outside x

// Whether both numbers of a pair of columns can be loaded at once, if x starts at a multiple of their size.
constexpr bool EVEN = WIDTH % 2 == 0 && LEFT % 2 == 0;
struct alignas(2 * sizeof(Element)) Two { Element left, right; };
__device__ __forceinline__ bool has_pairs(const Element* x) {
    return EVEN && reinterpret_cast<uintptr_t>(x) % sizeof(Two) == 0;
}
__device__ __forceinline__ float2 both(const Element* from) {
    const Two two = *reinterpret_cast<const Two*>(from);
    return make_float2(float(two.left), float(two.right));
}

// Bytes of a row of a unit in shared memory, with what lies before it in its first 16 bytes; of a channel, which starts
// 4 banks after the one before it; of all.
constexpr int SIZE = sizeof(Element);
constexpr int ROW_BYTES = round_up(least(2 * UNIT_PAIRS + 2 * MARGIN, WIDTH) * SIZE + 16 - SIZE, 16);
constexpr int CHANNEL_BYTES = round_up(WINDOW_ROWS * ROW_BYTES, 128) + 16;
constexpr int STAGE_BYTES = IN_CHANNELS * CHANNEL_BYTES;

struct Shared {
    union {
        alignas(128) unsigned char stage[STAGES * STAGE_BYTES];
        double interior[INTERIOR_WARPS][SUMS];  // after the last unit
    };
    double border[BORDER_WARPS][SUMS];
    double pixels[2]
                 [THREADS];  // sums of the numbers that a lane had as pixels, in the first and second columns of pairs
    uint64_t full[STAGES], empty[STAGES];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the plan computes another size");
