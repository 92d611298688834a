/*
 * cnnbench-peak: measure the most that this processor does, as the ceiling that a benchmark's figures are held against.
 *
 *   cnnbench-peak [--seconds S] [--repeats N] --cpus 0,1 [KIND...]
 *
 * Prints one JSON object: for each KIND, or for all that this CPU has, the figure of the first CPU alone (one_core) and
 * that of all the given CPUs at once (all_cores), each the best of N repeats (10) of S seconds (0.01). One thread is
 * pinned to each CPU, and all of them start each repeat together. A repeat's figure is the sum of what each thread did
 * by the time that it had its CPU: a ceiling is not to fall because other programs take turns on the CPUs. That of triad
 * is what all threads moved, by the time from the first one's begin to the last one's end: they share the memory, and
 * one that had it for itself would count too much. A multiplication and an addition count as two operations.
 *
 * The arithmetic kinds keep CHAINS (for AMX: TILES) independent sums in registers, as many as the latency times the
 * throughput of any processor so far or more, and read no memory. What each sum must come to is known, and checked.
 *
 * triad is that of STREAM (https://www.cs.virginia.edu/stream/ref.html), a[i] = b[i] + q * c[i], counted as there: 24
 * bytes an element. Stores are streaming ones, so that what is counted is what is moved. The arrays have ARRAY_BYTES
 * each (16 MiB) for every thread. Before each pass, which is a repeat whatever S is, they are flushed from all caches:
 * so they need not be larger than a last-level cache, which a virtual machine shares with others or reports wrongly.
 *
 * Exit codes: 0 good, 1 failed, 2 bad usage, such as a kind that this CPU has not.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BAD_USAGE = 2, MOST_CPUS = CPU_SETSIZE, MOST_REPEATS = 1000 };

_Noreturn __attribute__((format(printf, 2, 3))) static void fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("cnnbench-peak: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(code);
}

/* ---- What this CPU has, as CPUID tells, and the operating system keeps the registers of ---- */

enum {
    AVX2_FMA = 1 << 0,
    AVX512F = 1 << 1,
    AVX_VNNI = 1 << 2,
    AVX512_VNNI = 1 << 3,
    AVX512_BF16 = 1 << 4,
    AMX_INT8 = 1 << 5,
    AMX_BF16 = 1 << 6,
};

static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static unsigned find_features(void)
{
    const uint64_t ymm = 0x6, zmm = 0xe6, tiles = 0x60000; /* bits of XCR0 */
    unsigned a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    bool fma = c & bit_FMA;
    uint64_t xcr0 = read_xcr0();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    unsigned subleaves = a;
    if ((xcr0 & ymm) == ymm && fma && b & 1u << 5)
        found |= AVX2_FMA;
    if ((xcr0 & zmm) == zmm && b & 1u << 16) {
        found |= AVX512F;
        if (c & 1u << 11)
            found |= AVX512_VNNI;
    }
    /* Tiles are off in every process until it asks for them (arch_prctl ARCH_REQ_XCOMP_PERM, Linux 5.16). */
    if ((xcr0 & tiles) == tiles && d & 1u << 24 && syscall(SYS_arch_prctl, 0x1023, 18) == 0) {
        if (d & 1u << 25)
            found |= AMX_INT8;
        if (d & 1u << 22)
            found |= AMX_BF16;
    }
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        if (found & AVX2_FMA && a & 1u << 4)
            found |= AVX_VNNI;
        if (found & AVX512F && a & 1u << 5)
            found |= AVX512_BF16;
    }
    return found;
}

/* ---- The kernels: one run of each takes some ten microseconds, that of triad milliseconds ---- */

enum { CHAINS = 12, TILES = 6, ROUNDS = 8000, TILE_ROUNDS = 800, FACTOR_X = 3, FACTOR_Y = 5 };
#define ARRAY_BYTES ((size_t)16 << 20)
#define ARRAY_LENGTH (ARRAY_BYTES / sizeof(double))

/* What a thread computes with: operands, the sums of its last run, and the arrays of triad. */
struct work {
    _Alignas(64) uint8_t x[1024], y[1024];
    _Alignas(64) uint8_t sums[CHAINS * 1024];
    double *a, *b, *c;
};

#define FOR_CHAINS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

