/*
 * libcnnbench-sampler: tell by samples which instructions a process runs, preloaded into it (LD_PRELOAD).
 *
 * Each thread has a timer of its own CPU time, whose signal records where the thread is: when, which thread, at what
 * address, and the code there, as code that was made at run time is gone when somebody asks. A thread that waits is
 * not sampled and not disturbed. Nothing is armed until the process asks for it:
 *
 *   cnnbench_sampler_open(PATH, CAPACITY, PERIOD_NS)   make the file of records; 0, or an errno
 *   cnnbench_sampler_arm()                             start the timers of all threads, later ones' as they begin
 *   cnnbench_sampler_record(ON)                        have samples recorded, or not
 *   cnnbench_sampler_disarm()                          stop the timers
 *
 * The handler calls nothing but the clock, allocates nothing and takes no lock. It runs on a stack of its own: kernels
 * may keep data below the stack pointer, where the kernel would put the signal's frame. So each thread has to be met as
 * it begins, for which pthread_create is wrapped; one that the C library did not start is not sampled. Programs that
 * the process runs in turn, and its forks, are not sampled: the library takes itself out of LD_PRELOAD.
 *
 * System calls that a signal interrupts are restarted (SA_RESTART), but for those that the kernel never restarts: poll,
 * select, epoll_wait, sleeps, semop and the like (signal(7)) return EINTR. A thread's timer counts its own CPU time only,
 * so its signal is due while it runs, and finds it in such a wait only if it became due on the way into it.
 *
 * The file is mapped and all there from the beginning (posix_fallocate), so that no record finds its place missing. One
 * that is full takes no more: the process goes on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the sampler reads the program counter of x86-64 only"
#endif

#define EXPORTED __attribute__((visibility("default")))

enum { CODE_BYTES = 231, HEADER_BYTES = 4096, PAGE_BYTES = 4096, SIGNAL_STACK_BYTES = 64 << 10 };

/* The file: this header in its first page, then records. worker/sampler.py reads the same. */
struct header {
    uint64_t magic, capacity, period_ns;
    _Atomic uint64_t seen;
};

struct record {
    uint64_t time_ns, address;
    uint32_t thread;
    uint16_t missed; /* how often the timer had fired besides since the last sample */
    uint16_t length; /* of the code */
    uint8_t in_kernel; /* whether the thread was about to come back from a system call */
    uint8_t code[CODE_BYTES];
};

static const uint64_t MAGIC = 0x31304c504d415343; /* "CSAMPL01" */
_Static_assert(sizeof(struct record) == 256, "a record has 256 bytes");

/* A thread that can be sampled; it lies at the bottom of its own signal stack's mapping. */
struct thread {
    struct thread *next, *previous;
    void *(*run)(void *);
    void *argument;
    pthread_t self;
    pid_t id;
    timer_t timer;
    bool armed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the next two; the handler never takes it */
static struct thread *threads;
static bool arming;
static bool meeting; /* whether threads are met as they begin: since the constructor, and not in a fork */
static pthread_key_t leaving;
static struct header *header;
static atomic_bool recording;
static __thread struct thread *me __attribute__((tls_model("initial-exec")));

static int signal_number(void)
{
    return SIGRTMAX - 7; /* the first ones are the C library's own, the next what programs take */
}

static void take_sample(int number, siginfo_t *info, void *context)
{
    (void)number;
    if (info->si_code != SI_TIMER || !me || info->si_value.sival_ptr != me)
        return; /* somebody else's signal */
    if (!atomic_load_explicit(&recording, memory_order_acquire))
        return;
    uint64_t at = atomic_fetch_add_explicit(&header->seen, 1, memory_order_relaxed);
    if (at >= header->capacity)
        return;
    struct record *record = (struct record *)((char *)header + HEADER_BYTES) + at;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* the vDSO's: no system call */
    uintptr_t address = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    size_t to_page_end = PAGE_BYTES - address % PAGE_BYTES; /* what follows that page may not be mapped */
    record->time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    record->address = address;
    record->thread = (uint32_t)me->id;
    record->missed = (uint16_t)(info->si_overrun < UINT16_MAX ? info->si_overrun : UINT16_MAX);
    record->length = (uint16_t)(to_page_end < CODE_BYTES ? to_page_end : CODE_BYTES);
    const uint8_t *before = (const uint8_t *)address - 2; /* of the same page, or perhaps of one that is not mapped */
    const uint8_t *here = (const uint8_t *)address;
    record->in_kernel = (address % PAGE_BYTES >= 2 && before[0] == 0x0f && before[1] == 0x05) || /* after a syscall, */
                        (record->length >= 2 && here[0] == 0x0f && here[1] == 0x05);            /* or it is restarted */
    memcpy(record->code, (const void *)address, record->length);
}

/* ---- Threads: met as they begin, given a signal stack and a timer, and let go as they end ---- */

static struct timespec as_timespec(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

static int arm(struct thread *thread)
{
    clockid_t clock;
    int error = pthread_getcpuclockid(thread->self, &clock);
    if (error)
        return error;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signal_number()};
    event.sigev_value.sival_ptr = thread;
    event._sigev_un._tid = thread->id;
    if (timer_create(clock, &event, &thread->timer) != 0)
        return errno;
    /* Each thread's first sample is due at another time, so that those of threads that run alike are not one. */
    uint64_t first_ns = 1 + (uint64_t)thread->id * 2654435761u % header->period_ns;
    struct itimerspec setting = {as_timespec(header->period_ns), as_timespec(first_ns)};
    if (timer_settime(thread->timer, 0, &setting, NULL) != 0) {
        error = errno;
        timer_delete(thread->timer);
        return error;
    }
    thread->armed = true;
    return 0;
}

static void disarm(struct thread *thread)
{
    if (thread->armed)
        timer_delete(thread->timer);
    thread->armed = false;
}

static void set_signal(int how)
{
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, signal_number());
    pthread_sigmask(how, &ours, NULL);
}

