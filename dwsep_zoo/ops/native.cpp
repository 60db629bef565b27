// Training kernels for the CPU: batch norm with its activation, and depthwise gradients.
//
// Tensors are channels_last, so that an image is a matrix of pixels x channels; their numbers are
// float or bfloat16, all sums are float. The code is for vectors of 16 channels, at least that many;
// where they are no multiple of 16, the last vector overlaps the one before it, and both write the
// same. Sums are taken over pieces whose limits do not depend on the number of threads, and added in
// order: the result is the same with any. native.py compiles this and calls it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

constexpr long V = 16;
typedef float vec __attribute__((vector_size(4 * V)));
typedef uint32_t bits __attribute__((vector_size(4 * V)));
typedef int32_t ints __attribute__((vector_size(4 * V)));
typedef uint16_t half __attribute__((vector_size(2 * V)));

enum Type { FLOAT, BF16 };
enum Act { IDENTITY, RELU, RELU6, HARD_SWISH, SILU };

INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE vec splat(float value) { return value - vec{}; }

INLINE vec load(const float *p) {
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void store(float *p, vec x) { memcpy(p, &x, sizeof x); }

// Numbers i ... i + 15 of a tensor.
template <Type type> INLINE vec load(const void *p, long i) {
    if (type == FLOAT) return load((const float *)p + i);
    half h;
    memcpy(&h, (const uint16_t *)p + i, sizeof h);
    return (vec)(__builtin_convertvector(h, bits) << 16);
}

template <Type type> INLINE void store(void *p, long i, vec x) {
    if (type == FLOAT) return store((float *)p + i, x);
#ifdef __AVX512BF16__
    const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
#else
    bits b = (bits)x;
    b = (b + 0x7fff + ((b >> 16) & 1)) >> 16; // to the nearest, ties to even
    const bits nan = (bits)(x != x);
    const half h = __builtin_convertvector((b & ~nan) | (0x7fc0 & nan), half);
#endif
    memcpy((uint16_t *)p + i, &h, sizeof h);
}

// A NaN stays one.
INLINE vec clamp(vec x, float low, float high) {
    x = x < low ? splat(low) : x;
    return x > high ? splat(high) : x;
}

// e^x to float's precision: 2^n times the series of the rest, to its seventh power.
INLINE vec exponential(vec x) {
    x = clamp(x, -87.0f, 87.0f);
    const float shift = 12582912.0f; // 1.5 * 2^23: adding it rounds to a whole number
    const vec n = (x * 1.44269504f + shift) - shift;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts
    vec p = r * (1 / 5040.0f) + 1 / 720.0f;
    p = p * r + 1 / 120.0f;
    p = p * r + 1 / 24.0f;
    p = p * r + 1 / 6.0f;
    p = p * r + 0.5f;
    p = (p * r + 1.0f) * r + 1.0f;
    return (vec)((ints)p + (__builtin_convertvector(n, ints) << 23));
}

INLINE vec sigmoid(vec x) {
    const vec d = 1.0f + exponential(-x);
#ifdef __AVX512F__
    const vec r = (vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)d); // 14 bits, after Newton 28
    return r * (2.0f - d * r);
#else
    return 1.0f / d;
#endif
}

template <Act act> INLINE vec activate(vec z) {
    switch (act) {
    case RELU: return z < 0.0f ? splat(0) : z;
    case RELU6: return clamp(z, 0.0f, 6.0f);
    case HARD_SWISH: return z * clamp(z + 3.0f, 0.0f, 6.0f) * (1 / 6.0f);
    case SILU: return z * sigmoid(z);
    default: return z;
    }
}

// grad times the activation's slope at z.
template <Act act> INLINE vec slope(vec grad, vec z) {
    switch (act) {
    case RELU: return z <= 0.0f ? splat(0) : grad;
    case RELU6: return (z <= 0.0f) | (z >= 6.0f) ? splat(0) : grad;
    case HARD_SWISH: {
        const vec middle = grad * (z * (1 / 3.0f) + 0.5f);
        return z <= -3.0f ? splat(0) : z >= 3.0f ? grad : middle;
    }
    case SILU: {
        const vec s = sigmoid(z);
        return grad * s * (1.0f + z * (1.0f - s));
    }
    default: return grad;
    }
}

