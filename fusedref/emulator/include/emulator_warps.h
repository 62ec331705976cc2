// Warp operations: shuffles, votes, matches and reductions.
#pragma once

namespace emu {

// What a lane brings to a warp operation, which leaves its result there.
struct Lane {
    uint64_t value;
    int source;  // of a shuffle: the lane to read from
    uint32_t result;
};

inline EMU_UNWATCHED void do_shuffle(void* const payload[32], uint32_t present, const void*) {
    uint64_t values[32];
    for (int i = 0; i < 32; i++) values[i] = present >> i & 1 ? ((Lane*)payload[i])->value : 0;
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        Lane* lane = (Lane*)payload[i];
        // From a lane that takes no part, the card gives an undefined value; the emulator gives all ones.
        lane->value = present >> lane->source & 1 ? values[lane->source] : ~0ull;
    }
}

inline EMU_UNWATCHED void do_ballot(void* const payload[32], uint32_t present, const void*) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) votes |= (uint32_t)(((Lane*)payload[i])->value != 0) << i;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) {
            ((Lane*)payload[i])->result = votes;
            ((Lane*)payload[i])->value = present;
        }
}

inline EMU_UNWATCHED void do_match(void* const payload[32], uint32_t present, const void*) {
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        uint32_t same = 0;
        for (int j = 0; j < 32; j++)
            if (present >> j & 1) same |= (uint32_t)(((Lane*)payload[i])->value == ((Lane*)payload[j])->value) << j;
        ((Lane*)payload[i])->result = same;
        ((Lane*)payload[i])->source = same == present;
    }
}

template <class T, int OPERATION>
inline EMU_UNWATCHED void do_reduce(void* const payload[32], uint32_t present, const void*) {
    T total{};
    bool first = true;
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        T v = (T)((Lane*)payload[i])->value;
        if (first) total = v;
        else if (OPERATION == 0) total += v;
        else if (OPERATION == 2) total = v < total ? v : total;
        else if (OPERATION == 3) total = v > total ? v : total;
        else if (OPERATION == 4) total &= v;
        else if (OPERATION == 5) total |= v;
        else total ^= v;
        first = false;
    }
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) ((Lane*)payload[i])->value = (uint64_t)total;
}

template <class T> EMU_INLINE uint64_t to_bits(T v) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &v, sizeof v);
    return bits;
}
template <class T> EMU_INLINE T from_bits(uint64_t bits) {
    T v;
    __builtin_memcpy((void*)&v, &bits, sizeof v);
    return v;
}

template <class T> EMU_INLINE T exchange(unsigned mask, T v, int source) {
    Lane lane{to_bits(v), source, 0};
    emu_warp_meet(mask, &lane, do_shuffle, 0);
    return from_bits<T>(lane.value);
}

}  // namespace emu

template <class T> EMU_INLINE T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    int lane = emu_lane();
    return emu::exchange(mask, v, (lane & ~(width - 1)) + (source & (width - 1)));
}
template <class T> EMU_INLINE T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = emu_lane(), source = lane - (int)delta;
    return emu::exchange(mask, v, source < (lane & ~(width - 1)) ? lane : source);
}
template <class T> EMU_INLINE T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = emu_lane(), source = lane + (int)delta;
    return emu::exchange(mask, v, source > (lane | (width - 1)) ? lane : source);
}
template <class T> EMU_INLINE T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
    int lane = emu_lane(), source = lane ^ lanes;
    return emu::exchange(mask, v, source > (lane | (width - 1)) ? lane : source);
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
    emu::Lane lane{(uint64_t)(predicate != 0), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_ballot, 0);
    return lane.result;
}
EMU_INLINE int __all_sync(unsigned mask, int predicate) {
    emu::Lane lane{(uint64_t)(predicate != 0), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_ballot, 0);
    return lane.result == (uint32_t)lane.value;
}
EMU_INLINE int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
EMU_INLINE int __uni_sync(unsigned mask, int predicate) {
    emu::Lane lane{(uint64_t)(predicate != 0), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_ballot, 0);
    return lane.result == 0 || lane.result == (uint32_t)lane.value;
}
template <class T> EMU_INLINE unsigned __match_any_sync(unsigned mask, T v) {
    emu::Lane lane{emu::to_bits(v), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_match, 0);
    return lane.result;
}
template <class T> EMU_INLINE unsigned __match_all_sync(unsigned mask, T v, int* predicate) {
    emu::Lane lane{emu::to_bits(v), 0, 0};
    emu_warp_meet(mask, &lane, emu::do_match, 0);
    *predicate = lane.source;
    return lane.source ? lane.result : 0;
}
#define EMU_REDUCE(NAME, T, OPERATION)                               \
    EMU_INLINE T __reduce_##NAME##_sync(unsigned mask, T v) {        \
        emu::Lane lane{(uint64_t)v, 0, 0};                           \
        emu_warp_meet(mask, &lane, emu::do_reduce<T, OPERATION>, 0); \
        return (T)lane.value;                                        \
    }
EMU_REDUCE(add, unsigned, 0)
EMU_REDUCE(add, int, 0)
EMU_REDUCE(min, unsigned, 2)
EMU_REDUCE(min, int, 2)
EMU_REDUCE(max, unsigned, 3)
EMU_REDUCE(max, int, 3)
EMU_REDUCE(and, unsigned, 4)
EMU_REDUCE(or, unsigned, 5)
EMU_REDUCE(xor, unsigned, 6)
