"""Answers to the exercises of the lessons on training: right ones of several forms, and wrong ones with a word each."""

import numpy as np

from lessons.exercises import e11, e12, e13


def changed(source: str, *replacements: tuple[str, str]) -> str:
    """Return the right answer with a bug planted in it. Fail if the place for the bug is missing."""
    for old, new in replacements:
        assert old in source, old
        source = source.replace(old, new)
    return source


def merge_by_sums(count_a, mean_a, squares_a, count_b, mean_b, squares_b):
    """Return the moments from the sums, as a list."""
    count = count_a + count_b
    mean = (count_a * mean_a + count_b * mean_b) / max(count, 1)
    return [count, mean, squares_a + squares_b + count_a * (mean_a - mean) ** 2 + count_b * (mean_b - mean) ** 2]


def merge_either_way(count_a, mean_a, squares_a, count_b, mean_b, squares_b):
    """Return the moments, with the empty sets apart."""
    if not count_a:
        return count_b, mean_b, squares_b
    if not count_b:
        return count_a, mean_a, squares_a
    share = count_b / (count_a + count_b)
    distance = mean_a - mean_b
    return count_a + count_b, mean_a - share * distance, squares_a + squares_b + share * count_a * distance * distance


TREE = (
    e11.GIVEN
    + """
__global__ void statistics(const float* x, float* mean, float* var, int size)
{
    __shared__ Moments all[256];
    all[threadIdx.x] = {0, 0, 0};
    for (int i = threadIdx.x; i < size; i += 256)
        all[threadIdx.x] = merge(all[threadIdx.x], {1, x[blockIdx.x * size + i], 0});
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) all[threadIdx.x] = merge(all[threadIdx.x], all[threadIdx.x + half]);
    }
    if (threadIdx.x) return;
    mean[blockIdx.x] = all[0].mean;
    var[blockIdx.x] = all[0].squares / size;
}
"""
)
SHIFTED = """
__device__ float sum_of_block(float value, float* of_warp)
{
    for (int offset = 1; offset < 32; offset *= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
    __syncthreads();
    of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += of_warp[warp];
    return sum;
}

__global__ void statistics(const float* x, float* mean, float* var, int size)
{
    __shared__ float of_warp[8];
    const float* row = x + blockIdx.x * size;
    const float origin = row[0];
    float sum = 0, squares = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const float distance = row[i] - origin;
        sum += distance;
        squares += distance * distance;
    }
    sum = sum_of_block(sum, of_warp) / size;
    squares = sum_of_block(squares, of_warp) / size;
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = origin + sum;
        var[blockIdx.x] = squares - sum * sum;
    }
}
"""
DOUBLE = """
__global__ void statistics(const float* x, float* mean, float* var, int size)
{
    __shared__ double sums[2][256];
    double sum = 0, squares = 0;
    for (int i = threadIdx.x; i < size; i += 256) {
        const double value = x[blockIdx.x * size + i];
        sum += value;
        squares += value * value;
    }
    sums[0][threadIdx.x] = sum;
    sums[1][threadIdx.x] = squares;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 256; i++) sum += sums[0][i], squares += sums[1][i];
        mean[blockIdx.x] = sum / size;
        var[blockIdx.x] = squares / size - sum / size * (sum / size);
    }
}
"""


def statistics_by_loops(weight, bias, patch_mean, patch_cov):
    """Return the statistics as lists, channel by channel."""
    means, variances = [], []
    for filter_, shift in zip(weight, bias, strict=True):
        means.append(float(filter_ @ patch_mean + shift))
        variances.append(sum(filter_[i] * filter_[j] * patch_cov[i, j] for i, j in np.ndindex(patch_cov.shape)))
    return [means, variances]


def statistics_by_root(weight, bias, patch_mean, patch_cov):
    """Return the statistics by a root of the covariance."""
    values, vectors = np.linalg.eigh(patch_cov)
    return np.dot(weight, patch_mean) + bias, ((weight @ vectors) ** 2 @ values.clip(0))


