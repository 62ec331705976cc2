// 11 batch_statistics: the mean and the biased variance of every channel of a tensor, by one reduction.
//
// In training mode BatchNorm normalises with the statistics of the batch itself. They depend on every number of a
// channel, so here, for the first time, threads must put their results together: 2 million numbers become two.
//
// New since 10: a reduction. A thread merges its numbers one by one (Welford), the lanes of a warp merge by shuffles, the
// warps of a block through shared memory (Chan), and the blocks of a channel in a second launch. The order of every merge
// is fixed by indices, never by who comes first: the same bits on every run. The variance is the mean square of the
// distances to the mean. mean(x * x) - mean(x)^2 is the same in real numbers, and wrong in float32 where the mean is large.
//
// Byte ledger at problem 73: reads 520.2 MB (z once), writes 64 x 8 bytes; the parts between the launches are 12 KB.
//
// Launch of batch_statistics: block (256), grid (channels, slices), 1 <= slices <= batch. A slice is every slices-th image.
// Launch of merge_statistics: block (32), grid (channels).

constexpr unsigned EVERY_LANE = 0xffffffff;
constexpr int WARPS = 8;  // of a block of batch_statistics

// Of some numbers: how many, their mean, and the sum of their squared distances to that mean.
struct Moments { float count, mean, squares; };

// Add one number (Welford, 1962): the mean moves towards it by its share.
__device__ void include(Moments& moments, float value) {
    const float distance = value - moments.mean;
    moments.count += 1;
    moments.mean += distance / moments.count;
    moments.squares += distance * (value - moments.mean);
}

// Return the moments of two sets of numbers together (Chan, Golub and LeVeque, 1979).
__device__ Moments merge(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0) return a;  // 0 / 0 would be NaN
    const float distance = b.mean - a.mean;
    const float share = b.count / count;
    return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
}

// Merge the moments of the 32 lanes, in five steps; lane 0 returns those of all.
__device__ Moments merge_lanes(Moments mine) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const Moments other = {
            __shfl_down_sync(EVERY_LANE, mine.count, offset), __shfl_down_sync(EVERY_LANE, mine.mean, offset),
            __shfl_down_sync(EVERY_LANE, mine.squares, offset)};
        mine = merge(mine, other);
    }
    return mine;
}

extern "C" __global__ void batch_statistics(
    const float* z,  // [batch, channels, plane]   plane = height * width
    float* parts,    // [channels, slices, 3]      count, mean, squares
    int batch, int channels, int plane) {
    const int channel = blockIdx.x, slice = blockIdx.y, slices = gridDim.y;

    Moments mine = {0, 0, 0};
    for (int image = slice; image < batch; image += slices) {
        const float* numbers = z + ((long long)image * channels + channel) * plane;
        for (int pixel = threadIdx.x; pixel < plane; pixel += blockDim.x) include(mine, numbers[pixel]);
    }
    mine = merge_lanes(mine);

    __shared__ Moments of_warp[WARPS];
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < WARPS; warp++) mine = merge(mine, of_warp[warp]);
        float* part = parts + (channel * slices + slice) * 3;
        part[0] = mine.count;
        part[1] = mine.mean;
        part[2] = mine.squares;
    }
}

// Return, in lane 0 of a warp, the moments of a channel: lane l merges the parts l, l + 32, ...
__device__ Moments merge_parts(const float* parts, int slices) {
    Moments mine = {0, 0, 0};
    for (int slice = threadIdx.x; slice < slices; slice += 32) {
        const float* part = parts + slice * 3;
        mine = merge(mine, {part[0], part[1], part[2]});
    }
    return merge_lanes(mine);
}

extern "C" __global__ void merge_statistics(
    const float* parts,  // [channels, slices, 3]
    float* mean,         // [channels]
    float* var,          // [channels]   biased: divided by the count, as BatchNorm normalises
    int slices) {
    const int channel = blockIdx.x;
    const Moments all = merge_parts(parts + channel * slices * 3, slices);
    if (threadIdx.x == 0) {
        mean[channel] = all.mean;
        var[channel] = all.squares / all.count;
    }
}
