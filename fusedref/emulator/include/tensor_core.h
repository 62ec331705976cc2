// The arithmetic of a tensor core: d = a0 b0 + a1 b1 + ... + c as the card rounds it, which is not as a chain of FMAs does.
//
// A step takes its products (exact) and the accumulator, aligns all of them to the largest exponent among them, keeps
// a fixed number of bits behind that exponent, drops the rest (truncation), adds, and truncates the sum to fp32. How many
// products one step takes and how many bits it keeps differ between generations:
//
//              products a step, 16-bit / tf32     fraction bits kept (fp32 has 23)
//   Ampere     8 / 4                              24
//   Hopper     16 / 8                             25
//
// Sources: Khattak and Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv:2512.07004; Xie et al., "MMA-Sim:
// Bit-Accurate Reference Model of Tensor Cores and Matrix Cores", arXiv:2511.10909.
#pragma once

#include <stdint.h>
#include <string.h>

namespace tensor_core {

enum Rounding { exact, ampere, hopper };  // exact: summed in double precision and rounded to fp32 once

struct Format {
    int exponent_bits, fraction_bits;  // of a stored number: sign, exponent, fraction
};
constexpr Format fp16 = {5, 10}, bf16 = {8, 7}, tf32 = {8, 10}, fp32 = {8, 23};

// A number taken apart: value = significand * 2^(exponent - fraction_bits).
struct Number {
    int64_t significand;
    int exponent;
    enum Kind : uint8_t { finite, infinite, nan } kind;
};

inline Number take_apart(uint32_t bits, Format format)
{
    const int all_ones = (1 << format.exponent_bits) - 1, bias = all_ones >> 1;
    const uint32_t fraction = bits & ((1u << format.fraction_bits) - 1);
    const int exponent = bits >> format.fraction_bits & all_ones;
    const bool negative = bits >> (format.fraction_bits + format.exponent_bits) & 1;
    const int64_t significand = exponent ? fraction | 1u << format.fraction_bits : fraction;
    return {negative ? -significand : significand, (exponent ? exponent : 1) - bias,
            exponent < all_ones ? Number::finite : fraction ? Number::nan : Number::infinite};
}

inline double power_of_two(int exponent)  // -1022 to 1023
{
    const uint64_t bits = uint64_t(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

inline float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// The fp32 number nearest to `value` on the side of zero.
inline float truncate_to_fp32(double value)
{
    const float nearest = float(value);
    const double magnitude = value < 0 ? -value : value;
    const double reached = nearest < 0 ? -double(nearest) : double(nearest);
    return reached > magnitude && reached < power_of_two(128) ? from_bits(to_bits(nearest) - 1) : nearest;
}

// One step: c + sum of a[i] * b[i], i < count, with `kept` fraction bits behind the largest exponent.
inline float step(const Number* a, const Number* b, int count, Format format, float c, int kept)
{
    const Number start = take_apart(to_bits(c), fp32);
    int infinite = start.kind == Number::infinite ? (c > 0 ? 1 : -1) : 0;
    bool nan = start.kind == Number::nan;
    int largest = start.significand ? start.exponent : -1000;
    for (int i = 0; i < count; i++) {
        if (a[i].kind != Number::finite || b[i].kind != Number::finite) {
            // An infinity's significand is its sign and a zero's is 0, so the product tells 0 * inf and the sign apart.
            const int sign = (a[i].significand > 0) - (a[i].significand < 0);
            const int product = sign * ((b[i].significand > 0) - (b[i].significand < 0));
            nan |= a[i].kind == Number::nan || b[i].kind == Number::nan || product == 0 || infinite == -product;
            infinite = product;
        } else if (a[i].significand && b[i].significand && a[i].exponent + b[i].exponent > largest) {
            largest = a[i].exponent + b[i].exponent;
        }
    }
    if (nan) return from_bits(0x7fffffff);
    if (infinite) return from_bits(infinite > 0 ? 0x7f800000 : 0xff800000);
    if (largest == -1000) return c;

    // Moves a significand with `fraction_bits` behind its point to `kept` bits behind the largest exponent's point.
    auto align = [=](int64_t significand, int exponent, int fraction_bits) -> int64_t {
        const int left = kept - fraction_bits - (largest - exponent);
        if (left >= 0) return significand * (int64_t(1) << left);
        return left <= -63 ? 0 : significand / (int64_t(1) << -left);  // division truncates towards zero
    };
    int64_t sum = align(start.significand, start.exponent, fp32.fraction_bits);
    for (int i = 0; i < count; i++)
        sum += align(a[i].significand * b[i].significand, a[i].exponent + b[i].exponent, 2 * format.fraction_bits);
    return truncate_to_fp32(double(sum) * power_of_two(largest - kept));
}

// c + sum of a[i] * b[i] over the k products of one mma instruction.
inline float dot(const Number* a, const Number* b, int k, Format format, float c, Rounding rounding)
{
    if (rounding == exact) {
        double sum = c;
        for (int i = 0; i < k; i++) {
            auto value = [format](const Number& n) {
                if (n.kind == Number::nan) return double(from_bits(0x7fffffff));
                if (n.kind == Number::infinite) return double(from_bits(n.significand > 0 ? 0x7f800000 : 0xff800000));
                return double(n.significand) * power_of_two(n.exponent - format.fraction_bits);
            };
            sum += value(a[i]) * value(b[i]);
        }
        return float(sum);
    }
    const bool wide = format.exponent_bits + format.fraction_bits > 15;  // tf32: twice the operand, half the products
    const int products = (rounding == hopper ? 16 : 8) / (wide ? 2 : 1);
    const int kept = rounding == hopper ? 25 : 24;
    for (int done = 0; done < k; done += products) {
        const int count = k - done < products ? k - done : products;
        c = step(a + done, b + done, count, format, c, kept);
    }
    return c;
}

}  // namespace tensor_core
