// How the kernels of general_forward.cu and general_backward.cu divide a tensor z [batch, channels, plane pixels], and how
// a block sums over its threads. Sizes are arguments, so a compiled kernel serves every shape. The macros are
//   ELEMENT VECTOR   the types, see elements.cuh: of z, y, dy and dz, and of the parameters
//   CHANNELS_LAST    1: z is [batch, pixel, channel] in memory, 0: [batch, channel, pixel]
//   UNIT             neighbouring numbers that a thread loads at once; divides plane, with channels last channels
//   LANES            with channels last: neighbouring units of a row that a block reads, a power of two; else 1
//
// Launch: block (THREADS), grid (channels / BLOCK_CHANNELS rounded up, slices). A block serves BLOCK_CHANNELS channels in
// one slice of the pixels of all images. parts[slice][channel] has the sums of a slice, which the next kernel adds in the
// same order in every run.
#pragma once

#include "elements.cuh"

constexpr int THREADS = 256;
constexpr int AHEAD = UNIT <= 4 ? 4 : 2;         // units that a thread has in flight
constexpr int OWN = CHANNELS_LAST ? UNIT : 1;    // channels of a thread
constexpr int BLOCK_CHANNELS = OWN * LANES;      // channels of a block
constexpr int RESIDENT = CHANNELS_LAST ? 2 : 4;  // blocks of a multiprocessor: more would spill registers
static_assert((LANES & (LANES - 1)) == 0 && BLOCK_CHANNELS <= THREADS, "total() halves them");

struct alignas(UNIT * sizeof(Element)) Unit { Element value[UNIT]; };

__device__ __forceinline__ Unit load(const Element* from) { return *reinterpret_cast<const Unit*>(from); }
__device__ __forceinline__ void store(Element* to, const Unit& unit) { *reinterpret_cast<Unit*>(to) = unit; }

// The units of this thread in slice `which`: number start, start + STEP, ... below count, from the slice's first on.
struct Units {
    static constexpr unsigned STEP = THREADS / LANES;
    int channels, channel;  // of z; the thread's first
    unsigned start, count;
    long long row;           // channels last: the slice's first pixel, counted over all images
    int image, plane_units;  // else: the image of the slice's first unit, and the units of a plane
    unsigned place;          //   and the place of the slice's first unit in its plane

    __device__ __forceinline__ Units(long long batch, int channels, int plane, unsigned which) : channels(channels) {
        channel = int(blockIdx.x) * BLOCK_CHANNELS + int(threadIdx.x) % LANES * OWN;
        start = threadIdx.x / LANES;
        plane_units = CHANNELS_LAST ? plane : plane / UNIT;
        const long long units = batch * plane_units, slice = (units + gridDim.y - 1) / gridDim.y;
        row = slice * which;
        count = unsigned(max(0LL, min(slice, units - row)));
        image = int(row / plane_units);
        place = unsigned(row % plane_units);
        if (channel >= channels) count = 0;
    }
    // Where a unit begins in the tensor.
    __device__ __forceinline__ long long offset(unsigned unit) const {
        if (CHANNELS_LAST) return (row + unit) * channels + channel;
        const unsigned here = place + unit;
        const long long plane = ((long long)image + here / plane_units) * channels + channel;
        return (plane * plane_units + here % plane_units) * UNIT;
    }
};

// Returns the sums of `value` over the threads whose numbers leave the same remainder when divided by DISTANCE (a power of
// two), to the first DISTANCE threads. The order of the additions is fixed.
template <int DISTANCE>
__device__ __forceinline__ double2 total(double2 value) {
    __shared__ double2 sums[THREADS];
    #pragma unroll
    for (int step = 16; step >= DISTANCE; step /= 2) {
        value.x += __shfl_down_sync(~0u, value.x, step);
        value.y += __shfl_down_sync(~0u, value.y, step);
    }
    __syncthreads();  // the sums of the call before have been read
    sums[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < DISTANCE) {
        constexpr int STEP = DISTANCE < 32 ? 32 : DISTANCE;
        #pragma unroll
        for (int other = STEP; other < THREADS; other += STEP) {
            value.x += sums[threadIdx.x + other].x;
            value.y += sums[threadIdx.x + other].y;
        }
    }
    return value;
}

// Writes the block's sums of each of its channels to its slice of parts.
__device__ __forceinline__ void put_parts(
    double2* parts, const Units& units, const double (&first)[OWN], const double (&second)[OWN]) {
    #pragma unroll
    for (int own = 0; own < OWN; own++) {
        const double2 sum = total<LANES>(make_double2(first[own], second[own]));
        if (threadIdx.x < LANES && units.channel < units.channels)
            parts[(long long)blockIdx.y * units.channels + units.channel + own] = sum;
    }
}

// Returns the sums over all slices of channel blockIdx.x * BLOCK_CHANNELS + threadIdx.x, to the first BLOCK_CHANNELS threads.
__device__ __forceinline__ double2 sum_parts(const double2* parts, int channels) {
    const int channel = int(blockIdx.x) * BLOCK_CHANNELS + int(threadIdx.x) % BLOCK_CHANNELS;
    double2 sum = make_double2(0.0, 0.0);
    if (channel < channels)
        for (unsigned slice = threadIdx.x / BLOCK_CHANNELS; slice < gridDim.y; slice += THREADS / BLOCK_CHANNELS) {
            const double2 part = parts[(long long)slice * channels + channel];
            sum.x += part.x;
            sum.y += part.y;
        }
    return total<BLOCK_CHANNELS>(sum);
}

// A vector's element as float64; `otherwise` where the vector is null.
__device__ __forceinline__ double element(const Vector* vector, int channel, double otherwise) {
    return vector ? double(float(vector[channel])) : otherwise;
}
