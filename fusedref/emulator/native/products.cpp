// wgmma: a warp starts a product, commits it to a group and waits for groups. The product is computed when the warp waits
// for it, from the operands that its lanes gave. Until then its accumulators keep their old values.
#include "runtime.h"

#include <string.h>

namespace emu {

struct Offer {  // a lane's part of a wgmma
    void* operands;
    uint32_t bytes;
    Matrix a, b;
    float* sums;
    uint32_t sum_count;
    WarpAction run;
    void* pc;
};

// Each lane's share of the rows of 16 bytes that a product reads.
template <class F>
static void rows_of(const Matrix& a, const Matrix& b, uint32_t lane, F f) {
    for (int which = 0; which < 2; which++) {
        const Matrix& matrix = which == 0 ? a : b;
        for (uint32_t row = lane; row < matrix.rows; row += 32)
            for (int half = 0; half < 2; half++) f(matrix.begin + row * 16 + half * matrix.next);
    }
}

static void start(void* const payload[32], uint32_t, const void*) {
    Worker* w = self;
    const Offer* first = (const Offer*)payload[0];
    Product* product = (Product*)allocate(sizeof(Product) + 32 * first->bytes);
    const uint32_t warp = w->current->linear / 32;
    *product = Product{0,        first->run, w->product_group[warp], first->bytes, first->a,
                       first->b, {},         first->sum_count,       first->pc};
    for (int lane = 0; lane < 32; lane++) {
        const Offer* offer = (const Offer*)payload[lane];
        product->sums[lane] = offer->sums;
        memcpy(product->operands + lane * first->bytes, offer->operands, first->bytes);
    }
    Product** last = &w->products[warp];
    while (*last) last = &(*last)->next;
    *last = product;
}

static void close_group(void* const*, uint32_t, const void*) { self->product_group[self->current->linear / 32]++; }

static void compute(void* const payload[32], uint32_t, const void*) {
    Worker* w = self;
    const uint32_t warp = w->current->linear / 32, groups_left = *(const uint32_t*)payload[0];
    while (Product* product = w->products[warp]) {
        if (product->group + groups_left >= w->product_group[warp]) return;
        void* operands[32];
        for (int lane = 0; lane < 32; lane++) operands[lane] = product->operands + lane * product->bytes;
        product->run(operands, 0xffffffffu, 0);
        for (uint32_t lane = 0; watching && lane < 32; lane++)
            rows_of(product->a, product->b, lane, [&](const char* row) {
                watch_product_done(w, row, 16, 32 * warp + lane);
            });
        w->products[warp] = product->next;
        release(product);
    }
}

void forget_products(Worker* w) {
    for (int warp = 0; warp < 32; warp++) {
        while (Product* product = w->products[warp]) {
            w->products[warp] = product->next;
            release(product);
        }
        w->product_group[warp] = 0;
    }
}

}  // namespace emu

using namespace emu;

void emu_product(void* operands, uint32_t bytes, Matrix a, Matrix b, float* sums, uint32_t sum_count, WarpAction run) {
    void* pc = __builtin_return_address(0);
    rows_of(a, b, emu_lane(), [&](const char* row) {
        if ((uintptr_t)row % 16) fail(MISALIGNED, (uint64_t)row, 16, 0, pc, 0);
        slow_access((uintptr_t)row, 16, 0, ASYNC | UNCOUNTED | PROXY, pc);
    });
    Offer offer = {operands, bytes, a, b, sums, sum_count, run, pc};
    emu_warp_meet(0xffffffffu, &offer, start, 0);
}
void emu_product_commit(void) { emu_warp_meet(0xffffffffu, 0, close_group, 0); }
void emu_product_wait(uint32_t groups_left) { emu_warp_meet(0xffffffffu, &groups_left, compute, 0); }