// total[i] = the sum of that of all pieces, each of which has count numbers.
static void add_pieces(const float *sums, long pieces, long count, float *total) {
    for (long begin = 0; begin < count; begin += 256) {
        const long n = least(256, count - begin);
        double wide[256] = {};
        for (long i = 0; i < pieces; i++)
            for (long j = 0; j < n; j++) wide[j] += sums[i * count + begin + j];
        for (long j = 0; j < n; j++) total[begin + j] = (float)wide[j];
    }
}

// ---- batch norm and activation --------------------------------------------------------------------
//
// y = act(x * scale + shift), scale = weight / std, shift = bias - mean * scale

struct Norm {
    long rows, chans;
    double eps;
    float *mean, *var, *scale, *shift; // (chans,)

    // Rows whose sums are taken at once: the more, the less exact they are.
    long piece() const { return least((rows + 255) / 256 < 64 ? 64 : (rows + 255) / 256, 1024); }
    long pieces() const { return (rows + piece() - 1) / piece(); }
    double part(long i) const { return (double)least(piece(), rows - i * piece()) / rows; }
};

// Mean, and sum of the squares of x - mean; of 16 n channels. Sums are of x - near, near being the
// mean of the first few rows: squares of x would lose what is small beside the mean.
template <Type type, int n>
INLINE void moments(const Norm &a, const void *x, long begin, long end, long c, float *sums) {
    const long few = least(16, end - begin);
    vec near[n] = {}, one[n] = {}, two[n] = {};
    for (long row = begin; row < begin + few; row++)
        for (int i = 0; i < n; i++)
            near[i] += load<type>(x, row * a.chans + c + i * V) / (float)few;
    for (long row = begin; row < end; row++)
        for (int i = 0; i < n; i++) {
            const vec d = load<type>(x, row * a.chans + c + i * V) - near[i];
            one[i] += d;
            two[i] += d * d;
        }
    for (int i = 0; i < n; i++) {
        const vec d = one[i] / (float)(end - begin);
        store(sums + c + i * V, near[i] + d);
        store(sums + a.chans + c + i * V, two[i] - one[i] * d);
    }
}

// Mean and variance of all rows from those moments of the pieces; Chan et al. 1983, equation 2.1.
static void merge_moments(const Norm &a, const float *sums) {
    for (long begin = 0; begin < a.chans; begin += 256) {
        const long n = least(256, a.chans - begin);
        double mean[256] = {}, squares[256] = {};
        for (long i = 0; i < a.pieces(); i++)
            for (long j = 0; j < n; j++)
                mean[j] += a.part(i) * sums[i * 2 * a.chans + begin + j];
        for (long i = 0; i < a.pieces(); i++)
            for (long j = 0; j < n; j++) {
                const float *piece = sums + i * 2 * a.chans + begin + j;
                const double d = piece[0] - mean[j];
                squares[j] += piece[a.chans] / a.rows + a.part(i) * d * d;
            }
        for (long j = 0; j < n; j++) {
            a.mean[begin + j] = (float)mean[j];
            a.var[begin + j] = (float)(squares[j] < 0 ? 0 : squares[j]); // a NaN stays one
        }
    }
}

