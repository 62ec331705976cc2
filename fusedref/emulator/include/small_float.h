// Sixteen-bit floating point for the emulator: __half and __nv_bfloat16 are two formats of one type.
//
// Compilers differ in what 16-bit types they know (g++ 12 has none in C++), so this is a class. Arithmetic is done in
// fp32 and rounded to nearest even, which for + - * / gives the correctly rounded 16-bit result: fp32 has at least
// 2 p + 2 significant bits, p being those of the 16-bit format. A fused multiply-add is done in double precision for the
// same reason.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

enum class Rounding { nearest, zero, down, up };

template <int exponent_bits, int fraction_bits>
struct SmallFloat {
    uint16_t bits;

    SmallFloat() = default;
    SmallFloat(float value) : bits(round(value)) {}
    SmallFloat(double value) : bits(round(odd(value))) {}
    SmallFloat(int value) : SmallFloat(double(value)) {}
    SmallFloat(unsigned value) : SmallFloat(double(value)) {}
    SmallFloat(long value) : SmallFloat(double(value)) {}
    SmallFloat(unsigned long value) : SmallFloat(double(value)) {}
    SmallFloat(long long value) : SmallFloat(double(value)) {}
    SmallFloat(unsigned long long value) : SmallFloat(double(value)) {}

    operator float() const {
        constexpr uint32_t bias = (1u << (exponent_bits - 1)) - 1, all_ones = (1u << exponent_bits) - 1;
        const uint32_t sign = uint32_t(bits >> 15) << 31, exponent = bits >> fraction_bits & all_ones;
        const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
        if (exponent == 0) {  // zero or subnormal: the fraction counts steps of the smallest number
            const float magnitude = ldexpf(float(fraction), 1 - int(bias) - fraction_bits);
            return sign ? -magnitude : magnitude;
        }
        const uint32_t wide = exponent == all_ones ? 255 : exponent - bias + 127;
        return as_float(sign | wide << 23 | fraction << (23 - fraction_bits));
    }

    static SmallFloat from_bits(uint16_t bits) {
        SmallFloat value;
        value.bits = bits;
        return value;
    }

    // Rounds a double to odd: the last bit is set if anything was dropped, so that rounding again is still correct.
    static float odd(double value) {
        float rounded = float(value);
        if (double(rounded) == value || rounded != rounded || isinf(rounded)) return rounded;
        if (fabs(double(rounded)) > fabs(value)) rounded = nextafterf(rounded, 0.0f);
        return as_float(as_bits(rounded) | 1);
    }

    // The nearest number of the format, ties to even, and beyond the largest infinity; or the next one in a direction.
    static uint16_t round(float value, Rounding how = Rounding::nearest) {
        constexpr int bias = (1 << (exponent_bits - 1)) - 1, all_ones = (1 << exponent_bits) - 1,
                      dropped = 23 - fraction_bits;
        const uint32_t wide = as_bits(value), sign = wide >> 31 << 15, magnitude = wide & 0x7fffffff;
        if (magnitude > 0x7f800000) return 0x7fff;  // the only NaN that the card returns
        if (magnitude == 0x7f800000) return sign | uint32_t(all_ones) << fraction_bits;
        const int stored = magnitude >> 23 ? int(magnitude >> 23) : 1;     // fp32's subnormals have the least exponent
        const int exponent = stored - 127 + bias;                          // as the format would store it
        const int more = exponent > 0 ? dropped : dropped + 1 - exponent;  // a subnormal drops more
        const int shift = more < 25 ? more : 25;                           // everything is dropped
        const uint32_t significand = (magnitude & 0x7fffff) | (magnitude >> 23 ? 0x800000 : 0);
        const uint32_t half_ulp = 1u << (shift - 1), kept = significand >> shift,
                       rest = significand & (2 * half_ulp - 1);
        const bool away = how == Rounding::up ? !sign : how == Rounding::down ? sign != 0 : false;
        const bool nearer = rest > half_ulp || (rest == half_ulp && (kept & 1));
        const uint32_t up = how == Rounding::nearest ? nearer : away && rest;
        // `kept` carries the hidden bit, which is one step of the exponent; rounding up carries over by itself.
        const uint32_t result = (exponent > 0 ? uint32_t(exponent - 1) << fraction_bits : 0) + kept + up;
        const uint32_t infinity = uint32_t(all_ones) << fraction_bits;
        return sign | (result < infinity ? result : how == Rounding::nearest || away ? infinity : infinity - 1);
    }

