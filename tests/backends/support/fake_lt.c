/* A stand-in for cuBLASLt that multiplies on the host, so that every pointer, leading dimension, transpose, step, scale, alignment
 * and attribute that the binding hands over is checked by its result, on a machine without a GPU.
 *
 * It is as strict as the library and stricter: an algorithm serves only the descriptors that it was proposed for, addresses must be
 * as aligned as the preference said, a workspace is written over, and proposals come in an order that a careless caller would take
 * the wrong one of. What it cannot show is which algorithms the real library has, and how fast and in what order they add up.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_INITIALIZED = 1, INVALID = 7, FAILED = 13, INTERNAL = 14, NOT_SUPPORTED = 15 };
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum { IN_PLACE = 1, APART = 2, IN_TYPE = 4 };
enum { DESC = 0xdeca, LAYOUT = 0x1a70, PREFERENCE = 0x9ef, HANDLE = 0xba5 };

/* What the tests set and read. */
int fake_lt_refuse = 0; /* 1 epilogues, 2 every problem, 3 at the product itself, 4 fail there, 5 propose nothing for the moment, 6 do not start */
int fake_lt_calls = 0, fake_lt_asked = 0, fake_lt_in_place = 0, fake_lt_apart = 0, fake_lt_live = 0;
int fake_lt_compute = 0, fake_lt_epilogue = 0, fake_lt_batch = 0;
int fake_lt_without = 0;                      /* an epilogue that it does not have */
int fake_lt_keeps_nan = 1, fake_lt_slope = 0; /* what relu makes of NaN, and its slope at 0: NVIDIA says neither */
int fake_lt_version = 130300;
void *fake_lt_stream = 0;

typedef struct { uint32_t kind; int compute, scale; int32_t ta, tb; uint32_t epilogue; void *bias, *aux; int64_t aux_ld; } desc;
typedef struct { uint32_t kind; int type; uint64_t rows, columns; int64_t ld; int32_t batch; int64_t step; } layout;
typedef struct { uint32_t kind; uint64_t workspace; uint32_t schemes, align[4]; } preference;
typedef struct { uint64_t mark; uint32_t splits, scheme; uint64_t workspace, align[4]; uint32_t beside[2]; } algorithm;
typedef struct { algorithm algo; size_t workspace; int state; float waves; int reserved[4]; } proposal;
_Static_assert(sizeof(algorithm) == 64 && sizeof(proposal) == 96, "as in cublasLt.h");

static uint32_t handle = HANDLE;

size_t cublasLtGetCudartVersion(void) { return 0; } /* as the fake CuPy's: a real library would be of another */
size_t cublasLtGetVersion(void) { return fake_lt_version; }
const char *cublasLtGetStatusString(int status) { return status == NOT_SUPPORTED ? "not supported" : status == FAILED ? "failed" : "invalid"; }

int cublasLtCreate(void **made) { *made = &handle; return fake_lt_refuse == 6 ? NOT_INITIALIZED : OK; }
int cublasLtDestroy(void *h) { return *(uint32_t *)h == HANDLE ? OK : INVALID; }

static int size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : type == F16 || type == BF16 ? 2 : 0; }

static int destroy(void *object, uint32_t kind) {
    if (!object || *(uint32_t *)object != kind) return INVALID;
    *(uint32_t *)object = 0; /* a second destruction, or a use after it, is seen */
    free(object);
    fake_lt_live--;
    return OK;
}

int cublasLtMatmulDescCreate(void **made, int compute, int scale) {
    int known = (compute == 68 || compute == 69 || compute == 77) && scale == F32;
    if (!known && !((compute == 70 || compute == 71) && scale == F64)) return INVALID;
    desc *d = calloc(1, sizeof *d);
    d->kind = DESC, d->compute = compute, d->scale = scale, d->epilogue = 1;
    *made = d;
    fake_lt_live++;
    return OK;
}
int cublasLtMatmulDescDestroy(void *d) { return destroy(d, DESC); }

static int set(void *place, size_t size, const void *value, size_t given) {
    if (size != given) return INVALID;
    memcpy(place, value, size);
    return OK;
}

int cublasLtMatmulDescSetAttribute(void *object, int attribute, const void *value, size_t size) {
    desc *d = object;
    if (!d || d->kind != DESC) return INVALID;
    switch (attribute) {
    case 3: return set(&d->ta, 4, value, size);
    case 4: return set(&d->tb, 4, value, size);
    case 7: return set(&d->epilogue, 4, value, size);
    case 8: return set(&d->bias, 8, value, size);
    case 11: return set(&d->aux, 8, value, size);
    case 12: return set(&d->aux_ld, 8, value, size);
    default: return INVALID;
    }
}

