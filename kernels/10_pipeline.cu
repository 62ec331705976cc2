// 10 pipeline: everything at the same time. This is the kernel that `import fusedref` runs on an H100 or H200.
//
// Persistent blocks, one per multiprocessor, of 16 specialised warps: six load the next tiles and split them into fp16
// pieces, eight multiply on the tensor cores, two store finished tiles. mbarriers pass the tiles on, so that memory
// reads, arithmetic and memory writes overlap; the slowest of them, writing y, sets the pace.
//
// New since 09: the product is asynchronous (wgmma: a warpgroup starts 64 channels by 32 pixels and continues), its pixels
// are read from shared memory by the tensor cores themselves, and the copy engine writes runs of outputs, about 1 KB
// at a time, without passing through registers. All blocks read x at the same time, by the GPU's clock: reads scattered
// among the writes would slow the writes down. And it is float32 on every input: a tile whose magnitudes two fp16
// pieces cannot represent is computed with plain multiply-adds.
//
// Byte ledger at problem 73: reads 67.2 MB of x from memory (each row twice, once from the L2 cache), writes 520.2 MB.
//
// Launch: fusedref.plan(problem) returns the constants and the launch geometry; the kernel is part of the package.

#include "pipeline.cu"
