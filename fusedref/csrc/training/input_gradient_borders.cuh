// Which taps of the filter connect a pixel of x with an output that exists. Inside x all do; near its border fewer do.
// Kinds of column have the same taps. input_gradient.cu takes rows in pairs, so there are kinds of pairs of rows.
#pragma once

// Places 0 to SIZE - 1, of which BEFORE at the beginning and AFTER at the end are each a kind of its own.
template <int SIZE, int BEFORE, int AFTER>
struct Kinds {
    static constexpr int COUNT = SIZE < BEFORE + AFTER + 1 ? SIZE : BEFORE + AFTER + 1;
    static constexpr int BEFORE_COUNT = BEFORE, AFTER_COUNT = AFTER;
    static constexpr int INNER = BEFORE;  // the kind of the places between; COUNT if there are none
    static_assert(BEFORE >= 0 && AFTER >= 0, "the padding is smaller than the kernel");
    static __device__ __forceinline__ int of(int place) {
        return place <= BEFORE ? place : max(BEFORE, place - (SIZE - COUNT));
    }
    // A place of this kind.
    static __device__ __forceinline__ int example(int kind) { return kind <= BEFORE ? kind : kind + SIZE - COUNT; }
};

constexpr int ABOVE = KERNEL_HEIGHT - 1 - PAD_TOP, BELOW = HEIGHT + PAD_TOP - OUT_HEIGHT;  // rows near the border
using PairKinds = Kinds<(HEIGHT + 1) / 2, (ABOVE + 1) / 2, BELOW == 0 ? 0 : (HEIGHT + 1) / 2 - (HEIGHT - BELOW) / 2>;
using ColumnKinds = Kinds<WIDTH, KERNEL_WIDTH - 1 - PAD_LEFT, WIDTH + PAD_LEFT - OUT_WIDTH>;

// The first and the last tap that a pixel at `place` has in one direction.
template <int KERNEL, int PAD, int OUT>
struct Taps {
    int first, last;
    __device__ __forceinline__ explicit Taps(int place)
        : first(max(0, place + PAD - OUT + 1)), last(min(KERNEL - 1, place + PAD)) {}
    __device__ __forceinline__ bool has(int tap) const { return first <= tap && tap <= last; }
};
using RowTaps = Taps<KERNEL_HEIGHT, PAD_TOP, OUT_HEIGHT>;
using ColumnTaps = Taps<KERNEL_WIDTH, PAD_LEFT, OUT_WIDTH>;

// The windows of a pair of pixels, one below the other, are WINDOW_ROWS x WINDOW_COLUMNS pixels of x together.
// A step multiplies two pixels of the window, one below the other, by 8 channels each.
constexpr int WINDOW_ROWS = 2 * KERNEL_HEIGHT, WINDOW_COLUMNS = 2 * KERNEL_WIDTH - 1;
constexpr int STEPS = WINDOW_ROWS / 2 * WINDOW_COLUMNS;