LAGS_TREE = """
__global__ void lags(const float* x, double* sums, int size)
{
    __shared__ double all[256][3];
    double mine[3] = {0, 0, 0};
    for (int i = threadIdx.x; i < size; i += 256)
        for (int lag = 0; lag < 3; lag++) {
            const double next = i + lag < size ? x[i + lag] : 0.0f;
            mine[lag] += x[i] * next;
        }
    for (int lag = 0; lag < 3; lag++) all[threadIdx.x][lag] = mine[lag];
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            for (int lag = 0; lag < 3; lag++) all[threadIdx.x][lag] += all[threadIdx.x + half][lag];
    }
    if (threadIdx.x == 0)
        for (int lag = 0; lag < 3; lag++) sums[lag] = all[0][lag];
}
"""
LAGS_ALONE = """
__global__ void lags(const float* x, double* sums, int size)
{
    if (threadIdx.x >= 3) return;
    double sum = 0;
    for (int i = threadIdx.x; i < size; i++) sum = fma((double)x[i], (double)x[i - threadIdx.x], sum);
    sums[threadIdx.x] = sum;
}
"""
LAGS_COPIED = """
__global__ void lags(const float* x, double* sums, int size)
{
    __shared__ double row[1024];
    __shared__ double part[3][32];
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) row[i] = i < size ? double(x[i]) : 0.0;
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < 3) {
        double sum = 0.0;
        for (int i = lane; i < 1022; i += 32) sum += row[i] * row[i + warp];
        part[warp][lane] = sum;
        __syncwarp();
        if (lane == 0) {
            for (int other = 1; other < 32; other++) sum += part[warp][other];
            sums[warp] = sum;
        }
    }
}
"""


def through_batch_norm_by_projection(dy, zhat, factor):
    """Return dz by taking out the parts along the ones and along zhat, as a list."""
    ones = np.ones_like(dy)
    kept = dy - ones * (dy @ ones) / (ones @ ones)
    return (factor * (kept - zhat * (kept @ zhat) / len(zhat))).tolist()


def taps_by_outputs(place, size, kernel_size, padding):
    """Return the taps by asking every output, as a set."""
    outputs = range(size + 2 * padding - kernel_size + 1)
    return {tap for output in outputs for tap in range(kernel_size) if output + tap - padding == place}


TRANSPOSED_TILE = """
__global__ void transposed(const float* dy, const float* w, float* dx, int out_size, int kernel_size, int padding)
{
    __shared__ float tile[256 + 8];
    const int first = blockIdx.x * 256 + padding - (kernel_size - 1);
    for (int i = threadIdx.x; i < 256 + kernel_size - 1; i += 256)
        tile[i] = first + i >= 0 && first + i < out_size ? dy[first + i] : 0;
    __syncthreads();
    const int place = blockIdx.x * 256 + threadIdx.x;
    if (place >= out_size + kernel_size - 1 - 2 * padding) return;
    float sum = 0;
    for (int back = 0; back < kernel_size; back++) sum += w[kernel_size - 1 - back] * tile[threadIdx.x + back];
    dx[place] = sum;
}
"""
TRANSPOSED_RANGE = """
__global__ void transposed(const float* dy, const float* w, float* dx, int out_size, int kernel_size, int padding)
{
    const int size = out_size + kernel_size - 1 - 2 * padding;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < size; j += gridDim.x * blockDim.x) {
        double sum = 0;
        for (int r = max(0, j + padding - kernel_size + 1); r <= min(out_size - 1, j + padding); r++)
            sum += (double)dy[r] * w[j + padding - r];
        dx[j] = sum;
    }
}
"""