/* The empty assembly makes a value unknown to the compiler, so that no two chains are taken for the same. */
#define START(N)                                                                                                       \
    sum##N = zero;                                                                                                     \
    __asm__ volatile("" : "+v"(sum##N));
#define ADVANCE(N) sum##N = STEP(sum##N, x, y);
#define STORE(N) memcpy(work->sums + N * sizeof sum##N, &sum##N, sizeof sum##N);
#define DEFINE_KERNEL(NAME, TARGET, SUM, OPERAND)                                                                      \
    __attribute__((target(TARGET))) static void NAME(struct work *work)                                                \
    {                                                                                                                  \
        SUM sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7, sum8, sum9, sum10, sum11;                                  \
        const SUM zero = {0};                                                                                          \
        OPERAND x, y;                                                                                                  \
        memcpy(&x, work->x, sizeof x);                                                                                 \
        memcpy(&y, work->y, sizeof y);                                                                                 \
        FOR_CHAINS(START)                                                                                              \
        for (int round = 0; round < ROUNDS; round++) {                                                                 \
            FOR_CHAINS(ADVANCE)                                                                                        \
        }                                                                                                              \
        FOR_CHAINS(STORE)                                                                                              \
    }

#define STEP(SUM, X, Y) _mm256_fmadd_ps(X, Y, SUM)
DEFINE_KERNEL(run_fma_avx2, "avx2,fma", __m256, __m256)
#undef STEP
#define STEP(SUM, X, Y) _mm512_fmadd_ps(X, Y, SUM)
DEFINE_KERNEL(run_fma_avx512, "avx512f", __m512, __m512)
#undef STEP
#define STEP(SUM, X, Y) _mm256_dpbusd_avx_epi32(SUM, X, Y)
DEFINE_KERNEL(run_vnni_avx2, "avx2,avxvnni", __m256i, __m256i)
#undef STEP
#define STEP(SUM, X, Y) _mm512_dpbusd_epi32(SUM, X, Y)
DEFINE_KERNEL(run_vnni_avx512, "avx512f,avx512vnni", __m512i, __m512i)
#undef STEP
#define STEP(SUM, X, Y) _mm512_dpbf16_ps(SUM, X, Y)
DEFINE_KERNEL(run_bf16_avx512, "avx512f,avx512bf16", __m512, __m512bh)
#undef STEP

/* Tiles 0 to 5 hold sums, 6 and 7 the operands; all of 16 rows of 64 bytes. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

#define DEFINE_TILE_KERNEL(NAME, TARGET, STEP)                                                                         \
    __attribute__((target(TARGET))) static void NAME(struct work *work)                                                \
    {                                                                                                                  \
        struct tile_config config = {.palette = 1};                                                                    \
        for (int tile = 0; tile < 8; tile++) {                                                                         \
            config.row_bytes[tile] = 64;                                                                               \
            config.rows[tile] = 16;                                                                                    \
        }                                                                                                              \
        _tile_loadconfig(&config);                                                                                     \
        _tile_loadd(6, work->x, 64);                                                                                   \
        _tile_loadd(7, work->y, 64);                                                                                   \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        _tile_zero(4);                                                                                                 \
        _tile_zero(5);                                                                                                 \
        for (int round = 0; round < TILE_ROUNDS; round++) {                                                            \
            STEP(0, 6, 7);                                                                                             \
            STEP(1, 6, 7);                                                                                             \
            STEP(2, 6, 7);                                                                                             \
            STEP(3, 6, 7);                                                                                             \
            STEP(4, 6, 7);                                                                                             \
            STEP(5, 6, 7);                                                                                             \
        }                                                                                                              \
        _tile_stored(0, work->sums, 64);                                                                               \
        _tile_stored(1, work->sums + 1024, 64);                                                                        \
        _tile_stored(2, work->sums + 2048, 64);                                                                        \
        _tile_stored(3, work->sums + 3072, 64);                                                                        \
        _tile_stored(4, work->sums + 4096, 64);                                                                        \
        _tile_stored(5, work->sums + 5120, 64);                                                                        \
        _tile_release();                                                                                               \
    }

DEFINE_TILE_KERNEL(run_int8_amx, "amx-tile,amx-int8", _tile_dpbusd)
DEFINE_TILE_KERNEL(run_bf16_amx, "amx-tile,amx-bf16", _tile_dpbf16ps)

__attribute__((target("avx2,fma"))) static void run_triad(struct work *work)
{
    const __m256d q = _mm256_set1_pd(FACTOR_X);
    double *a = work->a, *b = work->b, *c = work->c;
    for (size_t i = 0; i < ARRAY_LENGTH; i += 8) { /* a cache line */
        _mm256_stream_pd(a + i, _mm256_fmadd_pd(q, _mm256_load_pd(c + i), _mm256_load_pd(b + i)));
        _mm256_stream_pd(a + i + 4, _mm256_fmadd_pd(q, _mm256_load_pd(c + i + 4), _mm256_load_pd(b + i + 4)));
    }
    _mm_sfence();
}