int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    if (!size_of(type) || !rows || !columns || ld < (int64_t)rows) return INVALID;
    layout *l = calloc(1, sizeof *l);
    l->kind = LAYOUT, l->type = type, l->rows = rows, l->columns = columns, l->ld = ld, l->batch = 1;
    *made = l;
    fake_lt_live++;
    return OK;
}
int cublasLtMatrixLayoutDestroy(void *l) { return destroy(l, LAYOUT); }

int cublasLtMatrixLayoutSetAttribute(void *object, int attribute, const void *value, size_t size) {
    layout *l = object;
    if (!l || l->kind != LAYOUT) return INVALID;
    return attribute == 5 ? set(&l->batch, 4, value, size) : attribute == 6 ? set(&l->step, 8, value, size) : INVALID;
}

int cublasLtMatmulPreferenceCreate(void **made) {
    preference *p = calloc(1, sizeof *p);
    p->kind = PREFERENCE, p->schemes = 7;
    for (int i = 0; i < 4; i++) p->align[i] = 256;
    *made = p;
    fake_lt_live++;
    return OK;
}
int cublasLtMatmulPreferenceDestroy(void *p) { return destroy(p, PREFERENCE); }

int cublasLtMatmulPreferenceSetAttribute(void *object, int attribute, const void *value, size_t size) {
    preference *p = object;
    if (!p || p->kind != PREFERENCE) return INVALID;
    if (attribute == 1) return set(&p->workspace, 8, value, size);
    if (attribute == 3) return set(&p->schemes, 4, value, size);
    return attribute >= 5 && attribute <= 8 ? set(&p->align[attribute - 5], 4, value, size) : INVALID;
}

/* Everything that the choice of an algorithm may depend on, in one number. */
static uint64_t mark_of(const desc *o, const layout *a, const layout *b, const layout *d) {
    uint64_t parts[] = {o->compute, o->ta, o->tb, o->epilogue, o->aux_ld, a->type, a->rows, a->columns, a->ld, a->batch, a->step, b->type, b->rows,
                        b->columns, b->ld, b->batch, b->step, d->type, d->rows, d->columns, d->ld, d->batch, d->step};
    uint64_t mark = 14695981039346656037u;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) mark = (mark ^ parts[i]) * 1099511628211u;
    return mark;
}

enum { RELU_AUX = 130, DRELU = 136, GELU_AUX = 160, DGELU = 192, BGRAD = 16, BGRAD_A = 256, BGRAD_B = 512 };

/* Functions of an epilogue, without what else it does. */
static int is_relu(uint32_t e) { return e == 2 || e == 6 || e == RELU_AUX || e == (RELU_AUX | 4); }
static int is_gelu(uint32_t e) { return e == 32 || e == 36 || e == GELU_AUX || e == (GELU_AUX | 4); }
static int is_slope(uint32_t e) { return (e & ~BGRAD) == DRELU || (e & ~BGRAD) == DGELU; }
static int of_bits(uint32_t e) { return (e & ~4) == RELU_AUX || (e & ~BGRAD) == DRELU; }
static int adds_bias(uint32_t e) { return e == 4 || ((is_relu(e) || is_gelu(e)) && (e & 4)); }
static int sums(uint32_t e) { return e == BGRAD_A || e == BGRAD_B || (is_slope(e) && (e & BGRAD)); }

/* What must be set beside the matrices, and how: cublasLtMatmulDescAttributes_t in cublasLt.h. */
static int beside(const desc *o, const layout *d) {
    uint32_t e = o->epilogue;
    int known = e == 1 || adds_bias(e) || is_relu(e) || is_gelu(e) || is_slope(e) || sums(e);
    if (!known || (int)e == fake_lt_without) return NOT_SUPPORTED;
    if ((adds_bias(e) || sums(e)) && !o->bias) return INVALID; /* where it lies decides on the algorithm */
    if (e < 256 && (e & 128)) {
        int unit = of_bits(e) ? 128 : 8;
        if (!o->aux || o->aux_ld % unit || o->aux_ld < (int64_t)d->rows) return INVALID;
        if (d->batch > 1) return INVALID; /* without a step for it */
    }
    return sums(e) && d->batch > 1 ? INVALID : OK;
}

static uint32_t aligned(const void *at) {
    uint32_t n = 256;
    while ((uintptr_t)at % n) n /= 2;
    return n;
}

