// One decode step of a few rows on a CPU: norms, products over narrow weights, rotation, attention over a paged cache.
//
// Weights are int8 (one scale a row) or int4 (one scale a group); a product's inputs are rounded to int8 with one scale
// for 64, as VNNI multiplies them; the rest is float32. A step of one row is bound by the bytes of its weights. Threads
// take a few tiles of them at a time, so that one that the machine holds up delays the others by what it holds, and not
// by a fixed share. Plain C, without torch:
// `scoring/decoder/native_build.py` compiles it for the machine, `scoring/decoder/native_step.py` calls it.
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROWS = 8, TILE = 16, BLOCK = 64, UNIT = 64, QUAD = 4, SPINS = 2000, PIECES = 4 };
enum { INT8, INT4, INT4_ZERO }; // the last with zero points, as products are computed; theirs is INT4
enum { NONE, RMS, LAYER };
enum { RELU, SILU, GELU, GELU_TANH };

typedef struct {
    const void *weight;
    const float *scale, *zero, *bias; // scale: [N], of int4 [N / TILE, groups, TILE], as zero; 8 throughout if absent
    int32_t outputs, inputs, group, format;
} Product;

typedef struct {
    const float *gain, *shift;
    float eps;
    int32_t kind;
} Norm;

// What adapters add to a product's outputs: up[place] * down[place] * inputs, by the place of each row's adapter.
typedef struct {
    const float *down, *up;        // [places, parts, rank, inputs] and [places, rank, outputs]; none without adapters
    const int32_t *ranks, *spans;  // [places], of `rank` those that are used, and [parts, 2], first and last output
    int32_t parts, rank, inputs, outputs;
} LowRank;

typedef struct {
    Norm norm1, norm2, q_norm, k_norm;
    Product qkv, out, up, down;
    LowRank to_qkv, to_out, to_up, to_down;
    const float *cos, *sin; // [positions, D / 2]
    float *keys, *values;   // [KV heads, blocks, BLOCK, D]
    const int32_t *table;   // [slots, width]
    float scale;
    int32_t half, window, activation, gated;
} Layer;

typedef struct {
    const Layer *layers;
    Norm norm;
    Product head;
    float residual_scale;
    int32_t count, hidden, heads, kv_heads, head_dim, blocks, width, inner, longest, threads, alone;
} Model;

// Vectors of int32: as wide as the widest instructions that multiply octets and add them up.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
enum { WIDE = 16 };
typedef __m512i Ints;
typedef __m512 Floats;
#define OF(name) _mm512_##name
#define LOAD(at) _mm512_loadu_si512(at)
#define AND(a, b) _mm512_and_si512(a, b)
#define DOTS 1
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
enum { WIDE = 8 };
typedef __m256i Ints;
typedef __m256 Floats;
#define OF(name) _mm256_##name
#define LOAD(at) _mm256_loadu_si256((const __m256i *)(at))
#define AND(a, b) _mm256_and_si256(a, b)
#ifdef __AVXVNNI__
#undef _mm256_dpbusd_epi32
#define _mm256_dpbusd_epi32 _mm256_dpbusd_avx_epi32
#define DOTS 1
#else
#define PAIRS 1 // octets are multiplied as pairs of int16
#endif
#endif

#ifdef PAIRS
enum { TOGETHER = 4 }; // rows whose sums stay in registers
// Has the compiler end a sum before it begins the next: of many at once some would lie in memory.
#define ADD_TO(sum, how, more) __asm__ volatile(how " %1, %0, %0" : "+x"(sum) : "x"(more))
#else
enum { TOGETHER = ROWS };
#endif

// Threads -----------------------------------------------------------------------------------------------------------

// Inputs of a product, of each thread, by unit: numbers [units, ROWS, UNIT], their scales, and the sums of halves.
typedef struct {
    int8_t *q;
#ifdef PAIRS
    int16_t *wide; // the numbers again, of each four the even ones first
#endif
    float *scale;
    int32_t *sums;
} Inputs;

typedef struct {
    Model model;
    Layer *layers;
    Inputs *inputs;
    pthread_t *workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_ullong next; // a Piece
    atomic_int done, changes, asleep, turn;
    int stop, rows, started, threads; // threads of this step
    const int32_t *slots, *lengths, *places;         // places of the rows' adapters, -1 for none; NULL if no row has one
    float *hidden, *qkv, *attended, *inner, *logits; // [ROWS, width of each]
    float *low;                                      // [ROWS, parts, rank], a product's inputs times `down`
    float *normed, *scores;                          // of each thread
} State;

typedef struct {
    State *state;
    int index;
} Worker;

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Work is done in phases, each of several pieces, which threads take as they come; who ends the last piece of a phase
// begins the next. The piece to be taken next is told in one word, so that a thread that comes late takes what there is
// to do now or, where all pieces are taken, nothing. A step's last phase has no pieces.
typedef struct {
    uint16_t number, count, phase, step;
} Piece;

static inline Piece piece_of(unsigned long long word) {
    return (Piece){(uint16_t)word, (uint16_t)(word >> 16), (uint16_t)(word >> 32), (uint16_t)(word >> 48)};
}

static inline int same_phase(Piece a, Piece b) { return a.phase == b.phase && a.step == b.step; }

