// One decode step of a few rows on a CPU: norms, products over narrow weights, rotation, attention over the paged cache.
//
// Weights are int8 (one scale a row) or int4 (one scale a group); a product's inputs are rounded to int8 with one scale
// for 64, as VNNI multiplies them; the rest is float32. A step of one row is bound by the bytes of its weights: they are
// read once, in order, by all threads, which meet at a barrier between products. Plain C, without torch:
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

enum { ROWS = 8, AT_ONCE = 4, TILE = 4, BLOCK = 64, UNIT = 64, LANES = 16, SPINS = 2000 };
enum { INT8, INT4, INT4_ZERO }; // the last with zero points, as products are computed; theirs is INT4
enum { NONE, RMS, LAYER };
enum { RELU, SILU, GELU, GELU_TANH };

typedef struct {
    const void *weight;
    const float *scale, *zero, *bias; // scale: [N], of int4 [N, K / group], as zero, which is 8 throughout if absent
    int32_t outputs, inputs, group, format;
} Product;

typedef struct {
    const float *gain, *shift;
    float eps;
    int32_t kind;
} Norm;

typedef struct {
    Norm norm1, norm2, q_norm, k_norm;
    Product qkv, out, up, down;
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

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define VNNI 1
#endif

// Threads -----------------------------------------------------------------------------------------------------------

// Inputs of a product, of each thread: numbers [ROWS, units, UNIT], and by unit their scales and the sums of halves.
typedef struct {
    int8_t *q;
    float *scale, *sums, total[ROWS];
    int units;
} Inputs;

typedef struct {
    Model model;
    Layer *layers;
    Inputs *inputs;
    pthread_t *workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_int arrived, phase, asleep, turn;
    int stop, rows, started, threads; // threads of this step
    const int32_t *slots, *lengths;
    float *hidden, *qkv, *attended, *inner, *logits; // [ROWS, width of each]
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

// Wait for all threads: for a moment awake, then asleep. Who goes on spinning keeps its core from whoever it waits for.
static void meet(State *s) {
    // Both before arriving: once all have, the next step may begin, by other threads.
    const int phase = atomic_load(&s->phase), threads = s->threads;
    if (atomic_fetch_add(&s->arrived, 1) + 1 == threads) {
        atomic_store(&s->arrived, 0);
        atomic_store(&s->phase, phase + 1);
        if (atomic_load(&s->asleep)) syscall(SYS_futex, &s->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        return;
    }
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&s->phase, memory_order_acquire) != phase) return;
        pause_briefly();
    }
    atomic_fetch_add(&s->asleep, 1);
    while (atomic_load(&s->phase) == phase)
        syscall(SYS_futex, &s->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0);
    atomic_fetch_sub(&s->asleep, 1);
}

// A thread's part of `count` things in units of `unit`.
static inline void part(int count, int unit, int threads, int index, int *from, int *to) {
    int units = (count + unit - 1) / unit;
    *from = (int)((int64_t)units * index / threads) * unit;
    *to = (int)((int64_t)units * (index + 1) / threads) * unit;
    if (*to > count) *to = count;
}

// Inputs ------------------------------------------------------------------------------------------------------------

static inline int units_of(int inputs) { return (inputs + UNIT - 1) / UNIT; }

