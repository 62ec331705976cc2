// The vector types of CUDA C: int2, float4 and the others, and make_int2() and the others.
#pragma once

namespace emu {

template <int BYTES> struct Chunk { typedef unsigned char V __attribute__((vector_size(BYTES), may_alias)); };

}  // namespace emu

// One instruction loads or stores a vector whose size is a power of two, as on the card.
#define EMU_VECTOR2(NAME, T)                                                   \
    struct alignas(2 * sizeof(T)) NAME {                                       \
        typedef typename emu::Chunk<2 * sizeof(T)>::V V;                       \
        union {                                                                \
            V chunk;                                                           \
            struct { T x, y; };                                                \
        };                                                                     \
        NAME() = default;                                                      \
        EMU_INLINE constexpr NAME(T a, T b) : x(a), y(b) {}                    \
        EMU_INLINE NAME(const NAME& o) : chunk(o.chunk) {}                     \
        EMU_INLINE NAME(const volatile NAME& o) : chunk(o.chunk) {}            \
        EMU_INLINE NAME& operator=(const NAME& o) {                            \
            chunk = o.chunk;                                                   \
            return *this;                                                      \
        }                                                                      \
        EMU_INLINE void operator=(const NAME& o) volatile { chunk = o.chunk; } \
    };                                                                         \
    EMU_INLINE NAME make_##NAME(T x, T y) { return NAME(x, y); }
#define EMU_VECTOR4(NAME, T, ALIGN)                                               \
    struct alignas(ALIGN) NAME {                                                  \
        typedef typename emu::Chunk<ALIGN>::V V;                                  \
        static constexpr int PARTS = 4 * sizeof(T) / ALIGN;                       \
        union {                                                                   \
            V chunk[PARTS];                                                       \
            struct { T x, y, z, w; };                                             \
        };                                                                        \
        NAME() = default;                                                         \
        EMU_INLINE constexpr NAME(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {} \
        EMU_INLINE NAME(const NAME& o) {                                          \
            for (int i = 0; i < PARTS; i++) chunk[i] = o.chunk[i];                \
        }                                                                         \
        EMU_INLINE NAME& operator=(const NAME& o) {                               \
            for (int i = 0; i < PARTS; i++) chunk[i] = o.chunk[i];                \
            return *this;                                                         \
        }                                                                         \
    };                                                                            \
    EMU_INLINE NAME make_##NAME(T x, T y, T z, T w) { return NAME(x, y, z, w); }
#define EMU_VECTOR13(T, N)                                \
    struct N##1 { T x; };                                 \
    struct N##3 { T x, y, z; };                           \
    EMU_INLINE N##1 make_##N##1(T x) { return N##1 {x}; } \
    EMU_INLINE N##3 make_##N##3(T x, T y, T z) { return N##3 {x, y, z}; }
#define EMU_VECTORS(T, N) \
    EMU_VECTOR13(T, N)    \
    EMU_VECTOR2(N##2, T)  \
    EMU_VECTOR4(N##4, T, (4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)))
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned int, uint)
EMU_VECTORS(long, long)
EMU_VECTORS(unsigned long, ulong)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