static void begin_phase(State *s, int step, int phase, int count) {
    atomic_store(&s->done, 0);
    atomic_store(&s->next, (unsigned long long)(uint16_t)step << 48 | (unsigned long long)phase << 32 | count << 16);
    atomic_fetch_add(&s->changes, 1);
    if (atomic_load(&s->asleep)) syscall(SYS_futex, &s->changes, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

// Wait for a phase to end: for a moment awake, then asleep. Who goes on spinning keeps its core from who has work.
static void await(State *s, Piece last) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (!same_phase(piece_of(atomic_load_explicit(&s->next, memory_order_acquire)), last)) return;
        pause_briefly();
    }
    atomic_fetch_add(&s->asleep, 1);
    for (;;) {
        const int changes = atomic_load(&s->changes);
        if (!same_phase(piece_of(atomic_load(&s->next)), last)) break;
        syscall(SYS_futex, &s->changes, FUTEX_WAIT_PRIVATE, changes, NULL, NULL, 0);
    }
    atomic_fetch_sub(&s->asleep, 1);
}

// A piece's part of `count` things in units of `unit`.
static inline void part(int count, int unit, Piece piece, int *from, int *to) {
    int units = (count + unit - 1) / unit;
    *from = (int)((int64_t)units * piece.number / piece.count) * unit;
    *to = (int)((int64_t)units * (piece.number + 1) / piece.count) * unit;
    if (*to > count) *to = count;
}

// Inputs ------------------------------------------------------------------------------------------------------------

static inline int units_of(int inputs) { return (inputs + UNIT - 1) / UNIT; }

// Quantise inputs x [rows, stride]: int8 with one scale a unit, and the sums of its halves.
static void take(Inputs *in, const float *x, int rows, int stride, int inputs) {
    for (int b = 0; b < rows; b++)
        for (int u = 0; u < units_of(inputs); u++) {
            const int64_t at = (int64_t)u * ROWS + b;
            const float *from = x + (int64_t)b * stride + u * UNIT;
            float v[UNIT] = {0}, peak = 0;
            int8_t *q = in->q + at * UNIT;
            int32_t numbers[UNIT], halves[2] = {0, 0};
            memcpy(v, from, sizeof(float) * (inputs - u * UNIT < UNIT ? inputs - u * UNIT : UNIT));
            for (int i = 0; i < UNIT; i++) peak = fmaxf(peak, fabsf(v[i]));
            const float inverse = peak > 0 ? 127 / peak : 0;
            for (int i = 0; i < UNIT; i++) numbers[i] = (int32_t)rintf(v[i] * inverse);
            for (int i = 0; i < UNIT / 2; i++) halves[0] += numbers[i], halves[1] += numbers[UNIT / 2 + i];
            for (int i = 0; i < UNIT; i++) q[i] = (int8_t)numbers[i];
#ifdef PAIRS
            const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
            for (int i = 0; i < UNIT; i += 16) {
                const __m128i own = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(q + i)), order);
                _mm256_storeu_si256((__m256i *)(in->wide + at * UNIT + i), _mm256_cvtepi8_epi16(own));
            }
#endif
            in->scale[at] = peak / 127;
            in->sums[at * 2] = halves[0], in->sums[at * 2 + 1] = halves[1];
        }
}

// Products ----------------------------------------------------------------------------------------------------------

#define INLINE __attribute__((always_inline)) static inline

// The group of half a unit of inputs; groups are of 32, 64 or 128.
static inline int group_of(const Product *p, int half) { return half >> (p->group / 64); }

// A weight's octets lie as they are read: by tile of TILE outputs, unit of inputs, and four of its inputs, those of
// each output side by side. int4 has an input and that of 32 further on in an octet. So a vector multiplies the same
// inputs for its outputs, and a weight is read once, in order, for all rows.

INLINE int32_t four(const void *at) {
    int32_t found;
    memcpy(&found, at, sizeof(found));
    return found;
}

#ifdef OF
#ifdef DOTS
// What whole sums of WIDE outputs begin with: what zero points take from the products of half a unit, of int8 a unit.
INLINE Ints begin(const int format, const int32_t *sums, const int half, Ints zero) {
    if (format == INT8) return OF(set1_epi32)(-128 * (sums[0] + sums[1]));
    return format == INT4 ? OF(set1_epi32)(-8 * sums[half]) : OF(mullo_epi32)(zero, OF(set1_epi32)(-sums[half]));
}

// Whole sums of the products of half a unit of int4, from octets at w on; of int8 they go on from those of the first.
INLINE void multiply(const int format, const int rows, const uint8_t *w, const int half, const Inputs *in, int64_t at,
                     Ints zero, Ints sum[ROWS]) {
    const int8_t *q = in->q + at * UNIT + half * UNIT / 2;
    const int32_t *sums = in->sums + at * 2;
    const Ints low = OF(set1_epi8)(15);
    for (int b = 0; b < rows && !(format == INT8 && half); b++) sum[b] = begin(format, sums + b * 2, half, zero);
#pragma GCC unroll 1
    for (int j = 0; j < UNIT / 2 / QUAD; j++) {
        Ints numbers = LOAD(w + (format == INT8 ? half * UNIT / 2 / QUAD + j : j) * TILE * QUAD);
        if (format != INT8) numbers = AND(half ? OF(srli_epi16)(numbers, 4) : numbers, low);
        for (int b = 0; b < rows; b++)
            sum[b] = OF(dpbusd_epi32)(sum[b], numbers, OF(set1_epi32)(four(q + b * UNIT + j * QUAD)));
    }
}
#endif

