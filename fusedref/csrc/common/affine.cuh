// BatchNorm (running statistics) and the scale, folded into three numbers per output channel:
//   y = a * (conv + shift) + b        a = scale * gamma / sqrt(var + eps)   shift = bias - mean   b = scale * beta
// Not a * conv + b': with an infinite a, that would be inf - inf where torch returns infinity.
// bias, gamma and beta may be null: zeros, ones and zeros.
#pragma once

#include "elements.cuh"

static __device__ __forceinline__ float affine_a(
    int channel, const Vector* running_var, const Vector* gamma, float scaling_factor, float eps) {
    return scaling_factor * (gamma ? float(gamma[channel]) : 1.0f) / sqrtf(float(running_var[channel]) + eps);
}

static __device__ __forceinline__ float affine_shift(int channel, const Vector* bias, const Vector* running_mean) {
    return (bias ? float(bias[channel]) : 0.0f) - float(running_mean[channel]);
}

static __device__ __forceinline__ float affine_b(int channel, const Vector* beta, float scaling_factor) {
    return beta ? scaling_factor * float(beta[channel]) : 0.0f;
}
