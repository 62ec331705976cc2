// The arithmetic of a tensor core: d = a0 b0 + a1 b1 + ... + c as the card rounds it, unlike a chain of FMAs.
//
// A step takes its products (exact) and the accumulator, aligns all of them to the largest exponent among them, keeps
// a fixed number of bits below that exponent, drops the rest (truncation), adds, and truncates the sum to fp32. How many
// products one step takes and how many bits it keeps differ between generations:
//
//              products a step, 16-bit / tf32     fraction bits kept (fp32 has 23)
//   Ampere     8 / 4                              24
//   Hopper     16 / 8                             25
//
// Sources: Khattak and Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv:2512.07004; Xie et al., "MMA-Sim:
// Bit-Accurate Reference Model of Tensor Cores and Matrix Cores", arXiv:2511.10909.
#pragma once

#include "emulator_abi.h"

namespace tensor_core {

enum Rounding { exact, ampere, hopper };  // exact: summed in double precision and rounded to fp32 once

struct Format {
    int exponent_bits, fraction_bits;  // of a stored number: sign, exponent, fraction
};
constexpr Format fp16 = {5, 10}, bf16 = {8, 7}, tf32 = {8, 10}, fp32 = {8, 23};

// A number taken apart: value = significand * 2^(exponent - fraction_bits).
struct Number {
    int32_t significand;
    int16_t exponent;
    enum Kind : int16_t { finite, infinite, nan } kind;
};

EMU_UNWATCHED inline Number take_apart(uint32_t bits, Format format) {
    const int all_ones = (1 << format.exponent_bits) - 1, bias = all_ones >> 1;
    const uint32_t fraction = bits & ((1u << format.fraction_bits) - 1);
    const int exponent = bits >> format.fraction_bits & all_ones;
    const bool negative = bits >> (format.fraction_bits + format.exponent_bits) & 1;
    const int32_t significand = exponent ? fraction | 1u << format.fraction_bits : fraction;
    return {
        negative ? -significand : significand, int16_t((exponent ? exponent : 1) - bias),
        exponent < all_ones ? Number::finite
            : fraction      ? Number::nan
                            : Number::infinite};
}

EMU_UNWATCHED inline double power_of_two(int exponent)  // -1022 to 1023
{
    const uint64_t bits = uint64_t(exponent + 1023) << 52;
    double value;
    __builtin_memcpy(&value, &bits, 8);
    return value;
}

EMU_UNWATCHED inline float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

EMU_UNWATCHED inline uint32_t to_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

// The fp32 number nearest to `value` on the side of zero.
EMU_UNWATCHED inline float truncate_to_fp32(double value) {
    const float nearest = float(value);
    const double magnitude = value < 0 ? -value : value;
    const double reached = nearest < 0 ? -double(nearest) : double(nearest);
    return reached > magnitude && reached < power_of_two(128) ? from_bits(to_bits(nearest) - 1) : nearest;
}

// Moves a significand `left` binary places, towards zero where bits fall off.
EMU_UNWATCHED inline int64_t shifted(int64_t significand, int left) {
    if (left >= 0) return significand * (int64_t(1) << left);
    if (left <= -63) return 0;
    return significand < 0 ? -(-significand >> -left) : significand >> -left;
}

// The result of a step in which a value is not finite: NaN or an infinity.
EMU_UNWATCHED inline float step_of_infinities(const Number* a, const Number* b, int count, float c) {
    const Number start = take_apart(to_bits(c), fp32);
    int infinite = start.kind == Number::infinite ? (c > 0 ? 1 : -1) : 0;
    bool nan = start.kind == Number::nan;
    for (int i = 0; i < count; i++) {
        if (a[i].kind == Number::finite && b[i].kind == Number::finite) continue;
        // An infinity's significand is its sign and a zero's is 0, so the product tells 0 * inf and the sign apart.
        const int product =
            ((a[i].significand > 0) - (a[i].significand < 0)) * ((b[i].significand > 0) - (b[i].significand < 0));
        nan |= a[i].kind == Number::nan || b[i].kind == Number::nan || product == 0 || infinite == -product;
        infinite = product;
    }
    return from_bits(nan ? 0x7fffffff : infinite > 0 ? 0x7f800000 : 0xff800000);
}

// One step: c + sum of a[i] * b[i], i < count <= 16, with `kept` fraction bits below the largest exponent.
EMU_UNWATCHED inline float step(const Number* a, const Number* b, int count, Format format, float c, int kept) {
    const int nothing = -1000;
    const Number start = take_apart(to_bits(c), fp32);
    int largest = start.significand ? start.exponent : nothing, kinds = start.kind;
    int64_t product[16];
    int exponent[16];
    for (int i = 0; i < count; i++) {
        product[i] = int64_t(a[i].significand) * b[i].significand;
        exponent[i] = product[i] ? a[i].exponent + b[i].exponent : nothing;
        largest = exponent[i] > largest ? exponent[i] : largest;
        kinds |= a[i].kind | b[i].kind;
    }
    if (kinds) return step_of_infinities(a, b, count, c);
    if (largest == nothing) return c;
    int64_t sum = shifted(start.significand, kept - fp32.fraction_bits - (largest - start.exponent));
    for (int i = 0; i < count; i++)
        sum += shifted(product[i], kept - 2 * format.fraction_bits - (largest - exponent[i]));
    return truncate_to_fp32(double(sum) * power_of_two(largest - kept));
}

EMU_UNWATCHED inline double value_of(const Number& n, Format format) {
    if (n.kind == Number::nan) return from_bits(0x7fffffff);
    if (n.kind == Number::infinite) return from_bits(n.significand > 0 ? 0x7f800000 : 0xff800000);
    return double(n.significand) * power_of_two(n.exponent - format.fraction_bits);
}

// c + sum of a[i] * b[i] over the k products of one mma instruction.
EMU_UNWATCHED inline float dot(const Number* a, const Number* b, int k, Format format, float c, Rounding rounding) {
    if (rounding == exact) {
        double sum = c;
        for (int i = 0; i < k; i++) sum += value_of(a[i], format) * value_of(b[i], format);
        return float(sum);
    }
    const bool wide = format.exponent_bits + format.fraction_bits > 15;  // tf32: operands twice as large, half as many
    const int products = (rounding == hopper ? 16 : 8) / (wide ? 2 : 1);
    const int kept = rounding == hopper ? 25 : 24;
    for (int done = 0; done < k; done += products) {
        const int count = k - done < products ? k - done : products;
        c = step(a + done, b + done, count, format, c, kept);
    }
    return c;
}

}  // namespace tensor_core