#ifdef PAIRS
// Whole sums of a unit of int8, of two vectors of outputs at once. Octets are widened to int16, as pairs of their
// products exceed it.
INLINE void multiply_int8(const int rows, const uint8_t *w, const Inputs *in, int64_t at, Ints sum[][ROWS]) {
    const int16_t *wide = in->wide + at * UNIT;
    const Ints low = OF(set1_epi16)(255);
    for (int v = 0; v < TILE / WIDE; v++)
        for (int b = 0; b < rows; b++) sum[v][b] = OF(setzero_si256)();
#pragma GCC unroll 1
    for (int j = 0; j < UNIT / QUAD; j++, w += TILE * QUAD) {
        Ints even[TILE / WIDE], odd[TILE / WIDE];
        for (int v = 0; v < TILE / WIDE; v++) {
            const Ints numbers = LOAD(w + v * WIDE * QUAD);
            even[v] = AND(numbers, low), odd[v] = OF(srli_epi16)(numbers, 8);
        }
        for (int b = 0; b < rows; b++) {
            const int16_t *own = wide + b * UNIT + j * QUAD;
            const Ints first = OF(set1_epi32)(four(own)), second = OF(set1_epi32)(four(own + 2));
            for (int v = 0; v < TILE / WIDE; v++) {
                ADD_TO(sum[v][b], "vpaddd", OF(madd_epi16)(even[v], first));
                ADD_TO(sum[v][b], "vpaddd", OF(madd_epi16)(odd[v], second));
            }
        }
    }
}

// Whole sums of both halves of a unit of int4, of some vectors of outputs at once, from octets at w on. Eight products
// of 2 * 15 * 127 are within int16.
INLINE void multiply_int4(const int rows, const int vectors, const uint8_t *w, const Inputs *in, int64_t at,
                          Ints sum[][2][ROWS]) {
    const int8_t *q = in->q + at * UNIT;
    const Ints low = OF(set1_epi8)(15), one = OF(set1_epi16)(1);
    for (int i = 0; i < vectors * 2 * rows; i++) sum[i / rows / 2][i / rows % 2][i % rows] = OF(setzero_si256)();
#pragma GCC unroll 1
    for (int j = 0; j < UNIT / 2 / QUAD; j++, w += TILE * QUAD, q += QUAD) {
        Ints own[2][2];
        for (int v = 0; v < vectors; v++) {
            const Ints numbers = LOAD(w + v * WIDE * QUAD);
            own[v][0] = AND(numbers, low), own[v][1] = AND(OF(srli_epi16)(numbers, 4), low);
        }
        for (int b = 0; b < rows; b++)
            for (int half = 0; half < 2; half++) {
                const Ints inputs = OF(set1_epi32)(four(q + b * UNIT + half * UNIT / 2));
                for (int v = 0; v < vectors; v++)
                    ADD_TO(sum[v][half][b], "vpaddw", OF(maddubs_epi16)(own[v][half], inputs));
            }
    }
    for (int i = 0; i < vectors * 2 * rows; i++) {
        Ints *whole = &sum[i / rows / 2][i / rows % 2][i % rows];
        *whole = OF(madd_epi16)(*whole, one);
    }
}

// Add the products of a unit of int8 to sums acc [vectors, rows].
INLINE void add_int8(const int rows, const uint8_t *w, const Inputs *in, int64_t at, Floats acc[][ROWS]) {
    Ints sum[TILE / WIDE][ROWS];
    multiply_int8(rows, w, in, at, sum);
    for (int b = 0; b < rows; b++) {
        const int32_t *sums = in->sums + (at + b) * 2;
        const Ints taken = OF(set1_epi32)(128 * (sums[0] + sums[1]));
        const Floats scale = OF(set1_ps)(in->scale[at + b]);
        for (int v = 0; v < TILE / WIDE; v++)
            acc[v][b] = OF(fmadd_ps)(OF(cvtepi32_ps)(OF(sub_epi32)(sum[v][b], taken)), scale, acc[v][b]);
    }
}

// Add the products of unit u of int4 to sums acc [vectors, rows].
INLINE void add_int4(const int format, const int rows, const uint8_t *w, const Product *p, int u, const float *scales,
                     const float *zeros, const Inputs *in, int64_t at, Floats acc[][ROWS]) {
    const int vectors = rows > 2 ? 1 : TILE / WIDE; // as many as keep their sums in registers
    for (int v = 0; v < TILE / WIDE; v += vectors) {
        Ints sum[TILE / WIDE][2][ROWS];
        multiply_int4(rows, vectors, w + v * WIDE * QUAD, in, at, sum);
        for (int i = 0; i < vectors; i++)
            for (int half = 0; half < 2; half++) {
                const int64_t own = group_of(p, 2 * u + half) * TILE + (v + i) * WIDE;
                const Floats scale = OF(loadu_ps)(scales + own);
                const Ints zero = format == INT4_ZERO ? OF(cvtps_epi32)(OF(loadu_ps)(zeros + own)) : OF(set1_epi32)(8);
                for (int b = 0; b < rows; b++) {
                    const Ints inputs = OF(set1_epi32)(in->sums[(at + b) * 2 + half]);
                    const Ints taken = format == INT4_ZERO ? OF(mullo_epi32)(zero, inputs) : OF(slli_epi32)(inputs, 3);
                    const Floats whole = OF(cvtepi32_ps)(OF(sub_epi32)(sum[i][half][b], taken));
                    const Floats both = OF(mul_ps)(OF(set1_ps)(in->scale[at + b]), scale);
                    acc[v + i][b] = OF(fmadd_ps)(whole, both, acc[v + i][b]);
                }
            }
    }
}
#endif
#endif

