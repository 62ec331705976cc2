"""Answers to the exercises of lesson 10: right ones of several forms, and wrong ones with a word each."""

from lessons.exercises import e10, e10_product
from tests.training_answers import changed

MIRROR, TOTALS, DIFFERENCES = e10.mirror.answer, e10.totals.answer, e10.differences.answer
RELU, PART = e10_product.relu.answer, e10_product.part.answer

STORE = """        if (threadIdx.x == 0) {
            ptx::bulk_store(y + row * 512, buffer, 512 * sizeof(float));
            ptx::bulk_commit();
            ptx::bulk_wait_read<0>();
        }
"""
MIRROR_TWO_BUFFERS = changed(
    MIRROR,
    ("buffer[512];", "buffer[2][512];\n    int step = 0;"),
    ("buffer[511 - i]", "buffer[step % 2][511 - i]"),
    ("buffer, 512", "buffer[step % 2], 512"),
    ("wait_read<0>", "wait_read<1>"),
    ("        }\n        __syncthreads();", "        }\n        __syncthreads();\n        step++;"),
)
MIRROR_LAST_THREAD = changed(MIRROR, ("threadIdx.x == 0", "threadIdx.x == 127"), ("512 * sizeof(float)", "2048"))
MIRROR_WAIT_FIRST = changed(
    MIRROR,
    ("            ptx::bulk_wait_read<0>();\n        }\n        __syncthreads();", "        }"),
    (
        "        for (int i",
        "        if (threadIdx.x == 0) ptx::bulk_wait_read<0>();\n        __syncthreads();\n        for (int i",
    ),
)

TOTALS_ALL_ARRIVE = changed(
    TOTALS,
    ("init(&full, 1)", "init(&full, 32)"),
    ("init(&empty, 1)", "init(&empty, 32)"),
    ("            __syncwarp();\n", ""),
    ("if (lane == 0) ptx", "ptx"),
)
TOTALS_COUNTED = changed(
    TOTALS,
    ("    for (int row = 0", "    int parity = 0;\n    for (int row = 0"),
    ("row++)", "row++, parity ^= 1)"),
    ("(row + 1) % 2", "parity ^ 1"),
    ("&full, row % 2", "&full, parity"),
)
TOTALS_FIRST_ROW_APART = changed(
    TOTALS, ("ptx::mbarrier_wait(&empty, (row + 1) % 2)", "if (row > 0) ptx::mbarrier_wait(&empty, (row - 1) % 2)")
)

DIFFERENCES_IN_REGISTERS = changed(
    DIFFERENCES,
    ("    for (int row = 0", "    float last[8] = {};\n    for (int row = 0"),
    (
        "y[row * 256 + i] = buffer[s][i] - (row > 0 ? buffer[before][i] : 0);",
        "{ y[row * 256 + i] = buffer[s][i] - last[i / 32]; last[i / 32] = buffer[s][i]; }",
    ),
    ("row > 0 && lane == 0", "lane == 0"),
    ("&empty[before]", "&empty[s]"),
)
DIFFERENCES_ALL_ARRIVE = changed(
    DIFFERENCES,
    ("init(&full[s], 1)", "init(&full[s], 32)"),
    ("            __syncwarp();\n            if (lane == 0) ptx", "            ptx"),
)
DIFFERENCES_DEFINED = changed(DIFFERENCES, ("constexpr int STAGES = 3;", "#define STAGES 3"))

RELU_ONE_BY_ONE = (
    RELU[: RELU.rindex("        for (int j")]
    + """        for (int i = 0; i < PIXELS / 2; i++) {
            const int channel = 16 * warp + group + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * member + i % 2;
            shared.buffer[channel][column] = fmaxf(sum[i] + bias[channel], 0);
        }
"""
    + RELU[RELU.rindex("        ptx::fence_async") :]
)
RELU_BIAS_FIRST = changed(
    RELU,
    (
        "float sum[PIXELS / 2];",
        "float sum[PIXELS / 2];\n"
        "        for (int i = 0; i < PIXELS / 2; i++) sum[i] = bias[16 * warp + group + i / 2 % 2 * 8];",
    ),
    ("PIXELS * 16), false", "PIXELS * 16), true"),
    ("2 * h] + bias[channel]", "2 * h]"),
    ("2 * h + 1] + bias[channel]", "2 * h + 1]"),
)
RELU_WAIT_LATE = changed(
    RELU,
    ("        ptx::mbarrier_wait(&shared.stored, (step + 1) % 2);\n", ""),
    ("        float sum", "        ptx::mbarrier_wait(&shared.stored, (step + 1) % 2);\n        float sum"),
)

PART_BY_REMAINDER = changed(
    PART,
    ("(first + 7) / 8 * 8", "first + (8 - first % 8) % 8"),
    (
        "min((first + count + 7) / 8 * 8, size)",
        "first + count + (8 - (first + count) % 8) % 8;\n    if (end > size) end = size",
    ),
)
PART_BY_BITS = changed(
    PART, ("(first + 7) / 8 * 8", "(first + 7) & ~7"), ("(first + count + 7) / 8 * 8", "(first + count + 7) & -8")
)
PART_BY_LOOP = changed(
    PART,
    ("begin = (first + 7) / 8 * 8;", "begin = first;\n    while (begin % 8) begin++;"),
    ("end = min((first + count + 7) / 8 * 8, size);", "end = first + count;\n    while (end < size && end % 8) end++;"),
)