RIGHT = [
    ("e13.through_batch_norm", through_batch_norm_by_projection),
    ("e13.through_batch_norm", lambda dy, zhat, factor: e13.through_batch_norm.answer(dy, zhat, factor).tolist()),
    ("e13.taps", taps_by_outputs),
    ("e13.taps", lambda *sizes: np.array(e13.taps.answer(*sizes))),
    ("e13.transposed", TRANSPOSED_TILE),
    ("e13.transposed", TRANSPOSED_RANGE),
    (
        "e13.transposed",
        e13.transposed.answer.replace("float sum", "double sum").replace(
            "tap = 0; tap < kernel_size; tap++", "tap = kernel_size - 1; tap >= 0; tap--"
        ),
    ),
    ("e12.statistics", statistics_by_loops),
    ("e12.statistics", statistics_by_root),
    ("e12.lags", LAGS_TREE),
    ("e12.lags", LAGS_ALONE),
    ("e12.lags", LAGS_COPIED),
    ("e11.merge", merge_by_sums),
    ("e11.merge", merge_either_way),
    ("e11.statistics", TREE),
    ("e11.statistics", SHIFTED),
    ("e11.statistics", DOUBLE),
]

MERGE, STATISTICS, LAGS, TRANSPOSED = e11.merge.answer, e11.statistics.answer, e12.lags.answer, e13.transposed.answer

