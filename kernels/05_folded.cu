// 05 folded: BatchNorm and scale as one multiply-add per channel. `import fusedref` runs this kernel for problems that
// neither of its faster ones, pipeline and implicit_gemm, serves.
//
//   y = scale * (gamma * (conv + bias - mean) / sqrt(var + eps) + beta)  =  a * (conv + shift) + b
//   with, for each channel,  a = scale * gamma / sqrt(var + eps)   shift = bias - mean   b = scale * beta
//
// New since 04: after the sum there is only an addition and a multiply-add, with the same three numbers for a channel, and
// every size is a compile-time constant (-DIN_CHANNELS=8 ...), so that the loops unroll and no index is divided by a number
// known only at run time. The kernel also serves every stride, padding, dilation and number of groups.
//
// Byte ledger at problem 73: reads 67.2 MB, writes 520.2 MB, as 04. Only the arithmetic around the bytes has changed.
//
// Launch: fusedref.plans computes the constants and the launch geometry; the kernel is part of the package.

#include "folded.cu"
