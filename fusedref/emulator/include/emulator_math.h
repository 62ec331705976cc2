// Arithmetic: the functions that CUDA C has beside those of <math.h>, and the integer intrinsics.
#pragma once

namespace emu {
template <class A, class B> using Both =
    std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>;
}
template <class A, class B> EMU_INLINE emu::Both<A, B> min(A a, B b) {
    using T = emu::Both<A, B>;
    if constexpr (std::is_same_v<T, float>) return fminf(a, b);
    else if constexpr (std::is_floating_point_v<T>) return fmin(a, b);
    else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> EMU_INLINE emu::Both<A, B> max(A a, B b) {
    using T = emu::Both<A, B>;
    if constexpr (std::is_same_v<T, float>) return fmaxf(a, b);
    else if constexpr (std::is_floating_point_v<T>) return fmax(a, b);
    else return (T)a < (T)b ? (T)b : (T)a;
}

EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
EMU_INLINE float rcbrtf(float x) { return 1.0f / cbrtf(x); }
EMU_INLINE float sinpif(float x) { return (float)sin(3.14159265358979323846 * fmod((double)x, 2.0)); }
EMU_INLINE float cospif(float x) { return (float)cos(3.14159265358979323846 * fmod((double)x, 2.0)); }
EMU_INLINE float normcdff(float x) { return (float)(0.5 * erfc(-(double)x * 0.70710678118654752440)); }
EMU_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
EMU_INLINE float __fdividef(float x, float y) { return x / y; }
EMU_INLINE float __expf(float x) { return expf(x); }
EMU_INLINE float __exp10f(float x) { return powf(10.0f, x); }
EMU_INLINE float __logf(float x) { return logf(x); }
EMU_INLINE float __log2f(float x) { return log2f(x); }
EMU_INLINE float __log10f(float x) { return log10f(x); }
EMU_INLINE float __sinf(float x) { return sinf(x); }
EMU_INLINE float __cosf(float x) { return cosf(x); }
EMU_INLINE float __tanf(float x) { return tanf(x); }
EMU_INLINE float __powf(float x, float y) { return powf(x, y); }
EMU_INLINE float __tanhf(float x) { return tanhf(x); }

// These round once; the compiler must not contract them with another operation.
namespace emu {
template <class T> EMU_INLINE T opaque(T v) {
    asm("" : "+m"(v));
    return v;
}
}  // namespace emu
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
EMU_INLINE float __fmul_rn(float a, float b) { return emu::opaque(emu::opaque(a) * b); }
EMU_INLINE float __fadd_rn(float a, float b) { return emu::opaque(a) + emu::opaque(b); }
EMU_INLINE float __fsub_rn(float a, float b) { return emu::opaque(a) - emu::opaque(b); }
EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMU_INLINE float __frcp_rn(float a) { return 1.0f / a; }
EMU_INLINE float __fsqrt_rn(float a) { return sqrtf(a); }
EMU_INLINE float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
EMU_INLINE double __dmul_rn(double a, double b) { return emu::opaque(emu::opaque(a) * b); }
EMU_INLINE double __dadd_rn(double a, double b) { return emu::opaque(a) + emu::opaque(b); }
EMU_INLINE double __dsub_rn(double a, double b) { return emu::opaque(a) - emu::opaque(b); }
EMU_INLINE double __ddiv_rn(double a, double b) { return a / b; }

EMU_INLINE int __float_as_int(float v) { return emu::from_bits<int>(emu::to_bits(v)); }
EMU_INLINE unsigned __float_as_uint(float v) { return emu::from_bits<unsigned>(emu::to_bits(v)); }
EMU_INLINE float __int_as_float(int v) { return emu::from_bits<float>(emu::to_bits(v)); }
EMU_INLINE float __uint_as_float(unsigned v) { return emu::from_bits<float>(emu::to_bits(v)); }
EMU_INLINE long long __double_as_longlong(double v) { return emu::from_bits<long long>(emu::to_bits(v)); }
EMU_INLINE double __longlong_as_double(long long v) { return emu::from_bits<double>(emu::to_bits(v)); }
EMU_INLINE int __float2int_rn(float x) { return (int)rintf(x); }
EMU_INLINE int __float2int_rz(float x) { return (int)x; }
EMU_INLINE int __float2int_rd(float x) { return (int)floorf(x); }
EMU_INLINE int __float2int_ru(float x) { return (int)ceilf(x); }
EMU_INLINE unsigned __float2uint_rn(float x) { return (unsigned)rintf(x); }
EMU_INLINE unsigned __float2uint_rz(float x) { return (unsigned)x; }
EMU_INLINE float __int2float_rn(int x) { return (float)x; }
EMU_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
EMU_INLINE float __double2float_rn(double x) { return (float)x; }

EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
EMU_INLINE int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_INLINE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
EMU_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> 4 * i & 15, byte = bytes >> 8 * (s & 7) & 255;
        result |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return result;
}
EMU_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
EMU_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
EMU_INLINE int __mul24(int a, int b) { return (int)((unsigned)(a << 8 >> 8) * (unsigned)(b << 8 >> 8)); }
EMU_INLINE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
EMU_INLINE int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
EMU_INLINE unsigned __sad(int a, int b, unsigned c) { return (a > b ? (unsigned)a - b : (unsigned)b - a) + c; }
EMU_INLINE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
