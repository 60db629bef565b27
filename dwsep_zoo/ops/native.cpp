// Training kernels for the CPU: batch norm with its activation, and depthwise gradients.
//
// Tensors are channels_last, so an image is a matrix of pixels x channels. Elements are float or
// bfloat16, sums are float. The code works on vectors of V channels, 16, 8 or 4, and needs at least V
// of them. If their number is no multiple of V, the last vector overlaps the one before it, and both
// write the same values. Sums are computed over pieces that do not depend on the number of threads, and
// added in order: any number of threads gives the same result. native.py compiles and calls this.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined __AVX512F__ && VECTOR == 16
#define AVX512
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

constexpr long V = VECTOR;
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

// Elements i ... i + V - 1 of a tensor.
template <Type type> INLINE vec load(const void *p, long i) {
    if (type == FLOAT) return load((const float *)p + i);
    half h;
    memcpy(&h, (const uint16_t *)p + i, sizeof h);
#ifdef AVX512 // one instruction, which GCC does not generate
    return (vec)((bits)_mm512_cvtepu16_epi32((__m256i)h) << 16);
#else
    return (vec)(__builtin_convertvector(h, bits) << 16);
#endif
}

template <Type type> INLINE void store(void *p, long i, vec x) {
    if (type == FLOAT) return store((float *)p + i, x);
#if defined AVX512 && defined __AVX512BF16__
    const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
#else
    bits b = (bits)x;
    b = (b + 0x7fff + ((b >> 16) & 1)) >> 16; // to the nearest, ties to even
    const bits nan = (bits)(x != x);
    const half h = __builtin_convertvector((b & ~nan) | (0x7fc0 & nan), half);
#endif
    memcpy((uint16_t *)p + i, &h, sizeof h);
}

// Maximum and minimum. An x that is NaN stays NaN.
INLINE vec at_least(vec x, float low) {
#ifdef AVX512
    return (vec)_mm512_max_ps((__m512)splat(low), (__m512)x);
#else
    return x < low ? splat(low) : x;
#endif
}
INLINE vec at_most(vec x, float high) {
#ifdef AVX512
    return (vec)_mm512_min_ps((__m512)splat(high), (__m512)x);
#else
    return x > high ? splat(high) : x;
#endif
}
INLINE vec clamp(vec x, float low, float high) { return at_most(at_least(x, low), high); }

// e^x to float precision: 2^n times the series of the remainder, up to the seventh power.
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
#ifdef AVX512
    const vec r = (vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)d); // 14 bits, 28 after a Newton step
    return r * (2.0f - d * r);
#else
    return 1.0f / d;
#endif
}

template <Act act> INLINE vec activate(vec z) {
    switch (act) {
    case RELU: return at_least(z, 0.0f);
    case RELU6: return clamp(z, 0.0f, 6.0f);
    case HARD_SWISH: return z * clamp(z + 3.0f, 0.0f, 6.0f) * (1 / 6.0f);
    case SILU: return z * sigmoid(z);
    default: return z;
    }
}

// grad times the slope of the activation at z.
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

// total[i] = sum of element i over all pieces of count numbers.
static void add_pieces(const float *sums, long pieces, long count, float *total) {
    for (long begin = 0; begin < count; begin += 256) {
        const long n = least(256, count - begin);
        double wide[256] = {};
        for (long i = 0; i < pieces; i++)
            for (long j = 0; j < n; j++) wide[j] += sums[i * count + begin + j];
        for (long j = 0; j < n; j++) total[begin + j] = (float)wide[j];
    }
}

// Transpose filters, (chans, size), to taps, (size, chans), rounded to the images' type as by autocast.
static std::vector<float> channels_last(const float *filters, long chans, long size, bool bf16) {
    std::vector<float> taps(size * chans);
    for (long c = 0; c < chans; c++)
        for (long i = 0; i < size; i++) taps[i * chans + c] = filters[c * size + i];
    for (long i = 0, end = bf16 ? size * chans : 0; i < end; i += V) {
        float *const at = &taps[least(i, size * chans - V)];
        uint16_t rounded[V];
        store<BF16>(rounded, 0, load(at));
        store(at, load<BF16>(rounded, 0));
    }
    return taps;
}

static void channels_first(const float *taps, long chans, long size, float *filters) {
    for (long c = 0; c < chans; c++)
        for (long i = 0; i < size; i++) filters[c * size + i] = taps[i * chans + c];
}

// ---- batch norm and activation --------------------------------------------------------------------
//
// y = act(x * scale + shift), scale = weight / std, shift = bias - mean * scale

// Adds each of these numbers over several processes, in place. Null: there is one process.
typedef void (*Add)(double *numbers, long count);

struct Norm {
    long rows, chans; // of this process
    double eps;
    float *mean, *var, *scale, *shift; // (chans,), of the rows of all processes
    Add add;

    // Rows per sum: more rows make it less exact.
    long piece() const { return least((rows + 255) / 256 < 64 ? 64 : (rows + 255) / 256, 1024); }
    long pieces() const { return (rows + piece() - 1) / piece(); }
    double share(long i) const { return (double)least(piece(), rows - i * piece()) / rows; }
};