    static float as_float(uint32_t bits) {
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    static uint32_t as_bits(float value) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        return bits;
    }
};

template <int E, int F>
struct alignas(4) SmallFloat2 {
    SmallFloat<E, F> x, y;
    SmallFloat2() = default;
    SmallFloat2(SmallFloat<E, F> first, SmallFloat<E, F> second) : x(first), y(second) {}
};

#define FLOATS template <int E, int F> static inline
#define ONE SmallFloat<E, F>
#define TWO SmallFloat2<E, F>

FLOATS ONE __hadd(ONE a, ONE b) { return float(a) + float(b); }
FLOATS ONE __hsub(ONE a, ONE b) { return float(a) - float(b); }
FLOATS ONE __hmul(ONE a, ONE b) { return float(a) * float(b); }
FLOATS ONE __hdiv(ONE a, ONE b) { return float(a) / float(b); }
FLOATS ONE __hfma(ONE a, ONE b, ONE c) { return fma(double(float(a)), double(float(b)), double(float(c))); }
FLOATS ONE __hneg(ONE a) { return ONE::from_bits(a.bits ^ 0x8000); }
FLOATS ONE __habs(ONE a) { return ONE::from_bits(a.bits & 0x7fff); }
FLOATS ONE __hmax(ONE a, ONE b) { return fmaxf(a, b); }
FLOATS ONE __hmin(ONE a, ONE b) { return fminf(a, b); }
FLOATS bool __heq(ONE a, ONE b) { return float(a) == float(b); }
FLOATS bool __hne(ONE a, ONE b) { return float(a) != float(b); }
FLOATS bool __hlt(ONE a, ONE b) { return float(a) < float(b); }
FLOATS bool __hle(ONE a, ONE b) { return float(a) <= float(b); }
FLOATS bool __hgt(ONE a, ONE b) { return float(a) > float(b); }
FLOATS bool __hge(ONE a, ONE b) { return float(a) >= float(b); }
FLOATS bool __hisnan(ONE a) { return float(a) != float(a); }
FLOATS int __hisinf(ONE a) { return isinf(float(a)) ? (float(a) > 0 ? 1 : -1) : 0; }
FLOATS ONE __hsat(ONE a) { return float(a) > 0.0f ? (float(a) < 1.0f ? a : ONE(1.0f)) : ONE(0.0f); }  // NaN: 0
FLOATS ONE __hadd_sat(ONE a, ONE b) { return __hsat(__hadd(a, b)); }
FLOATS ONE __hsub_sat(ONE a, ONE b) { return __hsat(__hsub(a, b)); }
FLOATS ONE __hmul_sat(ONE a, ONE b) { return __hsat(__hmul(a, b)); }
FLOATS ONE __hfma_sat(ONE a, ONE b, ONE c) { return __hsat(__hfma(a, b, c)); }
FLOATS ONE __hfma_relu(ONE a, ONE b, ONE c) {
    const ONE d = __hfma(a, b, c);
    return float(d) < 0.0f ? ONE(0.0f) : d;
}