static void flush(const double *array)
{
    for (size_t i = 0; i < ARRAY_LENGTH; i += 8)
        _mm_clflush(array + i);
}

/* ---- The table of kinds ---- */

enum element { F32, BF16, INT8, F64 };

/* `needs`: features; of two kernels of a kind the first that this CPU can run is taken. `amount`: what one run does. */
struct kernel {
    const char *kind, *isa, *unit;
    unsigned needs;
    void (*run)(struct work *);
    enum element element;
    int sums;
    double amount;
};

/* Lanes of a register or a tile, and the multiply-accumulates that a step does in each of them. */
#define VECTOR(LANES, MACS) CHAINS * LANES, 2.0 * CHAINS * LANES * MACS * ROUNDS
#define TILE(MACS) TILES * 256, 2.0 * TILES * 256 * MACS * TILE_ROUNDS

static const struct kernel KERNELS[] = {
    {"fp32", "avx512f", "GFLOP/s", AVX512F, run_fma_avx512, F32, VECTOR(16, 1)},
    {"fp32", "avx2 and fma", "GFLOP/s", AVX2_FMA, run_fma_avx2, F32, VECTOR(8, 1)},
    {"vnni", "avx512_vnni", "GOP/s", AVX512_VNNI, run_vnni_avx512, INT8, VECTOR(16, 4)},
    {"vnni", "avx_vnni", "GOP/s", AVX_VNNI, run_vnni_avx2, INT8, VECTOR(8, 4)},
    {"avx512_bf16", "avx512_bf16", "GFLOP/s", AVX512_BF16, run_bf16_avx512, BF16, VECTOR(16, 2)},
    {"amx_int8", "amx_int8", "GOP/s", AMX_INT8, run_int8_amx, INT8, TILE(64)},
    {"amx_bf16", "amx_bf16", "GFLOP/s", AMX_BF16, run_bf16_amx, BF16, TILE(32)},
    {"triad", "avx2 and fma", "GB/s", AVX2_FMA, run_triad, F64, 0, 3.0 * ARRAY_BYTES},
};
enum { KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0] };

static double *allocate_array(double value)
{
    double *array = aligned_alloc((size_t)2 << 20, ARRAY_BYTES);
    if (array == NULL)
        fail(1, "no memory for the arrays of triad: %zu MiB for each CPU", 3 * ARRAY_BYTES >> 20);
    madvise(array, ARRAY_BYTES, MADV_HUGEPAGE); /* a kernel without huge pages does without */
    for (size_t i = 0; i < ARRAY_LENGTH; i++)
        array[i] = value;
    return array;
}

/* Fill in the operands; by the thread that uses them, so that they lie in its own memory. */
static void prepare(struct work *work, enum element element)
{
    for (size_t i = 0; i < sizeof work->x; i++) {
        static const uint8_t x_bf16[] = {0x40, 0x40}, y_bf16[] = {0xa0, 0x40}; /* 3 and 5 */
        static const uint8_t x_f32[] = {0, 0, 0x40, 0x40}, y_f32[] = {0, 0, 0xa0, 0x40};
        work->x[i] = element == INT8 ? FACTOR_X : element == BF16 ? x_bf16[i % 2] : x_f32[i % 4];
        work->y[i] = element == INT8 ? FACTOR_Y : element == BF16 ? y_bf16[i % 2] : y_f32[i % 4];
    }
    if (element == F64) {
        work->a = allocate_array(0);
        work->b = allocate_array(1);
        work->c = allocate_array(FACTOR_Y);
    }
}

/* Tell whether the last run has computed what it is counted for. */
static bool is_right(const struct work *work, const struct kernel *kernel)
{
    if (kernel->element == F64)
        return work->a[0] == 1 + FACTOR_X * FACTOR_Y && work->a[ARRAY_LENGTH - 1] == 1 + FACTOR_X * FACTOR_Y;
    double expected = kernel->amount / 2 / kernel->sums * FACTOR_X * FACTOR_Y;
    for (int i = 0; i < kernel->sums; i++) {
        int32_t integer;
        float real;
        memcpy(&integer, work->sums + 4 * i, 4);
        memcpy(&real, work->sums + 4 * i, 4);
        if ((kernel->element == INT8 ? integer : (double)real) != expected)
            return false;
    }
    return true;
}