// Mean, and sum of squares of x - mean, for V n channels. The sums are over x - near, where near is
// the mean of the first few rows: squares of x would lose small deviations from a large mean.
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

// Mean and variance of the rows of all processes from those of this one. As double, sums of squares
// are exact enough.
static void merge_processes(const Norm &a, double *mean, double *var) {
    std::vector<double> sums;
    for (long c = 0; c < a.chans; c++) sums.push_back(a.rows * mean[c]);
    for (long c = 0; c < a.chans; c++) sums.push_back(a.rows * (var[c] + mean[c] * mean[c]));
    sums.push_back(a.rows);
    a.add(sums.data(), sums.size());
    for (long c = 0; c < a.chans; c++) {
        mean[c] = sums[c] / sums.back();
        var[c] = sums[a.chans + c] / sums.back() - mean[c] * mean[c];
    }
}

// Mean, variance, scale and shift of each channel from the moments of the pieces. Piece i has the
// share(i) of the rows; Chan et al. 1983, equation 2.1.
template <typename F>
static void merge_moments(const Norm &a, const float *sums, long pieces, F share,
                          const float *weight, const float *bias) {
    std::vector<double> means(a.chans), vars(a.chans);
    for (long begin = 0; begin < a.chans; begin += 256) {
        const long n = least(256, a.chans - begin);
        double *const mean = &means[begin], *const squares = &vars[begin];
        for (long i = 0; i < pieces; i++)
            for (long j = 0; j < n; j++) mean[j] += share(i) * sums[i * 2 * a.chans + begin + j];
        for (long i = 0; i < pieces; i++)
            for (long j = 0; j < n; j++) {
                const float *piece = sums + i * 2 * a.chans + begin + j;
                const double d = piece[0] - mean[j];
                squares[j] += piece[a.chans] / a.rows + share(i) * d * d;
            }
    }
    if (a.add) merge_processes(a, means.data(), vars.data());
    for (long c = 0; c < a.chans; c++) {
        a.mean[c] = (float)means[c];
        a.var[c] = (float)(vars[c] < 0 ? 0 : vars[c]); // NaN stays NaN
        a.scale[c] = (float)(weight[c] / std::sqrt(a.var[c] + a.eps));
        a.shift[c] = (float)(bias[c] - (double)a.mean[c] * a.scale[c]);
    }
}

// The gradient after the norm is stored if computing it is expensive.
constexpr bool is_kept(Act act) { return act == SILU; }

// Sums of the gradient after the norm, and of this gradient times x - mean, for V n channels. dx may
// store the gradient.
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
            if (is_kept(act)) store<type>(dx, at, g);
            one[i] += g;
            two[i] += g * (value - mean[i]);
        }
    for (int i = 0; i < n; i++) {
        store(sums + c + i * V, one[i]);
        store(sums + a.chans + c + i * V, two[i]);
    }
}

// Call f(first channel, number of vectors) for blocks of 4 V, 2 V or V channels, as many as are left.
template <typename F> INLINE void for_blocks(long chans, F f) {
    long c = 0;
    for (; c + 4 * V <= chans; c += 4 * V) f(c, std::integral_constant<int, 4>());
    for (; c + 2 * V <= chans; c += 2 * V) f(c, std::integral_constant<int, 2>());
    for (; c < chans; c += V) f(least(c, chans - V), std::integral_constant<int, 1>());
}

// Mean, variance, scale and shift of each channel.
template <Type type>
static void find_stats(const Norm &a, const void *x, const float *weight, const float *bias,
                       int threads) {
    const long pieces = a.pieces(), size = a.piece();
    std::vector<float> space(2 * a.chans * pieces);
    float *const sums = space.data();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < pieces; i++)
        for_blocks(a.chans, [&](long c, auto n) {
            moments<type, n>(a, x, i * size, least(a.rows, (i + 1) * size), c,
                             sums + i * 2 * a.chans);
        });
    merge_moments(a, sums, pieces, [&](long i) { return a.share(i); }, weight, bias);
}

// Normalise with the results of find_stats or merge_moments, and activate.
template <Type type, Act act>
static void apply(const Norm &a, const void *x, void *y, int threads) {
    const long pieces = a.pieces(), size = a.piece();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < pieces; i++)
        for (long row = i * size; row < least(a.rows, (i + 1) * size); row++)
            for (long c = 0; c < a.chans; c += V) {
                const long k = least(c, a.chans - V), at = row * a.chans + k;
                const vec z = load<type>(x, at) * load(a.scale + k) + load(a.shift + k);
                store<type>(y, at, activate<act>(z));
            }
}

template <Type type, Act act>
static void norm_act(const Norm &a, const void *x, void *y, const float *weight, const float *bias,
                     int threads) {
    find_stats<type>(a, x, weight, bias, threads);
    apply<type, act>(a, x, y, threads);
}

// dx = scale (g - sum(g) / rows - (x - mean) sum(g (x - mean)) / (rows (var + eps))), where g is the
// gradient after the norm: g scale + x by_x + rest. The sums for dx are those of all processes; weight
// and bias get this process's part of their gradients.
struct Slopes {
    std::vector<float> by_x, rest;