// Sums of the gradient behind the norm and of it times x - mean; of 16 n channels. Where computing
// it is work, it is kept in dx.
template <Type type, Act act, int n>
INLINE void grad_moments(const Norm &a, const void *grad, const void *x, void *dx, long begin,
                         long end, long c, float *sums) {
    vec mean[n], scale[n], shift[n], one[n] = {}, two[n] = {};
    for (int i = 0; i < n; i++) {
        mean[i] = load(a.mean + c + i * V);
        scale[i] = load(a.scale + c + i * V);
        shift[i] = load(a.shift + c + i * V);
    }
    for (long row = begin; row < end; row++)
        for (int i = 0; i < n; i++) {
            const long at = row * a.chans + c + i * V;
            const vec value = load<type>(x, at);
            const vec g = slope<act>(load<type>(grad, at), value * scale[i] + shift[i]);
            if (act == SILU) store<type>(dx, at, g);
            one[i] += g;
            two[i] += g * (value - mean[i]);
        }
    for (int i = 0; i < n; i++) {
        store(sums + c + i * V, one[i]);
        store(sums + a.chans + c + i * V, two[i]);
    }
}

// f(first channel, number of vectors) for blocks of as many channels as are left: 64, 32 or 16.
template <typename F> INLINE void for_blocks(long chans, F f) {
    long c = 0;
    for (; c + 4 * V <= chans; c += 4 * V) f(c, std::integral_constant<int, 4>());
    for (; c + 2 * V <= chans; c += 2 * V) f(c, std::integral_constant<int, 2>());
    for (; c < chans; c += V) f(least(c, chans - V), std::integral_constant<int, 1>());
}

template <Type type, Act act>
static void norm_act(Norm a, const void *x, void *y, const float *weight, const float *bias,
                     int threads) {
    const long pieces = a.pieces(), size = a.piece();
    std::vector<float> space(2 * a.chans * pieces);
    float *const sums = space.data();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < pieces; i++)
            for_blocks(a.chans, [&](long c, auto n) {
                moments<type, n>(a, x, i * size, least(a.rows, (i + 1) * size), c,
                                 sums + i * 2 * a.chans);
            });
#pragma omp single
        {
            merge_moments(a, sums);
            for (long c = 0; c < a.chans; c++) {
                a.scale[c] = (float)(weight[c] / std::sqrt(a.var[c] + a.eps));
                a.shift[c] = (float)(bias[c] - (double)a.mean[c] * a.scale[c]);
            }
        }
#pragma omp for schedule(static)
        for (long i = 0; i < pieces; i++)
            for (long row = i * size; row < least(a.rows, (i + 1) * size); row++)
                for (long c = 0; c < a.chans; c += V) {
                    const long k = least(c, a.chans - V), at = row * a.chans + k;
                    const vec z = load<type>(x, at) * load(a.scale + k) + load(a.shift + k);
                    store<type>(y, at, activate<act>(z));
                }
    }
}

template <Type type, Act act>
static void norm_act_backward(Norm a, const void *grad, const void *x, void *dx, float *dweight,
                              float *dbias, int threads) {
    const long pieces = a.pieces(), size = a.piece();
    std::vector<float> space(2 * a.chans * (pieces + 1));
    float *const sums = space.data(), *const by_x = sums + 2 * a.chans * pieces, *const rest = by_x + a.chans;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < pieces; i++)
            for_blocks(a.chans, [&](long c, auto n) {
                grad_moments<type, act, n>(a, grad, x, dx, i * size,
                                           least(a.rows, (i + 1) * size), c,
                                           sums + i * 2 * a.chans);
            });
        // dx = scale (g - sum(g) / rows - (x - mean) sum(g (x - mean)) / (rows (var + eps)))
#pragma omp single
        {
            add_pieces(sums, pieces, 2 * a.chans, sums);
            for (long c = 0; c < a.chans; c++) {
                const double inverse = 1 / (a.var[c] + a.eps);
                const double slope_x = -a.scale[c] * inverse * sums[a.chans + c] / a.rows;
                dweight[c] = (float)(sums[a.chans + c] * std::sqrt(inverse));
                dbias[c] = sums[c];
                by_x[c] = (float)slope_x;
                rest[c] = (float)(-a.scale[c] * (double)sums[c] / a.rows - a.mean[c] * slope_x);
            }
        }