/* ---- Measuring ---- */

/* What the threads of one measurement share; `arrivals` counts those at the start lines of all repeats so far. */
struct measurement {
    const struct kernel *kernel;
    int threads, repeats;
    double seconds;
    atomic_int arrivals;
};

/* What a thread did in one repeat. */
struct pass {
    double amount, begin_s, end_s, cpu_s;
};

struct thread {
    struct measurement *measurement;
    int cpu;
    struct pass passes[MOST_REPEATS];
    struct work work;
};

static double read_clock_s(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void *run_thread(void *argument)
{
    struct thread *thread = argument;
    struct measurement *measurement = thread->measurement;
    const struct kernel *kernel = measurement->kernel;
    struct work *work = &thread->work;
    prepare(work, kernel->element);
    for (int i = 0; i < measurement->repeats; i++) {
        double amount = 0, seconds = measurement->seconds;
        if (kernel->element == F64) {
            flush(work->b);
            flush(work->c);
            seconds = 0; /* one pass: a second one would find the end of the arrays in the cache */
        }
        atomic_fetch_add(&measurement->arrivals, 1);
        while (atomic_load(&measurement->arrivals) < (i + 1) * measurement->threads)
            sched_yield();
        double begin_s = read_clock_s(CLOCK_MONOTONIC), end_s;
        double begin_cpu_s = read_clock_s(CLOCK_THREAD_CPUTIME_ID);
        do {
            kernel->run(work);
            amount += kernel->amount;
        } while ((end_s = read_clock_s(CLOCK_MONOTONIC)) < begin_s + seconds);
        double cpu_s = read_clock_s(CLOCK_THREAD_CPUTIME_ID) - begin_cpu_s;
        thread->passes[i] = (struct pass){amount, begin_s, end_s, cpu_s};
        if (!is_right(work, kernel))
            fail(1, "%s: CPU %d computed something else than it was to", kernel->kind, thread->cpu);
    }
    free(work->a);
    free(work->b);
    free(work->c);
    return NULL;
}

/* Return the figure of one repeat, in units of 1e9 a second. */
static double rate(const struct kernel *kernel, struct thread *const *threads, int count, int repeat)
{
    double sum = 0, amount = 0, begin_s = threads[0]->passes[repeat].begin_s, end_s = 0;
    for (int i = 0; i < count; i++) {
        const struct pass *pass = &threads[i]->passes[repeat];
        sum += pass->amount / pass->cpu_s;
        amount += pass->amount;
        begin_s = pass->begin_s < begin_s ? pass->begin_s : begin_s;
        end_s = pass->end_s > end_s ? pass->end_s : end_s;
    }
    return (kernel->element == F64 ? amount / (end_s - begin_s) : sum) / 1e9;
}

/* Return the best figure of all repeats, in units of 1e9 a second, of the CPUs at once. */
static double measure(const struct kernel *kernel, const int *cpus, int count, double seconds, int repeats)
{
    struct measurement measurement = {.kernel = kernel, .threads = count, .repeats = repeats, .seconds = seconds};
    struct thread **threads = calloc(count, sizeof *threads);
    pthread_t *handles = calloc(count, sizeof *handles);
    double best = 0;
    for (int i = 0; i < count; i++) {
        pthread_attr_t attributes;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus[i], &set);
        threads[i] = aligned_alloc(64, (sizeof **threads + 63) / 64 * 64);
        if (threads[i] == NULL)
            fail(1, "no memory for %d threads", count);
        memset(threads[i], 0, sizeof **threads);
        threads[i]->measurement = &measurement;
        threads[i]->cpu = cpus[i];
        pthread_attr_init(&attributes);
        pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
        int code = pthread_create(&handles[i], &attributes, run_thread, threads[i]);
        if (code != 0)
            fail(1, "starting a thread on CPU %d: %s", cpus[i], strerror(code));
        pthread_attr_destroy(&attributes);
    }
    for (int i = 0; i < count; i++)
        pthread_join(handles[i], NULL);
    for (int i = 0; i < repeats; i++) {
        double figure = rate(kernel, threads, count, i);
        best = figure > best ? figure : best;
    }
    for (int i = 0; i < count; i++)
        free(threads[i]);
    free(threads);
    free(handles);
    return best;
}

/* ---- The command line ---- */

static double read_number(const char *option, const char *text, double least, double most, bool whole)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= least && value <= most) || (whole && value != (int)value))
        fail(BAD_USAGE, "%s %s: must be a %snumber from %g to %g", option, text, whole ? "whole " : "", least, most);
    return value;
}