    Slopes() = default;
    Slopes(const Norm &a, const float *sums, float *dweight, float *dbias)
        : by_x(a.chans), rest(a.chans) {
        std::vector<double> all(sums, sums + 2 * a.chans);
        all.push_back(a.rows);
        if (a.add) a.add(all.data(), all.size());
        for (long c = 0; c < a.chans; c++) {
            const double inverse = 1 / (a.var[c] + a.eps);
            const double slope_x = -a.scale[c] * inverse * all[a.chans + c] / all.back();
            dweight[c] = (float)(sums[a.chans + c] * std::sqrt(inverse));
            dbias[c] = sums[c];
            by_x[c] = (float)slope_x;
            rest[c] = (float)(-a.scale[c] * all[c] / all.back() - a.mean[c] * slope_x);
        }
    }
};

// dx may contain the gradient after the norm.
template <Type type, Act act>
static void grad_of_input(const Norm &a, const void *grad, const void *x, void *dx,
                          const Slopes &slopes, int threads) {
    const float *const by_x = slopes.by_x.data(), *const rest = slopes.rest.data();
    const long pieces = a.pieces(), size = a.piece();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < pieces; i++)
        for (long row = i * size; row < least(a.rows, (i + 1) * size); row++) {
            // Load it before the previous vector overwrites a part of it.
            const vec last = load<type>(grad, (row + 1) * a.chans - V);
            for (long c = 0; c < a.chans; c += V) {
                const long k = least(c, a.chans - V), at = row * a.chans + k;
                const vec value = load<type>(x, at), scale = load(a.scale + k);
                const vec from = c + V >= a.chans ? last : load<type>(grad, at);
                const vec g = slope<act>(from, value * scale + load(a.shift + k));
                store<type>(dx, at, g * scale + value * load(by_x + k) + load(rest + k));
            }
        }
}

// Sums of the gradient after the norm over all rows; dx stores the gradient if it is kept.
template <Type type, Act act>
static Slopes find_slopes(const Norm &a, const void *grad, const void *x, void *dx, float *dweight,
                          float *dbias, int threads) {
    const long pieces = a.pieces(), size = a.piece();
    std::vector<float> space(2 * a.chans * pieces);
    float *const sums = space.data();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < pieces; i++)
        for_blocks(a.chans, [&](long c, auto n) {
            grad_moments<type, act, n>(a, grad, x, dx, i * size, least(a.rows, (i + 1) * size), c,
                                       sums + i * 2 * a.chans);
        });
    add_pieces(sums, pieces, 2 * a.chans, sums);
    return Slopes(a, sums, dweight, dbias);
}

template <Type type, Act act>
static void norm_act_backward(const Norm &a, const void *grad, const void *x, void *dx,
                              float *dweight, float *dbias, int threads) {
    const Slopes slopes = find_slopes<type, act>(a, grad, x, dx, dweight, dbias, threads);
    constexpr Act left = is_kept(act) ? IDENTITY : act;
    grad_of_input<type, left>(a, is_kept(act) ? dx : grad, x, dx, slopes, threads);
}

// ---- depthwise gradients, 5 x 5 and 7 x 7 -----------------------------------------------------------
//
// One sweep over the rows of an image: each row of x meets the K rows of grad that it contributed to.
// They give its own gradient and its contribution to the weight's gradient. Pixel (h, w) contributes
// with tap (i, j) to the output (h + padding - i, w + padding - j), divided by the stride.

struct Depthwise {
    const void *grad, *x;
    const float *weight; // (K, K, chans)
    void *dx;            // may be null
    long chans, height, width, out_height, out_width, padding;
};

// Rows in a buffer have V channels of float, and K - 1 zeros on both sides.

// One row of x with one row of grad: the registers cannot hold all weights.
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