// Sums of a tile of outputs of an int8 or int4 weight from output n on, for `rows` inputs from `first` on. What zero
// points take is taken off where sums begin, in whole numbers.
INLINE void narrow(const int format, const int rows, const Product *p, int n, const Inputs *in, int first,
                   float out[][TILE]) {
    const int units = units_of(p->inputs), size = TILE * (format == INT8 ? UNIT : UNIT / 2);
    const int64_t groups = format == INT8 ? 1 : (units * UNIT + p->group - 1) / p->group;
    const uint8_t *w = (const uint8_t *)p->weight + (int64_t)n * units * (size / TILE);
    const float *scales = p->scale + n * groups, *zeros = format == INT4_ZERO ? p->zero + n * groups : NULL;
#ifdef OF
    Floats acc[TILE / WIDE][ROWS];
    for (int v = 0; v < TILE / WIDE; v++)
        for (int b = 0; b < rows; b++) acc[v][b] = OF(setzero_ps)();
    for (int u = 0; u < units; u++, w += size) {
        const int64_t at = (int64_t)u * ROWS + first;
#ifdef PAIRS
        if (format == INT8) add_int8(rows, w, in, at, acc);
        else add_int4(format, rows, w, p, u, scales, zeros, in, at, acc);
#else
        for (int v = 0; v < TILE / WIDE; v++) {
            Ints sum[ROWS];
            for (int half = 0; half < 2; half++) {
                const int64_t own = format == INT8 ? 0 : group_of(p, 2 * u + half) * TILE + v * WIDE;
                const Ints zero = format == INT4_ZERO ? OF(cvtps_epi32)(OF(loadu_ps)(zeros + own)) : OF(set1_epi32)(0);
                multiply(format, rows, w + v * WIDE * QUAD, half, in, at, zero, sum);
                if (format == INT8 && !half) continue;
                for (int b = 0; b < rows; b++) {
                    Floats scale = OF(set1_ps)(in->scale[at + b]);
                    if (format != INT8) scale = OF(mul_ps)(scale, OF(loadu_ps)(scales + own));
                    acc[v][b] = OF(fmadd_ps)(OF(cvtepi32_ps)(sum[b]), scale, acc[v][b]);
                }
            }
        }
#endif
    }
    for (int v = 0; v < TILE / WIDE; v++)
        for (int b = 0; b < rows; b++) {
            Floats found = acc[v][b];
            if (format == INT8) found = OF(mul_ps)(found, OF(loadu_ps)(scales + v * WIDE));
            OF(storeu_ps)(out[first + b] + v * WIDE, found);
        }
#else
    for (int b = 0; b < rows; b++)
        for (int r = 0; r < TILE; r++) out[first + b][r] = 0;
    for (int u = 0; u < units; u++, w += size)
        for (int b = 0; b < rows; b++)
            for (int half = 0; half < 2; half++) {
                const int64_t at = (int64_t)u * ROWS + first + b;
                const int64_t own = format == INT8 ? 0 : group_of(p, 2 * u + half) * TILE;
                const int8_t *q = in->q + at * UNIT + half * UNIT / 2;
                const uint8_t *from = w + (format == INT8 && half ? size / 2 : 0);
                int32_t sum[TILE] = {0};
                for (int j = 0; j < UNIT / 2; j++) {
                    const uint8_t *octets = from + j / QUAD * TILE * QUAD + j % QUAD;
                    for (int r = 0; r < TILE; r++) {
                        const int octet = octets[r * QUAD];
                        sum[r] += q[j] * (format == INT8 ? octet : half ? octet >> 4 : octet & 15);
                    }
                }
                for (int r = 0; r < TILE; r++) {
                    const float middle = format == INT8 ? 128 : format == INT4 ? 8 : zeros[own + r];
                    const float found = in->scale[at] * (sum[r] - middle * in->sums[at * 2 + half]);
                    out[first + b][r] += format == INT8 ? found : found * scales[own + r];
                }
            }
    for (int b = 0; format == INT8 && b < rows; b++)
        for (int r = 0; r < TILE; r++) out[first + b][r] *= scales[r];
#endif
}

#define CASE(format, rows) \
    case (format) * 16 + (rows): narrow(format, rows, p, n, in, first, found); break;
#ifdef PAIRS
#define CASES(format) CASE(format, 1) CASE(format, 2) CASE(format, 4)
#else
#define CASES(format) CASE(format, 1) CASE(format, 2) CASE(format, 4) CASE(format, 8)
#endif

// Sums of a tile for all rows, in powers of two, the later of which read the tile again from a near cache.
static void tile(const Product *p, int rows, int n, const Inputs *in, float found[][TILE]) {
    const int format = p->format == INT4 && p->zero ? INT4_ZERO : p->format;
    for (int first = 0, now = TOGETHER; first < rows; first += now) {
        while (now > rows - first) now /= 2;
        switch (format * 16 + now) { CASES(INT8) CASES(INT4) CASES(INT4_ZERO) }
    }
}

// Outputs `from` to `to` of a product, the first a multiple of TILE: out [rows, wide] = value, or += factor * value.
static void product(const Product *p, int rows, const Inputs *in, float *out, int wide, int from, int to,
                    float factor) {
    float found[ROWS][TILE];
    for (int n = from; n < to; n += TILE) {
        const int count = to - n < TILE ? to - n : TILE;
        tile(p, rows, n, in, found);
        for (int b = 0; b < rows; b++) {
            float *place = out + (int64_t)b * wide + n, *own = found[b];
            for (int r = 0; p->bias && r < count; r++) own[r] += p->bias[n + r];
            for (int r = 0; r < count; r++) place[r] = factor == 0.0f ? own[r] : place[r] + factor * own[r];
        }
    }
}