FLOATS TWO __hadd2(TWO a, TWO b) { return TWO(__hadd(a.x, b.x), __hadd(a.y, b.y)); }
FLOATS TWO __hsub2(TWO a, TWO b) { return TWO(__hsub(a.x, b.x), __hsub(a.y, b.y)); }
FLOATS TWO __hmul2(TWO a, TWO b) { return TWO(__hmul(a.x, b.x), __hmul(a.y, b.y)); }
FLOATS TWO __hfma2(TWO a, TWO b, TWO c) { return TWO(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }
FLOATS TWO __hmax2(TWO a, TWO b) { return TWO(__hmax(a.x, b.x), __hmax(a.y, b.y)); }
FLOATS TWO __hmin2(TWO a, TWO b) { return TWO(__hmin(a.x, b.x), __hmin(a.y, b.y)); }
FLOATS TWO __hneg2(TWO a) { return TWO(__hneg(a.x), __hneg(a.y)); }
FLOATS TWO __habs2(TWO a) { return TWO(__habs(a.x), __habs(a.y)); }

FLOATS TWO __h2div(TWO a, TWO b) { return TWO(__hdiv(a.x, b.x), __hdiv(a.y, b.y)); }

#define FLOAT_COMPARISON(NAME)                                                                                \
    FLOATS TWO __h##NAME##2(TWO a, TWO b) { return TWO(ONE(__h##NAME(a.x, b.x)), ONE(__h##NAME(a.y, b.y))); } \
    FLOATS bool __hb##NAME##2(TWO a, TWO b) { return __h##NAME(a.x, b.x) && __h##NAME(a.y, b.y); }
FLOAT_COMPARISON(eq)
FLOAT_COMPARISON(ne)
FLOAT_COMPARISON(lt)
FLOAT_COMPARISON(le)
FLOAT_COMPARISON(gt)
FLOAT_COMPARISON(ge)
#undef FLOAT_COMPARISON

#define FLOAT_FUNCTION(NAME, VALUE) \
    FLOATS ONE h##NAME(ONE a) {     \
        const float x = a;          \
        return VALUE;               \
    }                               \
    FLOATS TWO h2##NAME(TWO a) { return TWO(h##NAME(a.x), h##NAME(a.y)); }
FLOAT_FUNCTION(sqrt, sqrtf(x))
FLOAT_FUNCTION(rsqrt, 1.0f / sqrtf(x))
FLOAT_FUNCTION(rcp, 1.0f / x)
FLOAT_FUNCTION(exp, expf(x))
FLOAT_FUNCTION(exp2, exp2f(x))
FLOAT_FUNCTION(log, logf(x))
FLOAT_FUNCTION(log2, log2f(x))
FLOAT_FUNCTION(log10, log10f(x))
FLOAT_FUNCTION(sin, sinf(x))
FLOAT_FUNCTION(cos, cosf(x))
FLOAT_FUNCTION(tanh, tanhf(x))
FLOAT_FUNCTION(floor, floorf(x))
FLOAT_FUNCTION(ceil, ceilf(x))
FLOAT_FUNCTION(trunc, truncf(x))
FLOAT_FUNCTION(rint, rintf(x))
#undef FLOAT_FUNCTION

FLOATS ONE operator+(ONE a, ONE b) { return __hadd(a, b); }
FLOATS ONE operator-(ONE a, ONE b) { return __hsub(a, b); }
FLOATS ONE operator*(ONE a, ONE b) { return __hmul(a, b); }
FLOATS ONE operator/(ONE a, ONE b) { return __hdiv(a, b); }
FLOATS ONE operator-(ONE a) { return __hneg(a); }
FLOATS ONE& operator+=(ONE& a, ONE b) { return a = a + b; }
FLOATS ONE& operator-=(ONE& a, ONE b) { return a = a - b; }
FLOATS ONE& operator*=(ONE& a, ONE b) { return a = a * b; }
FLOATS ONE& operator/=(ONE& a, ONE b) { return a = a / b; }
FLOATS TWO operator+(TWO a, TWO b) { return __hadd2(a, b); }
FLOATS TWO operator-(TWO a, TWO b) { return __hsub2(a, b); }
FLOATS TWO operator*(TWO a, TWO b) { return __hmul2(a, b); }
FLOATS TWO operator/(TWO a, TWO b) { return __h2div(a, b); }
FLOATS TWO operator-(TWO a) { return __hneg2(a); }
FLOATS TWO& operator+=(TWO& a, TWO b) { return a = a + b; }
FLOATS TWO& operator-=(TWO& a, TWO b) { return a = a - b; }
FLOATS TWO& operator*=(TWO& a, TWO b) { return a = a * b; }
FLOATS TWO& operator/=(TWO& a, TWO b) { return a = a / b; }