#pragma omp for schedule(static)
        for (long i = 0; i < pieces; i++)
            for (long row = i * size; row < least(a.rows, (i + 1) * size); row++) {
                // Before the vector before it overwrites a part of what it was.
                const vec last = load<type>(act == SILU ? dx : grad, (row + 1) * a.chans - V);
                for (long c = 0; c < a.chans; c += V) {
                    const long k = least(c, a.chans - V), at = row * a.chans + k;
                    const vec value = load<type>(x, at), scale = load(a.scale + k);
                    vec g = c + V >= a.chans ? last : load<type>(act == SILU ? dx : grad, at);
                    if (act != SILU) g = slope<act>(g, value * scale + load(a.shift + k));
                    store<type>(dx, at, g * scale + value * load(by_x + k) + load(rest + k));
                }
            }
    }
}

// ---- depthwise gradients --------------------------------------------------------------------------
//
// One sweep over the rows of an image: each row of x meets the K rows of grad that it had a part in,
// from which come its own gradient and what it adds to the weight's. The output that tap (i, j) of
// pixel (h, w) has a part in is (h + padding - i, w + padding - j), over the stride.

struct Depthwise {
    const void *grad, *x;
    const float *weight; // (K, K, chans)
    void *dx;            // or null
    long chans, height, width, out_height, out_width, padding;
};

// Rows in a buffer are of 16 channels in float, and have K - 1 zeros on both sides.

// A whole row of x against the three of grad: all weights stay in registers.
template <Type type>
INLINE void row_3x3(const Depthwise &a, const float *const grads[3], long at, const vec taps[3][3],
                    vec dtaps[3][3]) {
    vec g[3][3];
    for (int i = 0; i < 3; i++)
        for (int j = 1; j < 3; j++) g[i][j] = load(grads[i] + (a.padding - j) * V);
    for (long w = 0; w < a.width; w++, at += a.chans) {
        const vec value = load<type>(a.x, at);
        vec sum = {};
        for (int i = 0; i < 3; i++) {
            g[i][0] = load(grads[i] + (w + a.padding) * V);
            for (int j = 0; j < 3; j++) {
                sum += taps[i][j] * g[i][j];
                dtaps[i][j] += value * g[i][j];
            }
            g[i][2] = g[i][1];
            g[i][1] = g[i][0];
        }
        if (a.dx) store<type>(a.dx, at, sum);
    }
}

// The same for stride 2, where only every other tap meets a pixel: of the rows of taps the middle
// one (first = 1) or the outer two (first = 0), and likewise of the columns.
template <Type type, int first>
INLINE void row_3x3_stride_2(const Depthwise &a, const float *const grads[3], long at,
                             const vec taps[3][3], vec dtaps[3][3]) {
    for (long q = a.padding; q < a.width + a.padding; q++, at += a.chans) {
        const vec value = load<type>(a.x, at);
        vec sum = {};
        for (int i = first; i < 3; i += 2) {
            const float *g = grads[i] + (q >> 1) * V;
            if (q & 1) {
                const vec middle = load(g);
                sum += taps[i][1] * middle;
                dtaps[i][1] += value * middle;
            } else {
                const vec left = load(g), right = load(g - V);
                sum += taps[i][0] * left + taps[i][2] * right;
                dtaps[i][0] += value * left;
                dtaps[i][2] += value * right;
            }
        }
        if (a.dx) store<type>(a.dx, at, sum);
    }
}

// A row of x against one of grad, where all weights are too many for the registers.
template <int K>
INLINE void row_stride_1(const Depthwise &a, const float *grad, const float *x, float *dx,
                         const float *taps, float *dtaps) {
    vec t[K], d[K], g[K];
    for (int j = 0; j < K; j++) t[j] = load(taps + j * V), d[j] = load(dtaps + j * V);
    for (int j = 1; j < K; j++) g[j] = load(grad + (a.padding - j) * V);
    for (long w = 0; w < a.width; w++) {
        g[0] = load(grad + (w + a.padding) * V);
        const vec value = load(x + w * V);
        vec sum = load(dx + w * V);
        for (int j = 0; j < K; j++) {
            sum += t[j] * g[j];
            d[j] += value * g[j];
        }
        store(dx + w * V, sum);
        for (int j = K - 1; j > 0; j--) g[j] = g[j - 1];
    }
    for (int j = 0; j < K; j++) store(dtaps + j * V, d[j]);
}