// Adapters ----------------------------------------------------------------------------------------------------------

// Vectors of floats, which any machine has; their addresses are of any number.
#ifdef OF
enum { LANES = WIDE };
#else
enum { LANES = 4 };
#endif
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

static inline int fours(int count) { return (count + 3) / 4; }

// Products of x with rows of w; each row is summed up alike whatever is computed beside it.
INLINE void dots(const int count, const float *x, const float *w, int inputs, float *out) {
    Lanes sums[4] = {{0}};
    int i = 0;
    for (; i + LANES <= inputs; i += LANES)
        for (int r = 0; r < count; r++)
            sums[r] += *(const Lanes *)(x + i) * *(const Lanes *)(w + (int64_t)r * inputs + i);
    for (int r = 0; r < count; r++) {
        float rest = 0;
        for (int j = i; j < inputs; j++) rest += x[j] * w[(int64_t)r * inputs + j];
        for (int lane = 0; lane < LANES; lane++) rest += sums[r][lane];
        out[r] = rest;
    }
}

// Items `from` to `to` of what adapters make of inputs x [rows, stride]: of each row and part, ranks by four.
static void lower(State *s, const LowRank *own, const float *x, int stride, int from, int to) {
    const int each = fours(own->rank), items = own->parts * each;
    for (int item = from; item < to; item++) {
        const int row = item / items, part = item % items / each, first = item % each * 4, place = s->places[row];
        const int left = place < 0 ? 0 : own->ranks[place] - first;
        const float *input = x + (int64_t)row * stride;
        float *out = s->low + ((int64_t)row * own->parts + part) * own->rank + first;
        if (left <= 0) continue;
        const float *w = own->down + (((int64_t)place * own->parts + part) * own->rank + first) * own->inputs;
        if (left >= 4) dots(4, input, w, own->inputs, out);
        else for (int r = 0; r < left; r++) dots(1, input, w + (int64_t)r * own->inputs, own->inputs, out + r);
    }
}

// Add to outputs `from` to `to`, the first a multiple of TILE, of out [rows, wide] what adapters make of `low`. Outputs
// of a tile are added alike whatever else a piece has.
static void lift(const State *s, const LowRank *own, float *out, int wide, int from, int to, float factor) {
    for (int item = 0; item < s->rows * own->parts; item++) {
        const int row = item / own->parts, part = item % own->parts, place = s->places[row];
        const int ranks = place < 0 ? 0 : own->ranks[place], first = own->spans[part * 2];
        const int last = own->spans[part * 2 + 1] < to ? own->spans[part * 2 + 1] : to;
        const float *low = s->low + (int64_t)item * own->rank, *up = own->up + (int64_t)place * own->rank * own->outputs;
        for (int n = first > from ? first / TILE * TILE : from; ranks && n < last; n += TILE) {
            float *target = out + (int64_t)row * wide + n;
            if (n >= first && n + TILE <= last) {
                for (int lane = 0; lane < TILE; lane += LANES) {
                    Lanes sum = {0};
                    for (int r = 0; r < ranks; r++)
                        sum += low[r] * *(const Lanes *)(up + (int64_t)r * own->outputs + n + lane);
                    *(Lanes *)(target + lane) += factor * sum;
                }
                continue;
            }
            for (int i = first > n ? first - n : 0; i < TILE && n + i < last; i++) {
                float sum = 0;
                for (int r = 0; r < ranks; r++) sum += low[r] * up[(int64_t)r * own->outputs + n + i];
                target[i] += factor * sum;
            }
        }
    }
}

// Between products --------------------------------------------------------------------------------------------------