static int fits(const desc *o, const layout *a, const layout *b, const layout *d) {
    if (!o || o->kind != DESC || !a || a->kind != LAYOUT || !b || b->kind != LAYOUT || !d || d->kind != LAYOUT) return INVALID;
    uint64_t m = o->ta ? a->columns : a->rows, k = o->ta ? a->rows : a->columns;
    uint64_t n = o->tb ? b->rows : b->columns, k2 = o->tb ? b->columns : b->rows;
    if (k != k2 || d->rows != m || d->columns != n || a->batch != d->batch || b->batch != d->batch) return INVALID;
    int wide = o->compute == 70 || o->compute == 71, plain = o->epilogue == 1;
    int halves = a->type == F16 || a->type == BF16;
    if (a->type != b->type || wide != (a->type == F64) || (o->compute == 77 && a->type != F32)) return NOT_SUPPORTED;
    if (a->type != d->type && !(halves && d->type == F32)) return NOT_SUPPORTED;
    if (!plain && wide) return NOT_SUPPORTED;
    if (o->epilogue > 64 && a->type != d->type) return NOT_SUPPORTED;
    return beside(o, d);
}

int cublasLtMatmulAlgoGetHeuristic(void *h, void *operation, void *a, void *b, void *c, void *d, void *prefer, int most, void *found, int *count) {
    preference *p = prefer;
    *count = 0;
    fake_lt_asked++;
    if (!h || *(uint32_t *)h != HANDLE || c != d || !p || p->kind != PREFERENCE) return INVALID;
    int status = fake_lt_refuse == 5 ? INTERNAL : fits(operation, a, b, d);
    if (status) return status;
    if (fake_lt_refuse == 2 || (fake_lt_refuse == 1 && ((desc *)operation)->epilogue != 1)) return NOT_SUPPORTED;
    const desc *o = operation;
    const layout *la = a;
    uint64_t k = o->ta ? la->rows : la->columns;
    proposal *made = found;
    /* What does not run, what adds up in an order that is not fixed, what rounds partial sums; the one to take is the last. */
    struct { int state; uint32_t splits, scheme; uint64_t workspace; } all[] = {
        {NOT_SUPPORTED, 1, 0, 0}, {OK, 4, IN_PLACE, 256}, {OK, 4, IN_TYPE, 4096}, {OK, 2, APART, p->workspace + 1}, {OK, 1, 0, 0}};
    if (k >= 64) all[4].splits = 2, all[4].scheme = APART, all[4].workspace = 4096;
    for (int i = 0; i < 5 && i < most; i++, ++*count) {
        memset(&made[i], 0, sizeof made[i]);
        algorithm *algo = &made[i].algo;
        algo->mark = mark_of(operation, a, b, d), algo->splits = all[i].splits, algo->scheme = all[i].scheme;
        algo->workspace = all[i].workspace;
        for (int j = 0; j < 4; j++) algo->align[j] = p->align[j];
        algo->beside[0] = aligned(o->bias), algo->beside[1] = aligned(o->aux);
        made[i].state = all[i].state, made[i].workspace = all[i].workspace;
    }
    return OK;
}

int cublasLtMatmulAlgoConfigGetAttribute(const void *given, int attribute, void *value, size_t size, size_t *written) {
    const algorithm *algo = given;
    if (size != 4 || (attribute != 2 && attribute != 3)) return INVALID;
    memcpy(value, attribute == 2 ? &algo->splits : &algo->scheme, 4);
    *written = 4;
    return OK;
}

static double get(const void *place, int type, int64_t i) {
    if (type == F64) return ((const double *)place)[i];
    if (type == F32) return ((const float *)place)[i];
    if (type == F16) return (double)((const _Float16 *)place)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)place)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void put(void *place, int type, int64_t i, double value) {
    if (type == F64) ((double *)place)[i] = value;
    else if (type == F32) ((float *)place)[i] = (float)value;
    else if (type == F16) ((_Float16 *)place)[i] = (_Float16)(float)value;
    else {
        float rounded = (float)value;
        uint32_t bits;
        memcpy(&bits, &rounded, 4);
        bits += 0x7fff + ((bits >> 16) & 1);
        ((uint16_t *)place)[i] = rounded != rounded ? 0x7fc0 : (uint16_t)(bits >> 16);
    }
}

static double tf32(double value) {
    float rounded = (float)value;
    uint32_t bits;
    memcpy(&bits, &rounded, 4);
    bits = (bits + 0x0fff + ((bits >> 13) & 1)) & 0xffffe000u;
    memcpy(&rounded, &bits, 4);
    return rounded;
}

static double inner(double x) { return 0.7978845608028654 * (x + 0.044715 * x * x * x); }