// Quantise inputs x [rows, stride]: int8 with one scale a unit, and the sums of what they then are.
static void take(Inputs *in, const float *x, int rows, int stride, int inputs) {
        for (int b = 0; b < rows; b++) {
        int8_t *q = in->q + (int64_t)b * in->units * UNIT;
        float all = 0;
        for (int u = 0; u < units_of(inputs); u++, q += UNIT) {
            float v[UNIT] = {0}, peak = 0, *sums = in->sums + ((int64_t)b * in->units + u) * 2;
            const float *from = x + (int64_t)b * stride + u * UNIT;
            memcpy(v, from, sizeof(float) * (inputs - u * UNIT < UNIT ? inputs - u * UNIT : UNIT));
            for (int i = 0; i < UNIT; i++) peak = fmaxf(peak, fabsf(v[i]));
            float scale = peak / 127, inverse = peak > 0 ? 127 / peak : 0;
            int32_t halves[2] = {0, 0};
            for (int i = 0; i < UNIT; i++) q[i] = (int8_t)(v[i] * inverse + (v[i] < 0 ? -0.5f : 0.5f));
            for (int i = 0; i < UNIT; i++) halves[i / 32] += q[i];
            in->scale[b * in->units + u] = scale;
            sums[0] = scale * halves[0], sums[1] = scale * halves[1];
            all += sums[0] + sums[1];
        }
        in->total[b] = all;
    }
}

// Products ----------------------------------------------------------------------------------------------------------

#define INLINE __attribute__((always_inline)) static inline

// The group of half a unit of inputs; groups are of 32, 64 or 128.
static inline int group_of(const Product *p, int half) { return half >> (p->group / 64); }

#ifndef VNNI
// What zero points take from a row's sum of int4 numbers.
static float excess(const Product *p, const Inputs *in, int64_t row, int b) {
    const int groups = p->inputs / p->group, halves = p->group / 32;
    const float *sums = in->sums + (int64_t)b * in->units * 2, *scale = p->scale + row * groups;
    float found = 0;
    for (int g = 0; g < groups; g++) {
        float own = 0;
        for (int h = 0; h < halves; h++) own += sums[g * halves + h];
        found += own * scale[g] * (p->zero ? p->zero[row * groups + g] : 8.0f);
    }
    return found;
}
#endif

#ifdef VNNI
// A row's numbers of groups, one for each half of a unit.
INLINE __m512 of_halves(const Product *p, const float *row, int u, int groups) {
    const float *at = row + group_of(p, 2 * u);
    __m512 both = _mm512_set1_ps(*at);
    return p->group < UNIT ? _mm512_mask_mov_ps(both, 0xff00, _mm512_set1_ps(at[2 * u + 1 < groups])) : both;
}

INLINE __m256 folded(__m512 a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}

// Sums of each of a tile's rows.
INLINE __m128 totals(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(folded(a), folded(b)), _mm256_hadd_ps(folded(c), folded(d)));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
#endif

// Sums of a tile of rows of an int8 or int4 weight from row n on, for `rows` inputs from `first` on. Units of a tile's
// rows lie side by side, so that memory is read strictly in order: only that is prefetched at full speed. Zero points of
// int4 are taken off where sums begin, in whole numbers: an excess for each row and group took longer than the product.
INLINE void narrow(const int format, const int rows, const Product *p, int n, const Inputs *in, int first,
                   float out[][TILE]) {
    const int units = units_of(p->inputs), size = format == INT8 ? UNIT : UNIT / 2;
    const int groups = format == INT8 ? 1 : p->inputs / p->group;
    const uint8_t *w = (const uint8_t *)p->weight + (int64_t)n * units * size;
    const float *scales = p->scale + (int64_t)n * groups;
#ifdef VNNI
    const float *zeros = format == INT4_ZERO ? p->zero + (int64_t)n * groups : NULL;
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(4), 1);
    __m512 acc[TILE][AT_ONCE];
    for (int r = 0; r < TILE; r++)
        for (int b = 0; b < rows; b++) acc[r][b] = _mm512_setzero_ps();
    for (int u = 0; u < units; u++) {
        __m512i q[AT_ONCE], less[AT_ONCE];
        __m512 scale[AT_ONCE];
        for (int b = 0; b < rows; b++) {
            q[b] = _mm512_loadu_si512(in->q + ((int64_t)(first + b) * in->units + u) * UNIT);
            scale[b] = _mm512_set1_ps(in->scale[(first + b) * in->units + u]);
            if (format == INT8) continue;
            less[b] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(format == INT4 ? 8 : 1), q[b]);
            less[b] = _mm512_sub_epi32(_mm512_setzero_si512(), less[b]);
        }
        for (int r = 0; r < TILE; r++, w += size) {
            __m512i numbers, zero;
            __m512 own;
            if (format == INT8) {
                numbers = _mm512_loadu_si512(w);
            } else {
                numbers = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)w));
                numbers = _mm512_and_si512(_mm512_srlv_epi32(numbers, shifts), _mm512_set1_epi8(15));
                own = of_halves(p, scales + r * groups, u, groups);
                if (format == INT4_ZERO) zero = _mm512_cvtps_epi32(of_halves(p, zeros + r * groups, u, groups));
            }
            for (int b = 0; b < rows; b++) {
                __m512i sum = format == INT8 ? _mm512_setzero_si512() : less[b];
                if (format == INT4_ZERO) sum = _mm512_mullo_epi32(sum, zero);
                __m512 dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sum, numbers, q[b]));
                acc[r][b] = _mm512_fmadd_ps(dot, format == INT8 ? scale[b] : _mm512_mul_ps(own, scale[b]), acc[r][b]);
            }
        }
    }
    for (int b = 0; b < rows; b++) {
        __m128 found = totals(acc[0][b], acc[1][b], acc[2][b], acc[3][b]);
        if (format == INT8) // whose numbers are stored plus 128
            found = _mm_mul_ps(_mm_sub_ps(found, _mm_set1_ps(128 * in->total[first + b])), _mm_loadu_ps(scales));
        _mm_storeu_ps(out[first + b], found);
    }
