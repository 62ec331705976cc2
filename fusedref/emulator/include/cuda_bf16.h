// cuda_bf16.h for the emulator: the names of CUDA's header that kernels here use, on the emulator's own 16-bit type.
#pragma once

#include "small_float.h"

using __nv_bfloat16 = SmallFloat<8, 7>;
using __nv_bfloat162 = SmallFloat2<8, 7>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

SMALL_CONVERSIONS(__nv_bfloat16, bfloat16)
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 value) { return __nv_bfloat162(value, value); }
static inline __nv_bfloat162 __float2bfloat162_rn(float value) { return __nv_bfloat162(value, value); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return __nv_bfloat162(value.x, value.y); }
static inline float2 __bfloat1622float2(__nv_bfloat162 value) { return make_float2(value.x, value.y); }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 value) { return value.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 value) { return value.y; }
static inline float __low2float(__nv_bfloat162 value) { return value.x; }
static inline float __high2float(__nv_bfloat162 value) { return value.y; }
static inline __nv_bfloat162 __low2bfloat162(__nv_bfloat162 value) { return __nv_bfloat162(value.x, value.x); }
static inline __nv_bfloat162 __high2bfloat162(__nv_bfloat162 value) { return __nv_bfloat162(value.y, value.y); }
static inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return __nv_bfloat162(a.x, b.x); }
static inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) { return __nv_bfloat162(a.y, b.y); }
static inline __nv_bfloat162 __lowhigh2highlow(__nv_bfloat162 value) { return __nv_bfloat162(value.y, value.x); }