// Conversions with an explicit rounding; FLOAT is the format in CUDA's names. As in PTX's cvt, a number out of an
// integer's range gives the nearest integer, and NaN gives 0, or with 64 bits the bit pattern 1 << 63.
template <class T> static inline T small_to_integer(float value) {
    constexpr bool is_signed = T(-1) < T(0);
    constexpr T most = T(~0ull >> (64 + is_signed - 8 * sizeof(T))), least = T(-most * is_signed - is_signed);
    if (value != value) return sizeof(T) == 8 ? T(1ull << 63) : T(0);
    return value >= float(most) ? most : value <= float(least) ? least : T(value);
}
#define SMALL_INTEGER(TYPE, FLOAT, NAME, T)                                                    \
    static inline T __##FLOAT##2##NAME##_rn(TYPE a) { return small_to_integer<T>(rintf(a)); }  \
    static inline T __##FLOAT##2##NAME##_rz(TYPE a) { return small_to_integer<T>(truncf(a)); } \
    static inline T __##FLOAT##2##NAME##_rd(TYPE a) { return small_to_integer<T>(floorf(a)); } \
    static inline T __##FLOAT##2##NAME##_ru(TYPE a) { return small_to_integer<T>(ceilf(a)); }  \
    static inline TYPE __##NAME##2##FLOAT##_rn(T a) { return TYPE(a); }
#define SMALL_CONVERSIONS(TYPE, FLOAT)                                                                           \
    static inline TYPE __float2##FLOAT(float a) { return a; }                                                    \
    static inline TYPE __float2##FLOAT##_rn(float a) { return a; }                                               \
    static inline TYPE __float2##FLOAT##_rz(float a) { return TYPE::from_bits(TYPE::round(a, Rounding::zero)); } \
    static inline TYPE __float2##FLOAT##_rd(float a) { return TYPE::from_bits(TYPE::round(a, Rounding::down)); } \
    static inline TYPE __float2##FLOAT##_ru(float a) { return TYPE::from_bits(TYPE::round(a, Rounding::up)); }   \
    static inline TYPE __double2##FLOAT(double a) { return a; }                                                  \
    static inline float __##FLOAT##2float(TYPE a) { return a; }                                                  \
    static inline TYPE __ushort_as_##FLOAT(unsigned short bits) { return TYPE::from_bits(bits); }                \
    static inline TYPE __short_as_##FLOAT(short bits) { return TYPE::from_bits(uint16_t(bits)); }                \
    static inline unsigned short __##FLOAT##_as_ushort(TYPE a) { return a.bits; }                                \
    static inline short __##FLOAT##_as_short(TYPE a) { return short(a.bits); }                                   \
    SMALL_INTEGER(TYPE, FLOAT, int, int)                                                                         \
    SMALL_INTEGER(TYPE, FLOAT, uint, unsigned)                                                                   \
    SMALL_INTEGER(TYPE, FLOAT, short, short)                                                                     \
    SMALL_INTEGER(TYPE, FLOAT, ushort, unsigned short)                                                           \
    SMALL_INTEGER(TYPE, FLOAT, ll, long long)                                                                    \
    SMALL_INTEGER(TYPE, FLOAT, ull, unsigned long long)

#undef FLOATS
#undef ONE
#undef TWO