template <int K>
INLINE void row_stride_2(const Depthwise &a, const float *grad, const float *x, float *dx,
                         const float *taps, float *dtaps) {
    vec t[K], d[K];
    for (int j = 0; j < K; j++) t[j] = load(taps + j * V), d[j] = load(dtaps + j * V);
    for (long o = 0; o < a.out_width; o++) {
        const vec g = load(grad + o * V);
        for (int j = 0; j < K; j++) {
            const long at = (2 * o + j - a.padding) * V;
            d[j] += load(x + at) * g;
            store(dx + at, load(dx + at) + t[j] * g);
        }
    }
    for (int j = 0; j < K; j++) store(dtaps + j * V, d[j]);
}

// The 16 channels from first on (or the last 16) of one image. The buffer begins as zeros and has
// K + 3 rows: of zeros, of x, of its gradient, and the K of grad that are needed at once.
template <Type type, int K, int stride>
INLINE void image_backward(const Depthwise &a, long image, long first, float *dweight,
                           float *buffer) {
    const long c = least(first, a.chans - V), row = (a.width + 2 * (K - 1)) * V;
    const float *const zeros = buffer + (K - 1) * V;
    float *const x = buffer + (K - 1) * V + row, *const dx = x + row, *const grads = dx + row;
    float taps[K * K * V], dtaps[K * K * V] = {};
    vec t[3][3], d[3][3] = {};
    for (int i = 0; i < K * K; i++) {
        const vec tap = load(a.weight + i * a.chans + c);
        if (K == 3) t[i / 3][i % 3] = tap;
        else store(taps + i * V, tap);
    }
    long next = 0; // row of grad that is not there yet
    for (long h = 0; h < a.height; h++) {
        const long at = (image * a.height + h) * a.width * a.chans + c;
        for (; next < a.out_height && next * stride <= h + a.padding; next++) {
            const long from = (image * a.out_height + next) * a.out_width * a.chans + c;
            for (long o = 0; o < a.out_width; o++)
                store(grads + next % K * row + o * V, load<type>(a.grad, from + o * a.chans));
        }
        const float *rows[K]; // of grad, for each row of taps
        for (int i = 0; i < K; i++) {
            const long o = h + a.padding - i;
            const bool none = o < 0 || o % stride || o / stride >= a.out_height;
            rows[i] = none ? zeros : grads + o / stride % K * row;
        }
        if (K == 3) {
            if (stride == 1) row_3x3<type>(a, rows, at, t, d);
            else if ((h + a.padding) & 1) row_3x3_stride_2<type, 1>(a, rows, at, t, d);
            else row_3x3_stride_2<type, 0>(a, rows, at, t, d);
            continue;
        }
        memset(dx, 0, sizeof(float) * V * a.width);
        for (long w = 0; w < a.width; w++) store(x + w * V, load<type>(a.x, at + w * a.chans));
        for (int i = 0; i < K; i++) {
            if (rows[i] == zeros) continue;
            float *ti = taps + i * K * V, *di = dtaps + i * K * V;
            if (stride == 1) row_stride_1<K>(a, rows[i], x, dx, ti, di);
            else row_stride_2<K>(a, rows[i], x, dx, ti, di);
        }
        if (a.dx)
            for (long w = 0; w < a.width; w++)
                store<type>(a.dx, at + w * a.chans, load(dx + w * V));
    }
    if (K == 3)
        for (int i = 0; i < 9; i++) store(dtaps + i * V, d[i / 3][i % 3]);
    for (int i = 0; i < K * K; i++)
        for (long j = first - c; j < V; j++) dweight[i * a.chans + c + j] += dtaps[i * V + j];
}