WRONG = [
    ("e11.merge", lambda na, ma, sa, nb, mb, sb: (na + nb, (ma + mb) / 2, sa + sb), "mean is"),
    (
        "e11.merge",
        lambda na, ma, sa, nb, mb, sb: (na + nb, MERGE(na, ma, sa, nb, mb, sb)[1], sa + sb),
        "distance between the two means is missing",
    ),
    ("e11.merge", lambda na, ma, sa, nb, mb, sb: (na + nb, (na * ma + nb * mb) / (na + nb), 0), "squares is"),
    (
        "e11.merge",
        lambda na, ma, sa, nb, mb, sb: (
            na + nb,
            ma + (mb - ma) * nb / (na + nb),
            sa + sb + (mb - ma) ** 2 * na * nb / (na + nb),
        ),
        "ZeroDivisionError",
    ),
    ("e11.merge", lambda na, ma, sa, nb, mb, sb: MERGE(na, ma, sa, nb, mb, sb)[1:], "three numbers"),
    ("e11.statistics", changed(DOUBLE, ("double", "float")), "Two large numbers that nearly cancel"),
    ("e11.statistics", changed(STATISTICS, ("__syncthreads();", "")), "race"),
    ("e11.statistics", changed(STATISTICS, ("mine.squares / mine.count", "mine.squares / (mine.count - 1)")), "biased"),
    ("e11.statistics", changed(STATISTICS, ("mine.squares / mine.count", "mine.squares")), "not yet their mean"),
    ("e11.statistics", changed(STATISTICS, ("warp = 1; warp < 8", "warp = 1; warp < 1")), "warp 0 alone"),
    ("e11.statistics", changed(STATISTICS, ("offset > 0", "offset > 16")), "the lanes 0 alone"),
    ("e11.statistics", changed(STATISTICS, ("    if (count == 0) return a;\n", "")), "251 of the 256 threads"),
    ("e11.statistics", changed(STATISTICS, ("i < size", "i <= size")), "out-of-bounds"),
    (
        "e11.statistics",
        changed(STATISTICS, ("int i = threadIdx.x; i < size; i += blockDim.x", "int i = 0; i < size; i++")),
        "par is 64",
    ),
    (
        "e11.statistics",
        changed(
            TREE,
            (
                "int i = threadIdx.x; i < size; i += 256",
                "int i = threadIdx.x * 12; i < size && i < threadIdx.x * 12 + 12; i++",
            ),
        ),
        "sectors",
    ),
    (
        "e11.statistics",
        changed(
            SHIFTED,
            (
                "const float origin = row[0];",
                "float origin = 0; for (int i = 0; i < size; i++) origin += row[i] / size;",
            ),
        ),
        "par is",
    ),
    ("e12.statistics", lambda w, b, m, c: (w @ m, ((w @ c) * w).sum(1)), "bias is missing"),
    ("e12.statistics", lambda w, b, m, c: (w @ m + b, ((w @ c) * w).sum(1) + b), "has no variance"),
    ("e12.statistics", lambda w, b, m, c: (w @ m + b, w**2 @ np.diag(c)), "nothing to do with each other"),
    ("e12.statistics", lambda w, b, m, c: (w @ m + b, w @ c @ w.T), "one a channel"),
    ("e12.statistics", lambda w, b, m, c: w @ m + b, "two arrays"),
    ("e12.lags", changed(LAGS, ("(double)x[i]", "x[i]")), "rounded to float32"),
    (
        "e12.lags",
        changed(LAGS, ("double sum = 0;\n        for (int i", "float sum = 0;\n        for (int i")),
        "rounded to float32",
    ),
    ("e12.lags", changed(LAGS, ("__syncthreads();", "")), "race"),
    ("e12.lags", changed(LAGS, ("i + lag < size", "i < size")), "out-of-bounds"),
    ("e12.lags", changed(LAGS, ("x[i + lag]", "x[i]")), "lag places further on"),
    (
        "e12.lags",
        changed(LAGS, ("i + lag < size", "i < size"), ("x[i + lag]", "x[(i + lag) % size]")),
        "at the beginning",
    ),
    ("e12.lags", changed(LAGS, ("threadIdx.x < 3)", "threadIdx.x < 2)")), "never written"),
    (
        "e12.lags",
        """
__global__ void lags(const float* x, double* sums, int size)
{
    if (threadIdx.x < 3) sums[threadIdx.x] = 0;
    __syncthreads();
    for (int lag = 0; lag < 3; lag++)
        for (int i = threadIdx.x; i + lag < size; i += 256) atomicAdd(&sums[lag], (double)x[i] * x[i + lag]);
}
""",
        "order of the threads",
    ),
    ("e13.through_batch_norm", lambda dy, zhat, f: f * dy, "dz[0] is"),
    ("e13.through_batch_norm", lambda dy, zhat, f: f * (dy - zhat * (dy * zhat).mean()), "the mean zero"),
    ("e13.through_batch_norm", lambda dy, zhat, f: f * (dy - dy.mean()), "no part along zhat"),
    ("e13.through_batch_norm", lambda dy, zhat, f: f * (dy - dy.sum() - zhat * (dy * zhat).sum()), "sums where means"),
    ("e13.through_batch_norm", lambda dy, zhat, f: dy - dy.mean() - zhat * (dy * zhat).mean(), "factor in front"),
    ("e13.through_batch_norm", lambda dy, zhat, f: (dy * zhat).mean(), "as dy has"),
    ("e13.taps", lambda place, size, k, padding: list(range(k)), "Place 0 of 8, 3 taps, padding 0"),
    ("e13.taps", lambda place, size, k, padding: [t for t in range(k) if place - t >= 0], "Place 6 of 8"),
    ("e13.taps", lambda place, size, k, padding: [t for t in range(k) if 0 <= place - t < size - k + 1], "padding 1"),
    ("e13.taps", lambda place, size, k, padding: [t for t in range(k) if 0 <= place + t - padding < size], "padding 0"),
    ("e13.taps", lambda place, size, k, padding: 3, "list of taps"),
    (
        "e13.transposed",
        changed(TRANSPOSED, ("place + padding - tap", "place - (kernel_size - 1) + padding + tap")),
        "turned round",
    ),
    ("e13.transposed", changed(TRANSPOSED, ("output >= 0 && ", "")), "out-of-bounds"),
    ("e13.transposed", changed(TRANSPOSED, (" && output < out_size", "")), "out-of-bounds"),
    ("e13.transposed", changed(TRANSPOSED, ("if (place >= size) return;", "")), "out-of-bounds"),
    ("e13.transposed", changed(TRANSPOSED, ("place + padding - tap", "place - tap")), "padding 1: "),
    ("e13.transposed", changed(TRANSPOSED, ("tap = 0; tap", "tap = 1; tap")), "numbers are wrong"),
    (
        "e13.transposed",
        """
__global__ void transposed(const float* dy, const float* w, float* dx, int out_size, int kernel_size, int padding)
{
    const int output = blockIdx.x * blockDim.x + threadIdx.x, size = out_size + kernel_size - 1 - 2 * padding;
    if (output >= out_size) return;
    for (int tap = 0; tap < kernel_size; tap++) {
        const int place = output + tap - padding;
        if (place >= 0 && place < size) atomicAdd(&dx[place], w[tap] * dy[output]);
    }
}
""",
        "order of the threads",
    ),
]