/* Read CPU numbers separated by commas; return how many there are. */
static int read_cpus(char *text, int *cpus)
{
    cpu_set_t allowed, seen;
    int count = 0;
    CPU_ZERO(&seen);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        fail(1, "reading which CPUs are allowed: %s", strerror(errno));
    for (char *word = text, *next; word != NULL; word = next) {
        if ((next = strchr(word, ',')) != NULL)
            *next++ = '\0';
        char *end;
        long cpu = strtol(word, &end, 10);
        if (*word < '0' || *word > '9' || *end != '\0')
            fail(BAD_USAGE, "--cpus %s: must be CPU numbers separated by commas, such as 0,1", word);
        if (cpu >= MOST_CPUS || !CPU_ISSET(cpu, &allowed))
            fail(BAD_USAGE, "--cpus %s: this process may not use that CPU, or there is none", word);
        if (CPU_ISSET(cpu, &seen))
            fail(BAD_USAGE, "--cpus %s: is named twice", word);
        CPU_SET(cpu, &seen);
        cpus[count++] = (int)cpu;
    }
    return count;
}

/* Mark the kernels of the kinds asked for, or of all kinds that this CPU has when none is. */
static void choose_kernels(char **kinds, int count, unsigned features, bool *chosen)
{
    for (int i = 0; count == 0 && i < KERNEL_COUNT; i++) {
        bool has_better = i > 0 && strcmp(KERNELS[i].kind, KERNELS[i - 1].kind) == 0 && chosen[i - 1];
        chosen[i] = !has_better && (features & KERNELS[i].needs);
    }
    for (int k = 0; k < count; k++) {
        int found = -1;
        char missing[64] = "";
        for (int i = 0; i < KERNEL_COUNT && found < 0; i++) {
            if (strcmp(KERNELS[i].kind, kinds[k]) != 0)
                continue;
            if (features & KERNELS[i].needs)
                found = i;
            else
                snprintf(missing + strlen(missing), sizeof missing - strlen(missing), "%s%s", *missing ? " or " : "",
                         KERNELS[i].isa);
        }
        if (found < 0 && *missing)
            fail(BAD_USAGE, "%s: this CPU, or its operating system, lacks %s", kinds[k], missing);
        if (found < 0)
            fail(BAD_USAGE, "%s: no such kind; there are fp32, vnni, avx512_bf16, amx_int8, amx_bf16, triad", kinds[k]);
        chosen[found] = true;
    }
}

int main(int argc, char **argv)
{
    static int cpus[MOST_CPUS];
    int count = 0, repeats = 10, position = 1;
    double seconds = 0.01;
    bool chosen[KERNEL_COUNT] = {false};
    for (; position < argc && argv[position][0] == '-'; position += 2) {
        const char *option = argv[position];
        char *value = argv[position + 1]; /* NULL after the last word */
        if (strcmp(option, "--cpus") && strcmp(option, "--seconds") && strcmp(option, "--repeats"))
            fail(BAD_USAGE, "%s: no such option; usage: [--seconds S] [--repeats N] --cpus 0,1 [KIND...]", option);
        if (value == NULL)
            fail(BAD_USAGE, "%s: needs a value", option);
        if (strcmp(option, "--cpus") == 0)
            count = read_cpus(value, cpus);
        else if (strcmp(option, "--seconds") == 0)
            seconds = read_number(option, value, 0.001, 10, false);
        else
            repeats = (int)read_number(option, value, 1, MOST_REPEATS, true);
    }
    if (count == 0)
        fail(BAD_USAGE, "--cpus: must be given, such as --cpus 0,1");
    choose_kernels(argv + position, argc - position, find_features(), chosen);
    const char *separator = "";
    printf("{\"kinds\": {");
    for (int i = 0; i < KERNEL_COUNT; i++) {
        if (!chosen[i])
            continue;
        const struct kernel *kernel = &KERNELS[i];
        double one = measure(kernel, cpus, 1, seconds, repeats);
        double all = count == 1 ? one : measure(kernel, cpus, count, seconds, repeats);
        printf("%s\n  \"%s\": {\"unit\": \"%s\", \"isa\": \"%s\", \"one_core\": %.4f, \"all_cores\": %.4f}", separator,
               kernel->kind, kernel->unit, kernel->isa, one, all);
        separator = ",";
    }
    printf("\n}}\n");
    return fflush(stdout) == 0 ? 0 : 1;
}
