// The layout of the tensor that prepare_backward.cu writes and backward.cu reads, in words of 4 bytes:
//   [piece: hi, lo][column of the filter][step of 16 output channels][half of it][row of the filter][input channel]
//       of 8 output channels in fp16: b of wgmma, in the layout of ptx::Columns
//   [1]  FILTER_FACTOR: the float that undoes the scale of the pieces
#pragma once

constexpr int FILTER_WORDS = KERNEL_HEIGHT * KERNEL_WIDTH * 8 * 64 / 2;  // of one piece
constexpr int FILTER_FACTOR = 2 * FILTER_WORDS;

// The average relative error of a sum of so many steps on the tensor core, which truncates where an addition rounds: of
// the products in a step, and of the accumulator, which grows evenly to the sum. Fitted to random data.
constexpr float shortfall(int steps) { return (0.39f + 0.48f * (steps + 1) / 2) / 16777216; }