// V channels of one image, starting at first (or the last V). The buffer is initially zero and has
// K + 3 rows: one of zeros, one of x, one of its gradient, and K of grad.
template <Type type, int K, int stride>
INLINE void image_backward(const Depthwise &a, long image, long first, float *dweight,
                           float *buffer) {
    const long c = least(first, a.chans - V), row = (a.width + 2 * (K - 1)) * V;
    const float *const zeros = buffer + (K - 1) * V;
    float *const x = buffer + (K - 1) * V + row, *const dx = x + row, *const grads = dx + row;
    float taps[K * K * V], dtaps[K * K * V] = {};
    for (int i = 0; i < K * K; i++) store(taps + i * V, load(a.weight + i * a.chans + c));
    long next = 0; // row of grad that is not there yet
    for (long h = 0; h < a.height; h++) {
        const long at = (image * a.height + h) * a.width * a.chans + c;
        for (; next < a.out_height && next * stride <= h + a.padding; next++) {
            const long from = (image * a.out_height + next) * a.out_width * a.chans + c;
            for (long o = 0; o < a.out_width; o++)
                store(grads + next % K * row + o * V, load<type>(a.grad, from + o * a.chans));
        }
        const float *rows[K]; // rows of grad, one per row of taps
        for (int i = 0; i < K; i++) {
            const long o = h + a.padding - i;
            const bool none = o < 0 || o % stride || o / stride >= a.out_height;
            rows[i] = none ? zeros : grads + o / stride % K * row;
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
    for (int i = 0; i < K * K; i++)
        for (long j = first - c; j < V; j++) dweight[i * a.chans + c + j] += dtaps[i * V + j];
}

template <Type type, int K, int stride>
static void depthwise_backward(const Depthwise &a, float *dweight, long images, int threads) {
    const long size = (images + 31) / 32, pieces = (images + size - 1) / size;
    // Groups of channels fill cache lines; the last group has the rest.
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

// ---- batch norm, activation and 3 x 3 depthwise convolution -----------------------------------------
//
// Without a norm, mean and shift are 0 and scale is 1.
//
// The tensor between norm and convolution is never stored: both directions recompute it from x, one
// row of an image at a time. A block of channels is processed together, so that memory is read in
// long pieces; its rows are stored as float, vector by vector.
//
// If another norm and activation follow, the convolution computes the moments of its output, and the
// backward pass reads the gradient after that activation: the gradient in between is not stored.

struct NormDepthwise {
    Norm norm;
    const void *x;
    std::vector<float> taps; // (3, 3, chans)
    long images, height, width, out_height, out_width, padding;

    static constexpr long block = 8 * V; // channels
    long blocks() const { return norm.chans < block ? 1 : norm.chans / block; }
    long begin(long i) const { return i * block; }
    long end(long i) const { return i + 1 == blocks() ? norm.chans : (i + 1) * block; }
    long vectors(long i) const { return (end(i) - begin(i) + V - 1) / V; }
    // Images per sum.
    long piece() const { return (images + 31) / 32; }
    long pieces() const { return (images + piece() - 1) / piece(); }
    double share(long i) const { return (double)least(piece(), images - i * piece()) / images; }
};

// Copy pixels of V k channels from memory to rows in a buffer, with this distance between vectors.
template <Type type, typename F>
INLINE void fill(const void *from, long at, long pixels, long chans, long wide, float *to,
                 long apart, F f) {
    for (long w = 0; w < pixels; w++, at += chans, to += V) {
        float *row = to;
        for (long c = 0; c < wide; c += V, row += apart) {
            const long k = least(c, wide - V);
            store(row, f(load<type>(from, at + k), at + k, k));
        }
    }
}

// Prefetch pixels begin to end of such a row before they are filled: they lie too far apart for the
// processor's own prefetcher.
template <Type type>
INLINE void fetch(const void *from, long at, long begin, long end, long chans, long wide) {
    constexpr long size = type == BF16 ? sizeof(uint16_t) : sizeof(float), line = 64, to_l2 = 2;
    for (long w = begin; w < end; w++)
        for (long c = 0; c < size * wide; c += line)
            __builtin_prefetch((const char *)from + size * (at + w * chans) + c, 0, to_l2);
}

// Three rows of pixels with two zeros on both sides, for each of several vectors of channels.
struct Rows {
    long length, count;
    std::vector<float> space;
    float *begin; // aligned to a cache line

    Rows(long width, long vectors)
        : length((width + 4) * V), count(vectors), space((3 * vectors + 1) * length + V) {
        begin = (float *)(((uintptr_t)space.data() + 4 * V - 1) / (4 * V) * (4 * V));
    }
    // Pixel 0 of a stored row, or of the row of zeros.
    float *at(long row, long vector) const {
        return begin + (row % 3 * count + vector) * length + 2 * V;
    }
    const float *none() const { return begin + 3 * count * length + 2 * V; }
};

// Call f(piece of the images, its first image, the image after its last, part of the channels, rows
// of that width).
template <typename F>
static void for_pieces(const NormDepthwise &a, long width, int threads, F f) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long i = 0; i < a.pieces() * a.blocks(); i++) {
        const long piece = i / a.blocks(), part = i % a.blocks();
        Rows rows(width, a.vectors(part));
        f(piece, piece * a.piece(), least(a.images, (piece + 1) * a.piece()), part, rows);
    }
}

// A row of y, and the sums of y - near and of its square.
template <Type type, int stride, bool counted>
INLINE void convolve_row(const float *top, const float *middle, const float *bottom,
                         const vec taps[9], void *y, long at, long width, long chans, vec near,
                         vec &one, vec &two) {
    const float *row[3] = {top, middle, bottom};
    for (long w = 0; w < width; w++, at += chans) {
        vec sums[3];
        for (int i = 0; i < 3; i++, row[i - 1] += stride * V) {
            sums[i] = taps[3 * i] * load(row[i]);
            for (int j = 1; j < 3; j++) sums[i] += taps[3 * i + j] * load(row[i] + j * V);
        }
        const vec sum = sums[0] + sums[1] + sums[2];
        store<type>(y, at, sum);
        if (!counted) continue;
        const vec d = load<type>(y, at) - near; // rounded, as the norm reads it
        one += d;
        two += d * d;
    }
}

// Process several images. If counted, moments gets mean and sum of squared deviations, (2, chans).
template <Type type, Act act, int stride, bool counted>
static void convolve(const NormDepthwise &a, long first, long last, long part, Rows &rows, void *y,
                     float *moments) {
    const long chans = a.norm.chans, begin = a.begin(part), wide = a.end(part) - begin;
    const float *const scale = a.norm.scale + begin, *const shift = a.norm.shift + begin;
    const auto behind_norm = [=](vec x, long, long c) {
        return activate<act>(x * load(scale + c) + load(shift + c));
    };
    struct Sums {
        vec mean, squares, one, two; // one and two: current image, around the mean so far
    };
    const long vectors = a.vectors(part);
    std::vector<Sums> own(counted ? vectors : 0, Sums{});
    const float width = a.out_width, pixels = (float)a.out_height * a.out_width;
    for (long image = first; image < last; image++) {
        long next = 0; // next row of x to load
        for (long o = 0; o < a.out_height; o++) {
            const long top = o * stride - a.padding;
            for (; next < a.height && next <= top + 2; next++) {
                const long at = (image * a.height + next) * a.width * chans + begin;
                fill<type>(a.x, at, a.width, chans, wide, rows.at(next, 0), rows.length,
                           behind_norm);
            }
            const long ahead = (image * a.height + next) * a.width * chans + begin;
            const long number = least(stride, a.height - next) * a.width;
            const long share = number / vectors + 1; // pixels to fetch beside each vector
            for (long k = 0; k < vectors; k++) {
                fetch<type>(a.x, ahead, k * share, least((k + 1) * share, number), chans, wide);
                const long c = begin + least(k * V, wide - V);
                const long at = (image * a.out_height + o) * a.out_width * chans + c;
                const float *row[3];
                vec taps[9];
                for (int i = 0; i < 3; i++) {
                    const bool inside = top + i >= 0 && top + i < a.height;
                    row[i] = (inside ? rows.at(top + i, k) : rows.none()) - a.padding * V;
                    for (int j = 0; j < 3; j++)
                        taps[3 * i + j] = load(&a.taps[(3 * i + j) * chans + c]);
                }
                const auto write_row = [&](vec near, vec &one, vec &two) {
                    convolve_row<type, stride, counted>(row[0], row[1], row[2], taps, y, at,
                                                        a.out_width, chans, near, one, two);
                };
                vec one = {}, two = {};
                if (!counted) {
                    write_row(vec{}, one, two);
                    continue;
                }
                if (image == first && o == 0) { // process the first row twice: there is no mean yet
                    write_row(vec{}, one, two);
                    own[k].mean = one / width;
                }
                one = own[k].one, two = own[k].two;
                write_row(own[k].mean, one, two);
                own[k].one = one, own[k].two = two;
            }
        }
        const float before = (image - first) * pixels; // Chan et al. 1983, equation 2.1
        for (Sums &s : own) {
            const vec d = s.one / pixels;
            s.squares += s.two - s.one * d + d * d * (before * pixels / (before + pixels));
            s.mean += d * (pixels / (before + pixels));
            s.one = s.two = vec{};
        }
    }
    for (long k = 0; k < (long)own.size(); k++) {
        const long c = begin + least(k * V, wide - V);
        store(moments + c, own[k].mean);
        store(moments + chans + c, own[k].squares);
    }
}

template <Type type, Act act, int stride>
static void norm_act_depthwise(const NormDepthwise &a, void *y, const float *weight,
                               const float *bias, float *moments, int threads) {
    if (weight) find_stats<type>(a.norm, a.x, weight, bias, threads);
    for_pieces(a, a.width, threads, [&](long piece, long first, long last, long part, Rows &rows) {
        if (moments)
            convolve<type, act, stride, true>(a, first, last, part, rows, y,
                                              moments + piece * 2 * a.norm.chans);
        else convolve<type, act, stride, false>(a, first, last, part, rows, y, nullptr);
    });
}

// The gradient of y, loaded into rows: unchanged, or through another norm and its activation, whose
// input is y.
struct Incoming {
    const void *grad, *y;
    Norm norm;
    Slopes slopes;
    void (*fill)(const Incoming &a, long at, long pixels, long chans, long begin, long wide,
                 float *to, long apart);
};

template <Type type>
static void fill_as_it_is(const Incoming &a, long at, long pixels, long chans, long begin,
                          long wide, float *to, long apart) {
    fill<type>(a.grad, at + begin, pixels, chans, wide, to, apart,
               [](vec g, long, long) { return g; });
}

template <Type type, Act act>
static void fill_through_norm(const Incoming &a, long at, long pixels, long chans, long begin,
                              long wide, float *to, long apart) {
    const void *const y = a.y;
    const float *const scale = a.norm.scale + begin, *const shift = a.norm.shift + begin;
    const float *const by_y = &a.slopes.by_x[begin], *const rest = &a.slopes.rest[begin];
    fill<type>(a.grad, at + begin, pixels, chans, wide, to, apart, [=](vec g, long at, long c) {
        const vec value = load<type>(y, at), by = load(scale + c);
        return slope<act>(g, value * by + load(shift + c)) * by + value * load(by_y + c) +
               load(rest + c);
    });
}

template <Type type, Act act>
static Incoming through_norm(const Norm &n, const void *grad, const void *y, void *kept,
                             float *dweight, float *dbias, int threads) {
    constexpr Act left = is_kept(act) ? IDENTITY : act;
    return {is_kept(act) ? kept : grad, y, n,
            find_slopes<type, act>(n, grad, y, kept, dweight, dbias, threads),
            fill_through_norm<type, left>};
}

// One row of x with the rows of grad that it contributed to. With stride 2 these use the middle row of
// taps (top = 1) or the outer two (top = 0), and likewise for columns. dx receives the gradient after
// the norm. sums receives the sums of the 9 taps, of that gradient, and of it times x - mean.
template <Type type, Act act, int stride, int top>
INLINE void row_backward(const NormDepthwise &a, const float *const grads[3], long at, long c,
                         void *dx, float *sums) {
    const long chans = a.norm.chans, width = a.width, padding = a.padding;
    const void *const from = a.x;
    const float *const g0 = grads[0], *const g1 = grads[1], *const g2 = grads[2];
    const vec scale = load(a.norm.scale + c), shift = load(a.norm.shift + c);
    const vec mean = load(a.norm.mean + c);
    vec taps[9], dtaps[9] = {}, one = {}, two = {};
    for (int i = 0; i < 9; i++) taps[i] = load(&a.taps[i * chans + c]);
    for (long w = 0; w < width; w++, at += chans) {
        const vec x = load<type>(from, at), z = x * scale + shift, y = activate<act>(z);
        vec sum[3] = {};
        const auto meet = [&](auto left) {
            for (int i = top; i < 3; i += stride)
                for (int j = left; j < 3; j += stride) {
                    const long o = (w + padding - j) / stride * V;
                    const vec g = load((i == 0 ? g0 : i == 1 ? g1 : g2) + o);
                    sum[i] += taps[3 * i + j] * g;
                    dtaps[3 * i + j] += y * g;
                }
        };
        if (stride == 1 || (w + padding) % 2 == 0) meet(std::integral_constant<int, 0>());
        else meet(std::integral_constant<int, 1>());
        const vec g = slope<act>(sum[0] + sum[1] + sum[2], z);
        if (dx) store<type>(dx, at, g);
        one += g;
        two += g * (x - mean);
    }
    for (int i = 0; i < 9; i++) store(sums + i * V, load(sums + i * V) + dtaps[i]);
    store(sums + 9 * V, load(sums + 9 * V) + one);
    store(sums + 10 * V, load(sums + 10 * V) + two);
}

template <Type type, Act act, int stride>
static void convolve_backward(const NormDepthwise &a, long first, long last, long part, Rows &rows,
                              const Incoming &incoming, void *dx, float *sums) {
    const long chans = a.norm.chans, begin = a.begin(part), wide = a.end(part) - begin;
    const long vectors = a.vectors(part), share = a.width / vectors + 1;
    const long grad_share = a.out_width / vectors + 1;
    std::vector<float> own(vectors * 11 * V);
    for (long image = first; image < last; image++) {
        long next = 0; // row of grad that is not there yet
        for (long h = 0; h < a.height; h++) {
            for (; next < a.out_height && next * stride <= h + a.padding; next++)
                incoming.fill(incoming, (image * a.out_height + next) * a.out_width * chans,
                              a.out_width, chans, begin, wide, rows.at(next, 0), rows.length);
            const float *grads[3];
            for (int i = 0; i < 3; i++) {
                const long o = h + a.padding - i;
                const bool none = o < 0 || o % stride || o / stride >= a.out_height;
                grads[i] = none ? nullptr : rows.at(o / stride, 0);
            }
            const long at = (image * a.height + h) * a.width * chans + begin;
            const long ahead = at + a.width * chans;
            const long grad_ahead = (image * a.out_height + next) * a.out_width * chans + begin;
            const long grads_ahead = next * stride <= h + 1 + a.padding ? a.out_width : 0;
            for (long k = 0; k < vectors; k++) {
                const long from = k * grad_share, to = least(from + grad_share, grads_ahead);
                fetch<type>(a.x, ahead, k * share, least((k + 1) * share, a.width), chans, wide);
                fetch<type>(incoming.grad, grad_ahead, from, to, chans, wide);
                if (incoming.y) fetch<type>(incoming.y, grad_ahead, from, to, chans, wide);
                const float *row[3];
                for (int i = 0; i < 3; i++)
                    row[i] = grads[i] ? grads[i] + k * rows.length : rows.none();
                const long c = least(k * V, wide - V);
                if (stride == 2 && (h + a.padding) % 2)
                    row_backward<type, act, stride, 1>(a, row, at + c, begin + c, dx,
                                                       &own[k * 11 * V]);
                else
                    row_backward<type, act, stride, 0>(a, row, at + c, begin + c, dx,
                                                       &own[k * 11 * V]);
            }
        }
    }
    for (long k = 0; k < vectors; k++)
        for (int i = 0; i < 11; i++)
            store(sums + i * chans + begin + least(k * V, wide - V), load(&own[(k * 11 + i) * V]));
}

template <Type type, Act act, int stride>
static void norm_act_depthwise_backward(const NormDepthwise &a, const Incoming &incoming, void *dx,
                                        float *dweight, float *dbias, float *dtaps, int threads) {
    const long chans = a.norm.chans, pieces = a.pieces();
    std::vector<float> space(pieces * 11 * chans);
    float *const sums = space.data();
    for_pieces(a, a.out_width, threads,
               [&](long piece, long first, long last, long part, Rows &rows) {
                   convolve_backward<type, act, stride>(a, first, last, part, rows, incoming, dx,
                                                        sums + piece * 11 * chans);
               });
    add_pieces(sums, pieces, 11 * chans, sums);
    channels_first(sums, chans, 9, dtaps);
    if (!dweight) return;
    const Slopes slopes(a.norm, sums + 9 * chans, dweight, dbias);
    grad_of_input<type, IDENTITY>(a.norm, dx, a.x, dx, slopes, threads);
}

// ---- called by native.py --------------------------------------------------------------------------

#define BY_ACT(f, type, act, ...)                                     \
    switch (act) {                                                    \
    case RELU: return f<type, RELU>(__VA_ARGS__);                     \
    case RELU6: return f<type, RELU6>(__VA_ARGS__);                   \
    case HARD_SWISH: return f<type, HARD_SWISH>(__VA_ARGS__);         \
    case SILU: return f<type, SILU>(__VA_ARGS__);                     \
    default: return f<type, IDENTITY>(__VA_ARGS__);                   \
    }

#define BY_ACT_AND_STRIDE(f, type, ...)                                                  \
    switch (act + (stride - 1) * (SILU + 1)) {                                           \
    case RELU: return f<type, RELU, 1>(__VA_ARGS__);                                     \
    case RELU6: return f<type, RELU6, 1>(__VA_ARGS__);                                   \
    case HARD_SWISH: return f<type, HARD_SWISH, 1>(__VA_ARGS__);                         \
    case SILU: return f<type, SILU, 1>(__VA_ARGS__);                                     \
    case IDENTITY: return f<type, IDENTITY, 1>(__VA_ARGS__);                             \
    case RELU + SILU + 1: return f<type, RELU, 2>(__VA_ARGS__);                          \
    case RELU6 + SILU + 1: return f<type, RELU6, 2>(__VA_ARGS__);                        \
    case HARD_SWISH + SILU + 1: return f<type, HARD_SWISH, 2>(__VA_ARGS__);              \
    case SILU + SILU + 1: return f<type, SILU, 2>(__VA_ARGS__);                          \
    default: return f<type, IDENTITY, 2>(__VA_ARGS__);                                   \
    }

#define BY_SIZE(type, stride)                                                       \
    if (size == 5) return depthwise_backward<type, 5, stride>(a, dweight, images, threads); \
    return depthwise_backward<type, 7, stride>(a, dweight, images, threads);

static Norm norm_of(long rows, long chans, double eps, float *stats, Add add) {
    return {rows, chans, eps, stats, stats + chans, stats + 2 * chans, stats + 3 * chans, add};
}

// The stats of an identity norm.
static std::vector<float> no_norm(long chans) {
    std::vector<float> stats(4 * chans);
    std::fill(stats.begin() + chans, stats.begin() + 3 * chans, 1.0f); // variance and scale
    return stats;
}

static void apply_by_type(const Norm &a, const void *y, void *z, int bf16, int act, int threads) {
    if (bf16) BY_ACT(apply, BF16, act, a, y, z, threads)
    BY_ACT(apply, FLOAT, act, a, y, z, threads)
}

static Incoming incoming_by_type(const Norm &n, const void *grad, const void *y, void *kept,
                                 float *dweight, float *dbias, int bf16, int act, int threads) {
    if (bf16) BY_ACT(through_norm, BF16, act, n, grad, y, kept, dweight, dbias, threads)
    BY_ACT(through_norm, FLOAT, act, n, grad, y, kept, dweight, dbias, threads)
}

extern "C" {

// y from x, both (rows, chans). Writes stats: mean, biased variance, scale and shift, (4, chans). add
// is called once for each norm, on the calling thread, with 2 chans sums and the number of rows.
void dwsep_norm_act(const void *x, void *y, const float *weight, const float *bias, float *stats,
                    long rows, long chans, double eps, int bf16, int act, int threads, Add add) {
    const Norm a = norm_of(rows, chans, eps, stats, add);
    if (bf16) BY_ACT(norm_act, BF16, act, a, x, y, weight, bias, threads)
    BY_ACT(norm_act, FLOAT, act, a, x, y, weight, bias, threads)
}

// Moves running statistics, (chans,), towards those of a batch with count values a channel. batches,
// the number of batches, may be null.
void dwsep_update_running(const float *stats, float *mean, float *var, long *batches,
                          double momentum, long count, long chans) {
    const float share = momentum, unbiased = double(count) / (count - 1);
    for (long c = 0; c < chans; c++) {
        mean[c] += share * (stats[c] - mean[c]);
        var[c] += share * (stats[chans + c] * unbiased - var[c]);
    }
    if (batches) ++*batches;
}

// Gradients of x, (rows, chans), and of weight and bias, (chans,).
void dwsep_norm_act_backward(const void *grad, const void *x, float *stats, void *dx,
                             float *dweight, float *dbias, long rows, long chans, double eps,
                             int bf16, int act, int threads, Add add) {
    const Norm a = norm_of(rows, chans, eps, stats, add);
    if (bf16) BY_ACT(norm_act_backward, BF16, act, a, grad, x, dx, dweight, dbias, threads)
    BY_ACT(norm_act_backward, FLOAT, act, a, grad, x, dx, dweight, dbias, threads)
}

// Gradients of x, if dx is not null, and of filters, (chans, size, size). size: 5 or 7; stride: 1
// or 2; padding: 0 ... size - 1.
void dwsep_depthwise_backward(const void *grad, const void *x, const float *filters, void *dx,
                              float *dfilters, long images, long chans, long height, long width,
                              long out_height, long out_width, int size, int stride, int padding,
                              int bf16, int threads) {
    const std::vector<float> taps = channels_last(filters, chans, size * size, bf16);
    const Depthwise a = {grad,   x,     taps.data(), dx,        chans,
                         height, width, out_height,  out_width, padding};
    const auto find = [&](float *dweight) {
        if (bf16 && stride == 1) { BY_SIZE(BF16, 1) }
        if (bf16) { BY_SIZE(BF16, 2) }
        if (stride == 1) { BY_SIZE(FLOAT, 1) }
        BY_SIZE(FLOAT, 2)
    };
    std::vector<float> dtaps(taps.size());
    find(dtaps.data());
    channels_first(dtaps.data(), chans, size * size, dfilters);
}

// y: depthwise convolution of act(norm(x)) with filters, (chans, 3, 3), or of act(x) if stats is null.
// If z is not null, it receives act2(norm2(y)). The other arguments are as above.
void dwsep_norm_act_depthwise(const void *x, void *y, void *z, const float *weight,
                              const float *bias, const float *filters, const float *weight2,
                              const float *bias2, float *stats, float *stats2, long images,
                              long chans, long height, long width, long out_height, long out_width,
                              double eps, double eps2, int stride, int padding, int bf16, int act,
                              int act2, int threads, Add add, Add add2) {
    std::vector<float> none = stats ? std::vector<float>() : no_norm(chans);
    const Norm n = norm_of(images * height * width, chans, eps, stats ? stats : none.data(), add);
    const NormDepthwise a = {n,      x,     channels_last(filters, chans, 9, bf16), images,
                             height, width, out_height, out_width, padding};
    std::vector<float> moments(z ? a.pieces() * 2 * chans : 0);
    float *const to = z ? moments.data() : nullptr;
    const auto write_y = [&] {
        if (bf16) BY_ACT_AND_STRIDE(norm_act_depthwise, BF16, a, y, weight, bias, to, threads)
        BY_ACT_AND_STRIDE(norm_act_depthwise, FLOAT, a, y, weight, bias, to, threads)
    };
    write_y();
    if (!z) return;
    const Norm n2 = norm_of(images * out_height * out_width, chans, eps2, stats2, add2);
    merge_moments(n2, to, a.pieces(), [&](long i) { return a.share(i); }, weight2, bias2);
    apply_by_type(n2, y, z, bf16, act2, threads);
}

// Gradients of x, filters, and weight and bias, (chans,). If stats is null, there are none of weight
// and bias, and dx may be null. If y is not null, grad is that of z, and weight2 and bias2 have
// gradients too. kept: as large as grad if act2 is SILU.
void dwsep_norm_act_depthwise_backward(const void *grad, const void *x, const void *y, void *kept,
                                       const float *filters, float *stats, float *stats2, void *dx,
                                       float *dweight, float *dbias, float *dfilters,
                                       float *dweight2, float *dbias2, long images, long chans,
                                       long height, long width, long out_height, long out_width,
                                       double eps, double eps2, int stride, int padding, int bf16,
                                       int act, int act2, int threads, Add add, Add add2) {
    std::vector<float> none = stats ? std::vector<float>() : no_norm(chans);
    const Norm n = norm_of(images * height * width, chans, eps, stats ? stats : none.data(), add);
    const NormDepthwise a = {n,      x,     channels_last(filters, chans, 9, bf16), images,
                             height, width, out_height, out_width, padding};
    const Norm n2 = norm_of(images * out_height * out_width, chans, eps2, stats2, add2);
    const Incoming incoming =
        y ? incoming_by_type(n2, grad, y, kept, dweight2, dbias2, bf16, act2, threads)
          : Incoming{grad, nullptr, n2, {}, bf16 ? fill_as_it_is<BF16> : fill_as_it_is<FLOAT>};
    if (!stats) dweight = nullptr;
    if (bf16)
        BY_ACT_AND_STRIDE(norm_act_depthwise_backward, BF16, a, incoming, dx, dweight, dbias,
                          dfilters, threads)
    BY_ACT_AND_STRIDE(norm_act_depthwise_backward, FLOAT, a, incoming, dx, dweight, dbias,
                      dfilters, threads)
}
}