RIGHT = [
    ("e10.mirror", MIRROR_TWO_BUFFERS),
    ("e10.mirror", MIRROR_LAST_THREAD),
    ("e10.mirror", MIRROR_WAIT_FIRST),
    ("e10.totals", TOTALS_ALL_ARRIVE),
    ("e10.totals", TOTALS_COUNTED),
    ("e10.totals", TOTALS_FIRST_ROW_APART),
    ("e10.differences", DIFFERENCES_IN_REGISTERS),
    ("e10.differences", DIFFERENCES_ALL_ARRIVE),
    ("e10.differences", DIFFERENCES_DEFINED),
    ("e10_product.relu", RELU_ONE_BY_ONE),
    ("e10_product.relu", RELU_BIAS_FIRST),
    ("e10_product.relu", RELU_WAIT_LATE),
    ("e10_product.part", PART_BY_REMAINDER),
    ("e10_product.part", PART_BY_BITS),
    ("e10_product.part", PART_BY_LOOP),
]

BARRIERS_ALONE = changed(
    TOTALS,
    (
        "if (warp == 0) {\n            ptx::mbarrier_wait(&empty, (row + 1) % 2);\n",
        "__syncthreads();\n        if (warp == 0)\n",
    ),
    (
        "            __syncwarp();\n            if (lane == 0) ptx::mbarrier_arrive(&full);\n        } else {\n"
        "            ptx::mbarrier_wait(&full, row % 2);\n",
        "        __syncthreads();\n        if (warp == 1) {\n",
    ),
    ("            __syncwarp();\n            if (lane == 0) ptx::mbarrier_arrive(&empty);\n", ""),
)

WRONG = [
    ("e10.mirror", changed(MIRROR, ("        ptx::fence_async_shared();\n", "")), "fence_async_shared()"),
    ("e10.mirror", changed(MIRROR, ("            ptx::bulk_wait_read<0>();\n", "")), "has not been waited for"),
    ("e10.mirror", changed(MIRROR, ("        }\n        __syncthreads();\n", "        }\n")), "then a barrier"),
    ("e10.mirror", changed(MIRROR, ("512 * sizeof(float)", "512")), "How many *bytes*"),
    ("e10.mirror", changed(MIRROR, ("buffer[511 - i]", "buffer[i]")), "not mirrored"),
    (
        "e10.mirror",
        changed(
            MIRROR, (STORE, "        for (int i = threadIdx.x; i < 512; i += 128) y[row * 512 + i] = buffer[i];\n")
        ),
        "16 store requests; par is 0",
    ),
    ("e10.totals", changed(TOTALS, ("(row + 1) % 2", "row % 2")), "names the parity"),
    ("e10.totals", changed(TOTALS, ("            ptx::mbarrier_wait(&empty, (row + 1) % 2);\n", "")), "race"),
    ("e10.totals", changed(TOTALS, ("&full, row % 2", "&full, 0")), "waits for ever"),
    (
        "e10.totals",
        changed(TOTALS, ("i];\n            __syncwarp();\n            if", "i];\n            if")),
        "*every* lane",
    ),
    ("e10.totals", changed(TOTALS, ("init(&full, 1)", "init(&full, 32)")), "somebody does not arrive"),
    ("e10.totals", BARRIERS_ALONE, "par is 1"),
    ("e10.differences", changed(DIFFERENCES, ("(row / STAGES + 1) % 2", "(row + 1) % 2")), "names the parity"),
    (
        "e10.differences",
        changed(DIFFERENCES, ("&empty[before]", "&empty[s]"), ("row > 0 && lane", "lane")),
        "With 3 stages: With 9 rows: race",
    ),
    ("e10.differences", changed(DIFFERENCES, ("buffer[before][i] : 0", "x[row * 256 - 256 + i] : 0")), "par is 16"),
    ("e10.differences", changed(DIFFERENCES, ("row > 0 && lane", "lane")), ""),
    ("e10.differences", changed(DIFFERENCES, ("constexpr int STAGES = 3", "enum { STAGES = 3 }")), "Keep the line"),
    ("e10_product.relu", changed(RELU, ("+ bias[channel]", "")), "bias is missing"),
    ("e10_product.relu", changed(RELU, ("fmaxf(first, 0), fmaxf(second, 0)", "first, second")), "should be 0"),
    (
        "e10_product.relu",
        changed(
            RELU, ("group + i % 2 * 8", "group + i / 2 * 8"), ("2 * member + i / 2 * 8;", "2 * member + i % 2 * 8;")
        ),
        "Registers 1 and 2",
    ),
    ("e10_product.relu", changed(RELU, ("        ptx::wgmma_wait<0>();\n", "")), "belong to the tensor cores"),
    (
        "e10_product.relu",
        changed(RELU, ("        if (lane == 0) ptx::mbarrier_arrive(&shared.empty[s]);\n", "")),
        "waits for ever",
    ),
    ("e10_product.relu", changed(RELU, ("        ptx::mbarrier_wait(&shared.stored, (step + 1) % 2);\n", "")), "race"),
    ("e10_product.part", changed(PART, ("begin = (first + 7) / 8 * 8", "begin = first")), "by run 0 and by run 1"),
    (
        "e10_product.part",
        changed(PART, ("(first + 7) / 8 * 8", "first"), ("min((first + count + 7) / 8 * 8, size)", "first + count")),
        "16 bytes into a sector",
    ),
    ("e10_product.part", changed(PART, ("min(", "("), (", size)", ")")), "y has 12 numbers"),
    (
        "e10_product.part",
        changed(PART, ("(first + count + 7) / 8", "(first + count) / 8")),
        "nobody stores numbers 8 to 11",
    ),
    (
        "e10_product.part",
        changed(PART, ("begin = (first", "begin = 8 + (first"), ("(first + count + 7)", "(first + count + 15)")),
        "are enough",
    ),
]