/* The result for x; `bits` and `kept` are where the way forth writes and the way back reads. */
static double activated(const desc *o, double x, int type, int64_t row, int64_t column) {
    uint32_t e = o->epilogue;
    int64_t at = row + column * o->aux_ld;
    uint8_t *byte = o->aux && of_bits(e) ? (uint8_t *)o->aux + at / 8 : 0, bit = (uint8_t)(1u << at % 8);
    if (is_relu(e)) {
        if (byte) *byte = x > 0 || (fake_lt_slope && x == 0) ? *byte | bit : *byte & ~bit;
        return x > 0 || (fake_lt_keeps_nan && x != x) ? x : 0;
    }
    if (is_gelu(e)) {
        if (e & 128) put(o->aux, type, at, x);
        return 0.5 * x * (1 + tanh(inner(x)));
    }
    if ((e & ~BGRAD) == DRELU) return *byte & bit ? x : 0;
    if ((e & ~BGRAD) == DGELU) {
        double z = get(o->aux, type, at), t = tanh(inner(z));
        return x * 0.5 * (1 + t + z * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * z * z));
    }
    return x;
}

int cublasLtMatmul(void *h, void *operation, const void *alpha, const void *a, void *la, const void *b, void *lb, const void *beta,
                   const void *c, void *lc, void *d, void *ld, const void *chosen, void *workspace, size_t size, void *stream) {
    const desc *o = operation;
    const layout *A = la, *B = lb, *D = ld;
    const algorithm *algo = chosen;
    if (!h || *(uint32_t *)h != HANDLE || !c || lc != ld || !a || !b || !d) return INVALID;
    int status = fits(o, A, B, D);
    if (status) return status;
    if (!algo || algo->mark != mark_of(o, A, B, D)) return INVALID;
    if ((uintptr_t)a % algo->align[0] || (uintptr_t)b % algo->align[1] || (uintptr_t)d % algo->align[3]) return INVALID;
    if ((uintptr_t)c % algo->align[2]) return INVALID;
    if (algo->workspace && (!workspace || size < algo->workspace || (uintptr_t)workspace % 16)) return INVALID;
    int biased = adds_bias(o->epilogue), summed = sums(o->epilogue);
    if ((biased || summed) && ((uintptr_t)o->bias % algo->align[3] || (uintptr_t)o->bias % algo->beside[0])) return INVALID;
    if (o->aux && ((uintptr_t)o->aux % algo->align[3] || (uintptr_t)o->aux % algo->beside[1])) return INVALID;
    fake_lt_stream = stream;
    if (fake_lt_refuse == 3) return NOT_SUPPORTED;
    if (fake_lt_refuse == 4) return FAILED;
    fake_lt_calls++, fake_lt_compute = o->compute, fake_lt_epilogue = (int)o->epilogue, fake_lt_batch = D->batch;
    fake_lt_in_place += algo->scheme == IN_PLACE, fake_lt_apart += algo->scheme == APART;
    if (algo->workspace) memset(workspace, 0xa5, algo->workspace);
    int wide = o->scale == F64, fast = o->compute == 77;
    double scale = wide ? *(const double *)alpha : *(const float *)alpha, keep = wide ? *(const double *)beta : *(const float *)beta;
    uint64_t k = o->ta ? A->rows : A->columns;
    for (int32_t z = 0; z < D->batch; z++) {
        for (uint64_t j = 0; j < D->columns; j++) {
            for (uint64_t i = 0; i < D->rows; i++) {
                double sum = 0;
                for (uint64_t l = 0; l < k; l++) {
                    double x = get(a, A->type, z * A->step + (int64_t)(o->ta ? l + i * A->ld : i + l * A->ld));
                    double y = get(b, B->type, z * B->step + (int64_t)(o->tb ? j + l * B->ld : l + j * B->ld));
                    if (fast) x = tf32(x), y = tf32(y);
                    sum += x * y;
                    if (!wide) sum = (float)sum;
                }
                int64_t at = z * D->step + (int64_t)(i + j * D->ld);
                double value = scale * sum + (keep != 0 ? keep * get(c, D->type, at) : 0); /* beta 0 reads nothing */
                if (biased) value += get(o->bias, D->type, (int64_t)i);
                put(d, D->type, at, activated(o, value, D->type, (int64_t)i, (int64_t)j));
            }
        }
    }
    if (summed) {
        int of_a = o->epilogue == BGRAD_A, of_b = o->epilogue == BGRAD_B;
        uint64_t wanted = of_b ? D->columns : D->rows, through = of_a || of_b ? k : D->columns;
        for (uint64_t i = 0; i < wanted; i++) {
            float sum = 0;
            for (uint64_t l = 0; l < through; l++)
                sum += of_a ? get(a, A->type, (int64_t)(o->ta ? l + i * A->ld : i + l * A->ld))
                       : of_b ? get(b, B->type, (int64_t)(o->tb ? i + l * B->ld : l + i * B->ld))
                              : get(d, D->type, (int64_t)(i + l * D->ld));
            put(o->bias, D->type, (int64_t)i, sum);
        }
    }
    return OK;
}
