// cuda_fp16.h for the emulator: the names of CUDA's header that the kernels use, on the emulator's 16-bit type.
#pragma once

#include "small_float.h"

using __half = SmallFloat<5, 10>;
using __half2 = SmallFloat2<5, 10>;
using half = __half;
using half2 = __half2;

SMALL_CONVERSIONS(__half, half)
static inline __half2 make_half2(__half x, __half y) { return __half2(x, y); }
static inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
static inline __half2 __half2half2(__half value) { return __half2(value, value); }
static inline __half2 __float2half2_rn(float value) { return __half2(value, value); }
static inline __half2 __floats2half2_rn(float x, float y) { return __half2(x, y); }
static inline __half2 __float22half2_rn(float2 value) { return __half2(value.x, value.y); }
static inline float2 __half22float2(__half2 value) { return make_float2(value.x, value.y); }
static inline __half __low2half(__half2 value) { return value.x; }
static inline __half __high2half(__half2 value) { return value.y; }
static inline float __low2float(__half2 value) { return value.x; }
static inline float __high2float(__half2 value) { return value.y; }
static inline __half2 __low2half2(__half2 value) { return __half2(value.x, value.x); }
static inline __half2 __high2half2(__half2 value) { return __half2(value.y, value.y); }
static inline __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
static inline __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }
static inline __half2 __lowhigh2highlow(__half2 value) { return __half2(value.y, value.x); }
