// 05 folded: BatchNorm and scale as one multiply-add per channel. `import fusedref` runs this kernel where neither of its
// faster ones, pipeline and implicit_gemm, serves the problem.
//
//   y = scale * (gamma * (conv + bias - mean) / sqrt(var + eps) + beta)  =  a * (conv + shift) + b
//   with, for each channel,  a = scale * gamma / sqrt(var + eps)   shift = bias - mean   b = scale * beta
//
// New since 04: all that follows the sum is an addition and a multiply-add, the same for every thread of a block, and
// every size is a constant of the compilation (-DIN_CHANNELS=8 ...), so that the loops unroll and no index is divided by a
// number known only at run time. In return the kernel serves every stride, padding, dilation and number of groups.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB, as 04. Only the arithmetic around the bytes has changed.
//
// Launch: fusedref.plans computes the constants and the launch geometry; the kernel is part of the package.

#include "folded.cu"