#else
    for (int b = 0; b < rows; b++)
        for (int r = 0; r < TILE; r++) out[first + b][r] = 0;
    for (int u = 0; u < units; u++)
        for (int r = 0; r < TILE; r++, w += size) {
            int16_t numbers[UNIT];
            if (format == INT8)
                for (int i = 0; i < UNIT; i++) numbers[i] = w[i];
            else
                for (int i = 0; i < UNIT / 2; i++) numbers[i] = w[i] & 15, numbers[UNIT / 2 + i] = w[i] >> 4;
            for (int b = 0; b < rows; b++) {
                const int8_t *q = in->q + ((int64_t)(first + b) * in->units + u) * UNIT;
                int32_t low = 0, high = 0;
                for (int i = 0; i < UNIT / 2; i++) low += numbers[i] * (int16_t)q[i];
                for (int i = UNIT / 2; i < UNIT; i++) high += numbers[i] * (int16_t)q[i];
                const float *at = scales + r * groups + (format == INT8 ? 0 : group_of(p, 2 * u));
                float one = format == INT8 ? 1 : *at, two = format == INT8 ? 1 : at[p->group < UNIT && 2 * u + 1 < groups];
                out[first + b][r] += in->scale[(first + b) * in->units + u] * (one * low + two * high);
            }
        }
    for (int b = first; b < first + rows; b++)
        for (int r = 0; r < TILE; r++)
            if (format == INT8) out[b][r] = (out[b][r] - 128 * in->total[b]) * scales[r];
            else out[b][r] -= excess(p, in, n + r, b);
#endif
}

// Outputs `from` to `to` of a product, the first a multiple of TILE: out [rows, wide] = value, or += factor * value.
// Inputs past the first few read the tile again, from the nearest cache.
INLINE void rows_of(const int format, const int at_once, const Product *p, int rows, const Inputs *in, float *out,
                    int wide, int from, int to, float factor) {
    float found[ROWS][TILE];
    for (int n = from; n < to; n += TILE) {
        for (int first = 0; first < rows; first += at_once) narrow(format, at_once, p, n, in, first, found);
        for (int b = 0; b < rows; b++)
            for (int r = 0; r < TILE && n + r < to; r++) {
                float *place = out + (int64_t)b * wide + n + r, value = found[b][r];
                if (p->bias) value += p->bias[n + r];
                *place = factor == 0.0f ? value : *place + factor * value;
            }
    }
}

