// Lesson 07: LINKS multiply-adds in a row for each number, and NUMBERS independent numbers for each thread.
//
// Launch: block (256), as many blocks as give the size / NUMBERS threads.
extern "C" __global__ void chain(const float* x, float* y, float a, float b, int size) {  // x, y: [size]
    const int index = blockIdx.x * blockDim.x + threadIdx.x, threads = size / NUMBERS;
    if (index >= threads) return;
    float value[NUMBERS];
    #pragma unroll
    for (int i = 0; i < NUMBERS; i++) value[i] = x[index + i * threads];
    #pragma unroll 16
    for (int link = 0; link < LINKS; link++)
        for (int i = 0; i < NUMBERS; i++) value[i] = value[i] * a + b;
    #pragma unroll
    for (int i = 0; i < NUMBERS; i++) y[index + i * threads] = value[i];
}
