// The layout of the tensor that prepare_backward.cu writes and backward.cu reads, in float32:
//   [tap][step of 16 output channels][lane][hi, hi, lo, lo]     fragments: two fp16 each, b of mma_m16n8k16_f16
//   [64] a = scale * gamma / sqrt(var + eps)                    zero for channels that do not exist
//   [1]  FILTER_FACTOR: the factor that undoes the scale of the fragments
#pragma once

constexpr int FRAGMENTS = KERNEL_HEIGHT * KERNEL_WIDTH * 4 * 32;  // of four words
constexpr int FILTER_SLOPES = FRAGMENTS * 4, FILTER_FACTOR = FILTER_SLOPES + 64;

// The average relative error that a step of the tensor core adds to a sum: it truncates where an addition rounds.
constexpr float TRUNCATION = 0.54f / 16777216;