// Batches that AT_ONCE does not divide are computed with rows more, which nobody reads.
#define CASE(format, at_once) \
    case (format) * 16 + (at_once): rows_of(format, at_once, p, rows, in, out, wide, from, to, factor); return;
#define CASES(format) CASE(format, 1) CASE(format, 2) CASE(format, 3) CASE(format, 4)

static void product(const Product *p, int rows, const Inputs *in, float *out, int wide, int from, int to,
                    float factor) {
    const int format = p->format == INT4 && p->zero ? INT4_ZERO : p->format;
    switch (format * 16 + (rows < AT_ONCE ? rows : AT_ONCE)) { CASES(INT8) CASES(INT4) CASES(INT4_ZERO) }
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

// A thread's part of a step.
static void work(State *s, int index) {
    const Model *m = &s->model;
    const int rows = s->rows, threads = s->threads, wide = m->hidden, total = (m->heads + 2 * m->kv_heads) * m->head_dim;
    const int heads = m->heads * m->head_dim, inner = m->inner;
    float *normed = s->normed + (int64_t)index * ROWS * wide, *scores = s->scores + (int64_t)index * m->longest;
    Inputs *in = s->inputs + index;
    int from, to;
    for (int l = 0; l < m->count; l++) {
        const Layer *layer = m->layers + l;
        for (int b = 0; b < rows; b++) normalize(&layer->norm1, s->hidden + b * wide, normed + b * wide, wide);
        take(in, normed, rows, wide, wide);
        part(total, TILE, threads, index, &from, &to);
        product(&layer->qkv, rows, in, s->qkv, total, from, to, 0.0f);
        meet(s);
        part(rows * m->heads, 1, threads, index, &from, &to);
        for (int item = from; item < to; item++) attend(s, layer, item / m->heads, item % m->heads, scores);
        meet(s);
        take(in, s->attended, rows, heads, heads);
        part(wide, TILE, threads, index, &from, &to);
        product(&layer->out, rows, in, s->hidden, wide, from, to, m->residual_scale);
        meet(s);
        for (int b = 0; b < rows; b++) normalize(&layer->norm2, s->hidden + b * wide, normed + b * wide, wide);
        take(in, normed, rows, wide, wide);
        const int width = layer->down.inputs;
        // Whole vectors, because the compiler's activation of what is left of one has other bits.
        part(width, LANES, threads, index, &from, &to);
        product(&layer->up, rows, in, s->inner, inner, from, to, 0.0f);
        if (layer->gated) product(&layer->up, rows, in, s->inner, inner, width + from, width + to, 0.0f);
        for (int b = 0; b < rows; b++) {
            float *gate = s->inner + (int64_t)b * inner;
            activate(layer, gate, layer->gated ? gate + width : NULL, from, to);
        }
        meet(s);
        take(in, s->inner, rows, inner, width);
        part(wide, TILE, threads, index, &from, &to);
        product(&layer->down, rows, in, s->hidden, wide, from, to, m->residual_scale);
        meet(s);
    }
    for (int b = 0; b < rows; b++) normalize(&m->norm, s->hidden + b * wide, normed + b * wide, wide);
    take(in, normed, rows, wide, wide);
    part(m->head.outputs, TILE, threads, index, &from, &to);
    product(&m->head, rows, in, s->logits, m->head.outputs, from, to, 0.0f);
    meet(s);
}

static void *worker(void *given) {
    Worker me = *(Worker *)given;
    State *s = me.state;
    free(given);
    for (int turn = 0;; turn++) {
        for (int spins = 0; spins < SPINS && atomic_load(&s->turn) == turn; spins++) pause_briefly();
        pthread_mutex_lock(&s->lock);
        while (atomic_load(&s->turn) == turn && !s->stop) pthread_cond_wait(&s->wake, &s->lock);
        pthread_mutex_unlock(&s->lock);
        if (s->stop) return NULL;
        work(s, me.index);
    }
}

// Interface ---------------------------------------------------------------------------------------------------------

static int inputs_open(Inputs *in, int units) {
    in->units = units;
    in->q = calloc((size_t)ROWS * units, UNIT);
    in->scale = calloc((size_t)ROWS * units, sizeof(float));
    in->sums = calloc((size_t)ROWS * units * 2, sizeof(float));
    return in->q && in->scale && in->sums;
}

static void inputs_close(Inputs *in) { free(in->q), free(in->scale), free(in->sums); }

void decode_close(State *s) {
    pthread_mutex_lock(&s->lock);
    s->stop = 1;
    atomic_fetch_add(&s->turn, 1);
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    for (int i = 1; i < s->started; i++) pthread_join(s->workers[i], NULL);
    for (int i = 0; s->inputs && i < s->model.threads; i++) inputs_close(s->inputs + i);
    free(s->layers), free(s->workers), free(s->qkv), free(s->attended), free(s->inner), free(s->normed);
    free(s->scores), free(s->inputs), free(s);
}

// What steps need beside the weights; NULL if memory or threads are short.
State *decode_open(const Model *model) {
    State *s = calloc(1, sizeof(State));
    if (!s) return NULL;
    const int threads = model->threads, heads = model->heads * model->head_dim;
    int widest = model->hidden > heads ? model->hidden : heads;
    for (int l = 0; l < model->count; l++)
        if (model->layers[l].down.inputs > widest) widest = model->layers[l].down.inputs;
    s->model = *model;
    s->layers = malloc(sizeof(Layer) * model->count);
    s->workers = calloc(threads, sizeof(pthread_t));
    s->inputs = calloc(threads, sizeof(Inputs));
    s->qkv = calloc((size_t)ROWS * (heads + 2 * model->kv_heads * model->head_dim), sizeof(float));
    s->attended = calloc((size_t)ROWS * heads, sizeof(float));
    s->inner = calloc((size_t)ROWS * model->inner, sizeof(float));
    s->normed = calloc((size_t)ROWS * threads * model->hidden, sizeof(float));
    s->scores = calloc((size_t)threads * model->longest, sizeof(float));
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    int ready = s->layers && s->workers && s->inputs && s->qkv && s->attended && s->inner && s->normed && s->scores;
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
// overwritten; logits [rows, vocabulary]. A step of one row may be this thread's alone.
void decode_step(State *s, int rows, const int32_t *slots, const int32_t *lengths, float *hidden, float *logits) {
    s->rows = rows, s->slots = slots, s->lengths = lengths, s->hidden = hidden, s->logits = logits;
    s->threads = rows == 1 && s->model.alone ? 1 : s->model.threads;
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
    enum { INPUTS = 128, OUTPUTS = 4 };
    uint8_t octets[OUTPUTS * INPUTS], nibbles[OUTPUTS * INPUTS / 2];
    float x[ROWS * INPUTS], scale[OUTPUTS * 4], zero[OUTPUTS * 4], out[ROWS * OUTPUTS], wrong = 0, size = 0;
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
                        int unit = k / UNIT * TILE + n; // of the tile
                        uint8_t pair = nibbles[unit * UNIT / 2 + k % 32];
                        float middle = kind == INT4_ZERO ? zero[n * 4 + k / 32] : 8.0f;
                        float int4 = ((float)(k % 64 < 32 ? pair & 15 : pair >> 4) - middle) * scale[n * 4 + k / 32];
                        float int8 = (octets[unit * UNIT + k % UNIT] - 128) * scale[n];
                        wanted += x[b * INPUTS + k] * (format == INT4 ? int4 : int8);
                    }
                    wrong += fabsf(wanted - out[b * OUTPUTS + n]), size += fabsf(wanted);
                }
        }
    inputs_close(&in);
    return !(wrong < 2e-2f * size);
}