static void normalize(const Norm *norm, const float *x, float *out, int width) {
    float mean = 0, square = 0;
    if (norm->kind == NONE) {
        memmove(out, x, sizeof(float) * width);
        return;
    }
    if (norm->kind == LAYER) {
        for (int i = 0; i < width; i++) mean += x[i];
        mean /= width;
    }
    for (int i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    float factor = 1.0f / sqrtf(square / width + norm->eps);
    for (int i = 0; i < width; i++)
        out[i] = (x[i] - mean) * factor * norm->gain[i] + (norm->shift ? norm->shift[i] : 0.0f);
}

static void rotate(const Layer *layer, float *x, int position, int tables) {
    const float *cosine = layer->cos + (int64_t)position * tables, *sine = layer->sin + (int64_t)position * tables;
    for (int i = 0; i < layer->half; i++) {
        float a = x[i], b = x[layer->half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[layer->half + i] = b * cosine[i] + a * sine[i];
    }
}

static void activate(const Layer *layer, float *gate, const float *up, int from, int to) {
    for (int i = from; i < to; i++) {
        float x = gate[i], y;
        if (layer->activation == SILU) y = x / (1.0f + expf(-x));
        else if (layer->activation == RELU) y = x > 0 ? x : 0;
        else if (layer->activation == GELU) y = 0.5f * x * (1.0f + erff(x * 0.70710678f));
        else y = 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        gate[i] = up ? y * up[i] : y;
    }
}

// Attention of one head of one row; the newest key and value are taken from the product, and written by one head of
// those that share them.
static void attend(State *s, const Layer *layer, int row, int head, float *scores) {
    const Model *m = &s->model;
    const int depth = m->head_dim, group = m->heads / m->kv_heads, own = head / group, at = s->lengths[row];
    const int total = (m->heads + 2 * m->kv_heads) * depth, first = layer->window && at + 1 > layer->window
        ? at + 1 - layer->window : 0;
    const int32_t *table = layer->table + (int64_t)s->slots[row] * m->width;
    const float *whole = s->qkv + (int64_t)row * total, *v = whole + (m->heads + m->kv_heads + own) * depth;
    float q[512], k[512], *out = s->attended + ((int64_t)row * m->heads + head) * depth, largest, mass = 0;
    normalize(&layer->q_norm, whole + head * depth, q, depth);
    normalize(&layer->k_norm, whole + (m->heads + own) * depth, k, depth);
    if (layer->half) {
        rotate(layer, q, at, depth / 2);
        rotate(layer, k, at, depth / 2);
    }
    const int64_t stride = (int64_t)own * m->blocks * BLOCK * depth;
    float *keys = layer->keys + stride, *values = layer->values + stride;
    if (head % group == 0) {
        int64_t place = ((int64_t)table[at / BLOCK] * BLOCK + at % BLOCK) * depth;
        memcpy(keys + place, k, sizeof(float) * depth);
        memcpy(values + place, v, sizeof(float) * depth);
    }
    for (int t = first; t <= at; t++) {
        const float *key = t == at ? k : keys + ((int64_t)table[t / BLOCK] * BLOCK + t % BLOCK) * depth;
        float score = 0;
        for (int i = 0; i < depth; i++) score += q[i] * key[i];
        scores[t] = score * layer->scale;
    }
    largest = scores[at];
    for (int t = first; t <= at; t++) largest = scores[t] > largest ? scores[t] : largest;
    for (int t = first; t <= at; t++) mass += scores[t] = expf(scores[t] - largest);
    for (int i = 0; i < depth; i++) out[i] = v[i] * scores[at];
    for (int t = first; t < at; t++) {
        const float *value = values + ((int64_t)table[t / BLOCK] * BLOCK + t % BLOCK) * depth, weight = scores[t];
        for (int i = 0; i < depth; i++) out[i] += weight * value[i];
    }
    for (int i = 0; i < depth; i++) out[i] /= mass;
}

// Phases of a layer; the head follows all layers. Those that lower inputs are left out where no row has an adapter.
enum { LOWER_QKV, QKV, ATTEND, LOWER_OUT, OUT, LOWER_UP, UP, LOWER_DOWN, DOWN, PHASES };

// What adapters add to the product of a phase, or of the one after a phase that lowers its inputs; NULL if nothing.
static const LowRank *beside(const State *s, const Layer *layer, int kind) {
    const LowRank *all[] = {&layer->to_qkv, &layer->to_qkv, NULL,           &layer->to_out, &layer->to_out,
                            &layer->to_up,  &layer->to_up,  &layer->to_down, &layer->to_down};
    return s->places && all[kind] && all[kind]->down ? all[kind] : NULL;
}

static int lowers(int kind) { return kind == LOWER_QKV || kind == LOWER_OUT || kind == LOWER_UP || kind == LOWER_DOWN; }

// The first phase with work, from a phase on.
static int whole_phase(const State *s, int phase) {
    const Model *m = &s->model;
    while (phase < m->count * PHASES && lowers(phase % PHASES) &&
           !beside(s, m->layers + phase / PHASES, phase % PHASES))
        phase++;
    return phase;
}

// Pieces of a phase: as many as keep the threads busy where one is held up; a single thread takes all at once.
static int pieces(const State *s, int phase) {
    const Model *m = &s->model;
    if (phase > m->count * PHASES) return 0;
    const Layer *layer = m->layers + (phase < m->count * PHASES ? phase / PHASES : 0);
    const int kind = phase % PHASES, most = s->threads > 1 ? s->threads * PIECES : 1;
    int outputs = m->hidden; // of OUT and DOWN
    if (phase == m->count * PHASES) outputs = m->head.outputs;
    else if (lowers(kind)) outputs = s->rows * beside(s, layer, kind)->parts * beside(s, layer, kind)->rank;
    else if (kind == QKV) outputs = layer->qkv.outputs;
    else if (kind == ATTEND) outputs = s->rows * m->heads * TILE;
    else if (kind == UP) outputs = layer->down.inputs;
    const int units = (outputs + TILE - 1) / TILE;
    return units < most ? units : most;
}

// The inputs of a phase's product, which each thread that takes a piece of it makes for itself.
static void prepare(State *s, int phase, Inputs *in, float *normed) {
    const Model *m = &s->model;
    const int rows = s->rows, wide = m->hidden, heads = m->heads * m->head_dim;
    const Layer *layer = m->layers + phase / PHASES;
    const int last = phase == m->count * PHASES, kind = last ? QKV : phase % PHASES;
    if (kind == OUT) take(in, s->attended, rows, heads, heads);
    if (kind == DOWN) take(in, s->inner, rows, m->inner, layer->down.inputs);
    if (kind != LOWER_QKV && kind != QKV && kind != LOWER_UP && kind != UP) return;
    const Norm *norm = last ? &m->norm : kind == LOWER_QKV || kind == QKV ? &layer->norm1 : &layer->norm2;
    for (int b = 0; b < rows; b++) normalize(norm, s->hidden + b * wide, normed + b * wide, wide);
    if (!lowers(kind)) take(in, normed, rows, wide, wide);
}

// A product's outputs `from` to `to`, and what the rows' adapters add to them.
static void adapted(State *s, const Product *p, const LowRank *own, const Inputs *in, float *out, int wide, int from,
                    int to, float factor) {
    product(p, s->rows, in, out, wide, from, to, factor);
    if (own) lift(s, own, out, wide, from, to, factor == 0.0f ? 1.0f : factor);
}

static void compute(State *s, Piece piece, const Inputs *in, const float *normed, float *scores) {
    const Model *m = &s->model;
    const int rows = s->rows, wide = m->hidden, inner = m->inner, total = (m->heads + 2 * m->kv_heads) * m->head_dim;
    int from, to;
    if (piece.phase == m->count * PHASES) {
        part(m->head.outputs, TILE, piece, &from, &to);
        product(&m->head, rows, in, s->logits, m->head.outputs, from, to, 0.0f);
        return;
    }
    const Layer *layer = m->layers + piece.phase / PHASES;
    const int width = layer->down.inputs, kind = piece.phase % PHASES;
    const LowRank *own = beside(s, layer, kind);
    switch (kind) {
    case LOWER_QKV:
    case LOWER_OUT:
    case LOWER_UP:
    case LOWER_DOWN:
        part(rows * own->parts * fours(own->rank), 1, piece, &from, &to);
        if (kind == LOWER_OUT) lower(s, own, s->attended, m->heads * m->head_dim, from, to);
        else if (kind == LOWER_DOWN) lower(s, own, s->inner, inner, from, to);
        else lower(s, own, normed, wide, from, to);
        break;
    case QKV:
        part(total, TILE, piece, &from, &to);
        adapted(s, &layer->qkv, own, in, s->qkv, total, from, to, 0.0f);
        break;
    case ATTEND:
        part(rows * m->heads, 1, piece, &from, &to);
        for (int item = from; item < to; item++) attend(s, layer, item / m->heads, item % m->heads, scores);
        break;
    case UP: // in whole vectors, because the compiler's activation of what is left of one has other bits
        part(width, TILE, piece, &from, &to);
        adapted(s, &layer->up, own, in, s->inner, inner, from, to, 0.0f);
        if (layer->gated) adapted(s, &layer->up, own, in, s->inner, inner, width + from, width + to, 0.0f);
        for (int b = 0; b < rows; b++) {
            float *gate = s->inner + (int64_t)b * inner;
            activate(layer, gate, layer->gated ? gate + width : NULL, from, to);
        }
        break;
    default: // OUT and DOWN
        part(wide, TILE, piece, &from, &to);
        adapted(s, kind == OUT ? &layer->out : &layer->down, own, in, s->hidden, wide, from, to, m->residual_scale);
    }
}

// Take pieces until a step ends.
static void work(State *s, int index) {
    float *normed = s->normed + (int64_t)index * ROWS * s->model.hidden;
    float *scores = s->scores + (int64_t)index * s->model.longest;
    Inputs *in = s->inputs + index;
    Piece prepared = {.phase = UINT16_MAX};
    for (;;) {
        Piece piece = piece_of(atomic_load(&s->next));
        if (piece.number < piece.count) piece = piece_of(atomic_fetch_add(&s->next, 1));
        if (!piece.count) return;
        if (piece.number >= piece.count) {
            await(s, piece);
            continue;
        }
        if (!same_phase(piece, prepared)) prepare(s, piece.phase, in, normed);
        prepared = piece;
        compute(s, piece, in, normed, scores);
        if (atomic_fetch_add(&s->done, 1) + 1 == piece.count) {
            const int next = whole_phase(s, piece.phase + 1);
            begin_phase(s, piece.step, next, pieces(s, next));
        }
    }
}

static void *worker(void *given) {
    Worker me = *(Worker *)given;
    State *s = me.state;
    free(given);
    for (int turn = 0;;) {
        for (int spins = 0; spins < SPINS && atomic_load(&s->turn) == turn; spins++) pause_briefly();
        pthread_mutex_lock(&s->lock);
        while (atomic_load(&s->turn) == turn && !s->stop) pthread_cond_wait(&s->wake, &s->lock);
        turn = atomic_load(&s->turn); // who comes too late for a step may be in time for the next
        pthread_mutex_unlock(&s->lock);
        if (s->stop) return NULL;
        work(s, me.index);
    }
}

// Interface ---------------------------------------------------------------------------------------------------------

static int inputs_open(Inputs *in, int units) {
    const size_t count = (size_t)ROWS * units;
    in->q = calloc(count, UNIT);
    in->scale = calloc(count, sizeof(float));
    in->sums = calloc(count * 2, sizeof(int32_t));
#ifdef PAIRS
    in->wide = calloc(count * UNIT, sizeof(int16_t));
    if (!in->wide) return 0;
#endif
    return in->q && in->scale && in->sums;
}

static void inputs_close(Inputs *in) {
    free(in->q), free(in->scale), free(in->sums);
#ifdef PAIRS
    free(in->wide);
#endif
}

void decode_close(State *s) {
    pthread_mutex_lock(&s->lock);
    s->stop = 1;
    atomic_fetch_add(&s->turn, 1);
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    for (int i = 1; i < s->started; i++) pthread_join(s->workers[i], NULL);
    for (int i = 0; s->inputs && i < s->model.threads; i++) inputs_close(s->inputs + i);
    free(s->layers), free(s->workers), free(s->qkv), free(s->attended), free(s->inner), free(s->normed);
    free(s->scores), free(s->inputs), free(s->low), free(s);
}

// What steps need beside the weights; NULL if memory or threads are short.
State *decode_open(const Model *model) {
    State *s = calloc(1, sizeof(State));
    if (!s) return NULL;
    const int threads = model->threads, heads = model->heads * model->head_dim;
    int widest = model->hidden > heads ? model->hidden : heads, low = 1;
    for (int l = 0; l < model->count; l++) {
        const Layer *layer = model->layers + l;
        const LowRank *all[] = {&layer->to_qkv, &layer->to_out, &layer->to_up, &layer->to_down};
        if (layer->down.inputs > widest) widest = layer->down.inputs;
        for (int i = 0; i < 4; i++)
            if (all[i]->parts * all[i]->rank > low) low = all[i]->parts * all[i]->rank;
    }
    s->model = *model;
    s->layers = malloc(sizeof(Layer) * model->count);
    s->workers = calloc(threads, sizeof(pthread_t));
    s->inputs = calloc(threads, sizeof(Inputs));
    s->qkv = calloc((size_t)ROWS * (heads + 2 * model->kv_heads * model->head_dim), sizeof(float));
    s->attended = calloc((size_t)ROWS * heads, sizeof(float));
    s->inner = calloc((size_t)ROWS * model->inner, sizeof(float));
    s->normed = calloc((size_t)ROWS * threads * model->hidden, sizeof(float));
    s->scores = calloc((size_t)threads * model->longest, sizeof(float));
    s->low = calloc((size_t)ROWS * low, sizeof(float));
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    int ready = s->layers && s->workers && s->inputs && s->qkv && s->attended && s->inner && s->normed && s->scores
        && s->low;
    for (int i = 0; ready && i < threads; i++) ready = inputs_open(s->inputs + i, units_of(widest));
    if (ready) memcpy(s->layers, model->layers, sizeof(Layer) * model->count);
    s->model.layers = s->layers;
    for (s->started = 1; ready && s->started < threads; s->started++) {
        Worker *given = malloc(sizeof(Worker));
        if (given) *given = (Worker){s, s->started};
        ready = given && !pthread_create(&s->workers[s->started], NULL, worker, given);
        if (!ready) {
            free(given);
            break;
        }
    }
    if (ready) return s;
    decode_close(s);
    return NULL;
}

// Feed a token to each of `rows` slots, whose lengths do not count it; hidden [rows, E] is its embedding, and is
// overwritten; logits [rows, vocabulary]. `places` [rows] are those of the rows' adapters, -1 for none; NULL if no row
// has one. A step of one row may be this thread's alone.
void decode_step(State *s, int rows, const int32_t *slots, const int32_t *lengths, const int32_t *places,
                 float *hidden, float *logits) {
    s->rows = rows, s->slots = slots, s->lengths = lengths, s->places = places;
    s->hidden = hidden, s->logits = logits;
    s->threads = rows == 1 && s->model.alone ? 1 : s->model.threads;
    const int first = whole_phase(s, 0);
    begin_phase(s, piece_of(atomic_load(&s->next)).step + 1, first, pieces(s, first));
    if (s->threads > 1) {
        pthread_mutex_lock(&s->lock);
        atomic_fetch_add(&s->turn, 1);
        pthread_cond_broadcast(&s->wake);
        pthread_mutex_unlock(&s->lock);
    }
    work(s, 0);
}

// A product of each format and batch, on what the machine says it has: 0 if it is right. An instruction that is not
// there ends the process.
int decode_check(void) {
    enum { INPUTS = 128, OUTPUTS = TILE };
    uint8_t octets[OUTPUTS * INPUTS], nibbles[OUTPUTS * INPUTS / 2];
    float x[ROWS * INPUTS], scale[4 * OUTPUTS], zero[4 * OUTPUTS], out[ROWS * OUTPUTS], wrong = 0, size = 0;
    Inputs in = {0};
    if (!inputs_open(&in, 2)) return 2;
    for (int i = 0; i < ROWS * INPUTS; i++) x[i] = (float)(i * 7 % 255 - 127);
    for (int i = 0; i < OUTPUTS * INPUTS; i++) octets[i] = (uint8_t)(i * 11);
    for (int i = 0; i < OUTPUTS * INPUTS / 2; i++) nibbles[i] = (uint8_t)(i * 37);
    for (int i = 0; i < OUTPUTS * 4; i++) scale[i] = 1.0f + i % 3, zero[i] = (float)(i * 5 % 16);
    for (int kind = INT8; kind <= INT4_ZERO; kind++)
        for (int rows = 1; rows <= ROWS; rows++) {
            const int format = kind == INT8 ? INT8 : INT4;
            const void *weights[] = {octets, nibbles};
            Product p = {weights[format], scale, kind == INT4_ZERO ? zero : NULL, NULL, OUTPUTS, INPUTS, 32, format};
            take(&in, x, rows, INPUTS, INPUTS);
            product(&p, rows, &in, out, OUTPUTS, 0, OUTPUTS, 0.0f);
            for (int b = 0; b < rows; b++)
                for (int n = 0; n < OUTPUTS; n++) {
                    float wanted = 0;
                    for (int k = 0; k < INPUTS; k++) {
                        const int own = k / 32 * TILE + n, at = (k / QUAD * TILE + n) * QUAD + k % QUAD;
                        uint8_t pair = nibbles[((k / UNIT * 8 + k % 32 / QUAD) * TILE + n) * QUAD + k % QUAD];
                        float middle = kind == INT4_ZERO ? zero[own] : 8.0f;
                        float int4 = ((float)(k % UNIT < 32 ? pair & 15 : pair >> 4) - middle) * scale[own];
                        float int8 = (octets[at] - 128) * scale[n];
                        wanted += x[b * INPUTS + k] * (format == INT4 ? int4 : int8);
                    }
                    wrong += fabsf(wanted - out[b * OUTPUTS + n]), size += fabsf(wanted);
                }
        }
    inputs_close(&in);
    return !(wrong < 2e-2f * size);
}
