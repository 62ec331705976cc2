// 10 pipeline: everything at the same time. This is the kernel that `import fusedref` runs on an H100 or H200.
//
// Persistent blocks, one a multiprocessor, of 16 specialised warps: six load the next tiles and split them into fp16
// pieces, eight multiply on the tensor cores, two store finished tiles. mbarriers hand the tiles on, so that memory
// reads, arithmetic and memory writes never wait in line for one another; the slowest of them, writing y, sets the pace.
//
// New since 09: the product is asynchronous (wgmma: a warpgroup starts 64 channels by 32 pixels and goes on), its pixels
// are read from shared memory by the tensor cores themselves, and a run of outputs leaves by the copy engine, about 1 KB
// at a time, without passing through a thread. All blocks read x at the same moments, by the card's clock: reads strewn
// among the writes would slow these down. And it is float32 on every input: a tile whose magnitudes two fp16 pieces
// cannot hold is computed by plain multiply-adds.
//
// Byte ledger at problem 73: reads 67.2 MB of x from memory (each row twice, once from the L2 cache), writes 520.2 MB.
//
// Launch: fusedref.plan(problem) has the constants and the launch geometry; the kernel is part of the package.

#include "pipeline.cu"
