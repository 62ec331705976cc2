// The types selected by the macros ELEMENT (x, weight and y) and VECTOR (bias, mean, variance, gamma and beta):
// 0 float, 1 __half, 2 __nv_bfloat16. float(value) is exact, Element(sum) rounds to nearest.
#pragma once

#if ELEMENT == 1 || VECTOR == 1
#include <cuda_fp16.h>
#endif
#if ELEMENT == 2 || VECTOR == 2
#include <cuda_bf16.h>
#endif

#if ELEMENT == 0
using Element = float;
#elif ELEMENT == 1
using Element = __half;
#else
using Element = __nv_bfloat16;
#endif

#if VECTOR == 0
using Vector = float;
#elif VECTOR == 1
using Vector = __half;
#else
using Vector = __nv_bfloat16;
#endif