template <Type type, int K, int stride>
static void depthwise_backward(const Depthwise &a, float *dweight, long images, int threads) {
    const long size = (images + 31) / 32, pieces = (images + size - 1) / size;
    // Channels together fill cache lines; the last group has what is left.
    const long group = 4 * V, groups = a.chans < group ? 1 : a.chans / group;
    const long weights = K * K * a.chans;
    std::vector<float> space(pieces * weights);
    float *const sums = space.data();
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer((K + 3) * (a.width + 2 * (K - 1)) * V);
        float *const rows = buffer.data();
#pragma omp for schedule(dynamic)
        for (long part = 0; part < pieces * groups; part++) {
            const long i = part / groups, begin = part % groups * group;
            const long end = part % groups == groups - 1 ? a.chans : begin + group;
            for (long image = i * size; image < least(images, (i + 1) * size); image++)
                for (long c = begin; c < end; c += V)
                    image_backward<type, K, stride>(a, image, c, sums + i * weights, rows);
        }
    }
    add_pieces(sums, pieces, weights, dweight);
}

// ---- what native.py calls -------------------------------------------------------------------------

#define BY_ACT(f, type, ...)                                          \
    switch (act) {                                                    \
    case RELU: return f<type, RELU>(__VA_ARGS__);                     \
    case RELU6: return f<type, RELU6>(__VA_ARGS__);                   \
    case HARD_SWISH: return f<type, HARD_SWISH>(__VA_ARGS__);         \
    case SILU: return f<type, SILU>(__VA_ARGS__);                     \
    default: return f<type, IDENTITY>(__VA_ARGS__);                   \
    }

#define BY_SIZE(type, stride)                                                        \
    switch (size) {                                                                  \
    case 3: return depthwise_backward<type, 3, stride>(a, dweight, images, threads); \
    case 5: return depthwise_backward<type, 5, stride>(a, dweight, images, threads); \
    default: return depthwise_backward<type, 7, stride>(a, dweight, images, threads); \
    }

extern "C" {

// y of x, both (rows, chans). stats is written: mean, biased variance, scale and shift, (4, chans).
void dwsep_norm_act(const void *x, void *y, const float *weight, const float *bias, float *stats,
                    long rows, long chans, double eps, int bf16, int act, int threads) {
    const Norm a = {rows, chans, eps, stats, stats + chans, stats + 2 * chans, stats + 3 * chans};
    if (bf16) BY_ACT(norm_act, BF16, a, x, y, weight, bias, threads)
    BY_ACT(norm_act, FLOAT, a, x, y, weight, bias, threads)
}

// The gradients of x, (rows, chans), of weight and of bias, (chans,).
void dwsep_norm_act_backward(const void *grad, const void *x, float *stats, void *dx,
                             float *dweight, float *dbias, long rows, long chans, double eps,
                             int bf16, int act, int threads) {
    const Norm a = {rows, chans, eps, stats, stats + chans, stats + 2 * chans, stats + 3 * chans};
    if (bf16) BY_ACT(norm_act_backward, BF16, a, grad, x, dx, dweight, dbias, threads)
    BY_ACT(norm_act_backward, FLOAT, a, grad, x, dx, dweight, dbias, threads)
}

// The gradients of x, if dx is not null, and of weight, (size, size, chans). size: 3, 5 or 7;
// stride: 1 or 2; padding: 0 ... size - 1.
void dwsep_depthwise_backward(const void *grad, const void *x, const float *weight, void *dx,
                              float *dweight, long images, long chans, long height, long width,
                              long out_height, long out_width, int size, int stride, int padding,
                              int bf16, int threads) {
    const Depthwise a = {grad, x, weight, dx, chans, height, width, out_height, out_width, padding};
    if (bf16 && stride == 1) BY_SIZE(BF16, 1)
    if (bf16) BY_SIZE(BF16, 2)
    if (stride == 1) BY_SIZE(FLOAT, 1)
    BY_SIZE(FLOAT, 2)
}
}