static struct thread *make_thread(void)
{
    void *place = mmap(NULL, SIGNAL_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return place == MAP_FAILED ? NULL : place;
}

/* Let the calling thread be sampled from now on. */
static void enter(struct thread *thread)
{
    stack_t stack = {.ss_sp = (char *)thread + sizeof *thread, .ss_size = SIGNAL_STACK_BYTES - sizeof *thread};
    thread->self = pthread_self();
    thread->id = (pid_t)syscall(SYS_gettid); /* gettid is younger than some C libraries */
    if (sigaltstack(&stack, NULL) != 0 || pthread_setspecific(leaving, thread) != 0)
        return;
    me = thread;
    set_signal(SIG_UNBLOCK);
    pthread_mutex_lock(&lock);
    thread->next = threads;
    if (threads)
        threads->previous = thread;
    threads = thread;
    if (arming)
        (void)arm(thread); /* a thread without samples is missed in their count, which is judged */
    pthread_mutex_unlock(&lock);
}

/* The destructor of `leaving`, in the thread that ends. */
static void leave(void *of_thread)
{
    struct thread *thread = of_thread;
    pthread_mutex_lock(&lock);
    disarm(thread);
    if (thread->previous)
        thread->previous->next = thread->next;
    else if (threads == thread)
        threads = thread->next;
    if (thread->next)
        thread->next->previous = thread->previous;
    pthread_mutex_unlock(&lock);
    set_signal(SIG_BLOCK); /* one may be on its way */
    me = NULL;
    stack_t stack = {.ss_flags = SS_DISABLE};
    if (sigaltstack(&stack, NULL) == 0)
        munmap(thread, SIGNAL_STACK_BYTES);
}

static void *begin(void *of_thread)
{
    struct thread *thread = of_thread;
    void *(*run)(void *) = thread->run;
    void *argument = thread->argument;
    enter(thread);
    return run(argument);
}

EXPORTED int pthread_create(pthread_t *made, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!create)
        *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
    struct thread *thread = meeting ? make_thread() : NULL;
    if (!thread)
        return create(made, attributes, run, argument);
    thread->run = run;
    thread->argument = argument;
    int error = create(made, attributes, begin, thread);
    if (error)
        munmap(thread, SIGNAL_STACK_BYTES);
    return error;
}

/* ---- A fork has one thread, no timers, and nothing to record ---- */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void in_fork(void)
{
    threads = NULL;
    if (me)
        me->armed = false; /* its timer stayed with the parent */
    me = NULL;
    arming = meeting = false;
    atomic_store(&recording, false);
    pthread_mutex_unlock(&lock);
}

/* Take this library out of what programs that are run in turn will have preloaded. */
static void leave_environment(void)
{
    const char *preloaded = getenv("LD_PRELOAD");
    const char *others = preloaded ? strpbrk(preloaded, ": ") : NULL;
    if (others && others[1])
        setenv("LD_PRELOAD", others + 1, 1);
    else
        unsetenv("LD_PRELOAD");
}

__attribute__((constructor)) static void prepare(void)
{
    leave_environment();
    struct thread *first = make_thread();
    if (!first || pthread_key_create(&leaving, leave) != 0 || pthread_atfork(before_fork, after_fork, in_fork) != 0)
        return;
    meeting = true;
    enter(first);
}

/* ---- What the process asks for ---- */

EXPORTED int cnnbench_sampler_open(const char *path, uint64_t capacity, uint64_t period_ns)
{
    struct sigaction was, action = {.sa_sigaction = take_sample, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    if (!meeting)
        return ENOMEM;
    if (sigaction(signal_number(), NULL, &was) != 0)
        return errno;
    if (was.sa_handler != SIG_DFL)
        return EBUSY;
    int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return errno;
    size_t bytes = HEADER_BYTES + capacity * sizeof(struct record);
    int error = posix_fallocate(file, 0, (off_t)bytes);
    void *place = error ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    if (!error && place == MAP_FAILED)
        error = errno;
    close(file);
    if (error)
        return error;
    header = place;
    header->magic = MAGIC;
    header->capacity = capacity;
    header->period_ns = period_ns;
    return sigaction(signal_number(), &action, NULL) == 0 ? 0 : errno;
}

EXPORTED int cnnbench_sampler_arm(void)
{
    int error = 0;
    if (!header)
        return ENOENT;
    pthread_mutex_lock(&lock);
    arming = true;
    for (struct thread *thread = threads; thread && !error; thread = thread->next)
        error = thread->armed ? 0 : arm(thread);
    pthread_mutex_unlock(&lock);
    return error;
}

EXPORTED void cnnbench_sampler_record(int on)
{
    atomic_store(&recording, header && on);
}

EXPORTED void cnnbench_sampler_disarm(void)
{
    atomic_store(&recording, false);
    pthread_mutex_lock(&lock);
    arming = false;
    for (struct thread *thread = threads; thread; thread = thread->next)
        disarm(thread);
    pthread_mutex_unlock(&lock);
}
