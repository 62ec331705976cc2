// moments.cu: the products of pairs of columns.
//
// A fragment is 8 channels (lane / 4) by 4 rows (lane % 4) of a column: b of one product, half of a of another. A step
// takes the pixels of two neighbouring columns, 2 and 3 of a window of six, and their partners in all six. The two halves of
// a are mostly a pair of columns, which lie in consecutive registers, so hardly a number has to be moved for a product.
#pragma once

#include "moments_tile.cuh"

// The columns in a window of b and of the halves of a (-1: an empty half). If `turned`, a has the pixels and b the partners.
struct Product {
    int b, a[2];
    bool turned;
};

// The products that cover every lag in the row `row` below the pixels, for both pixels.
__host__ __device__ constexpr int products(int row) {
    return KERNEL_WIDTH == 3 ? (row ? 5 : 3) : KERNEL_WIDTH == 2 ? (row ? 4 : 2) : 2;
}
__host__ __device__ constexpr Product product(int row, int i) {
    if (KERNEL_WIDTH == 1) return i == 0 ? Product{2, {2, -1}, false} : Product{3, {3, -1}, false};
    if (i == 0) return {2, {2, 3}, false};
    if (KERNEL_WIDTH == 2) {
        if (row == 0) return {3, {3, 4}, false};
        return i == 1 ? Product{3, {2, 3}, false} : i == 2 ? Product{3, {4, -1}, false} : Product{2, {1, -1}, false};
    }
    if (row == 0) return i == 1 ? Product{4, {2, 3}, true} : Product{3, {3, 5}, false};
    return i == 1 ? Product{3, {2, 3}, false}
        : i == 2  ? Product{2, {0, 1}, false}
        : i == 3  ? Product{4, {2, 3}, true}
                  : Product{3, {1, 5}, false};
}
__host__ __device__ constexpr int first_product(int row) {
    return row == 0 ? 0 : products(0) + (row - 1) * products(1);
}
constexpr int PRODUCTS = first_product(KERNEL_HEIGHT);

// Sums of a warp: the fragments d of the products. The sums of the pixels are in shared memory.
struct Sums { double products[PRODUCTS][4]; };

using Window = double[KERNEL_HEIGHT][3][2];  // rows below the pixels, pairs of columns

// Adds a step's products. The pairs of the window lie in a ring that starts at `first`.
template <int first> __device__ __forceinline__ void add_products(Sums& sums, const Window& window) {
    #pragma unroll
    for (int row = 0; row < KERNEL_HEIGHT; row++)
        #pragma unroll
        for (int i = 0; i < products(row); i++) {
            const Product p = product(row, i);
            const int a_row = p.turned ? 0 : row, b_row = p.turned ? row : 0;
            const auto at = [&](int row, int column) { return window[row][(first + column / 2) % 3][column % 2]; };
            double (&d)[4] = sums.products[first_product(row) + i];
            ptx::mma_m16n8k4_f64(
                d, at(a_row, p.a[0]), p.a[1] < 0 ? 0.0 : at(a_row, p.a[1] < 0 ? 0 : p.a[1]), at(b_row, p.b), d);
        }
}

// The transposed 8 x 8 matrix, of which a lane holds two neighbours in row lane / 4.
__device__ __forceinline__ double2 transposed(double2 two, int lane) {
    const int from = lane % 4 * 8 + lane / 8;  // that has row 2 (lane % 4)
    const double first[2] = {__shfl_sync(~0u, two.x, from), __shfl_sync(~0u, two.y, from)};
    const double second[2] = {__shfl_sync(~0u, two.x, from + 4), __shfl_sync(~0u, two.y, from + 4)};
    return lane / 4 % 2 ? make_double2(first[1], second[1]) : make_double2(first[0], second[0]);
}

// Writes the sums of a warp as a part has them, for the pixels in this column of the windows or in both (-1).
__device__ __forceinline__ void put_sums(const Shared& shared, double* region, const Sums& sums, int column, int lane) {
    #pragma unroll
    for (int lag = 0; lag < LAGS; lag++) {
        const int row = down(lag);
        double2 sum[2] = {};  // of the products as they are, and turned
        #pragma unroll
        for (int i = 0; i < 10; i++) {  // the halves of at most 5 products
            const Product p = i / 2 < products(row) ? product(row, i / 2) : Product{0, {-1, -1}, false};
            const int pixel = p.turned ? p.a[i % 2] : p.b, partner = p.turned ? p.b : p.a[i % 2];
            if (p.a[i % 2] < 0 || partner - pixel != right(lag) || (column >= 0 && column != pixel)) continue;
            sum[p.turned].x += sums.products[first_product(row) + i / 2][i % 2 * 2];
            sum[p.turned].y += sums.products[first_product(row) + i / 2][i % 2 * 2 + 1];
        }
        if (KERNEL_WIDTH == 3 && right(lag) > 0) {
            const double2 turned = transposed(sum[1], lane);
            sum[0].x += turned.x;
            sum[0].y += turned.y;
        }
        *reinterpret_cast<double2*>(region + lag * 64 + lane * 2) = sum[0];
    }
    double pixels = column == 3 ? 0.0 : shared.pixels[0][threadIdx.x];
    if (column != 2) pixels += shared.pixels[1][threadIdx.x];
    pixels += __shfl_xor_sync(~0u, pixels, 1);
    pixels += __shfl_xor_sync(~0u, pixels, 2);
    if (lane % 4 == 0) region[LAGS * 64 + lane / 4] = pixels;
}
