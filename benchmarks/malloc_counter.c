/* Counts what a process holds on its heap between counter_start and counter_stop; preloaded by runtimes.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stddef.h>

static long held, peak;
static int on, looking;
static void *(*c_malloc)(size_t), *(*c_calloc)(size_t, size_t), *(*c_realloc)(void *, size_t);
static void *(*c_memalign)(size_t, size_t), *(*c_aligned)(size_t, size_t);
static int (*c_posix)(void **, size_t, size_t);
static void (*c_free)(void *);
static char early[1 << 16]; /* what dlsym itself asks for */
static size_t used;

static int is_early(void *at) { return (char *)at >= early && (char *)at < early + sizeof early; }

static void look_up(void) {
    if (c_malloc || looking) return;
    looking = 1;
    c_calloc = dlsym(RTLD_NEXT, "calloc");
    c_free = dlsym(RTLD_NEXT, "free");
    c_realloc = dlsym(RTLD_NEXT, "realloc");
    c_posix = dlsym(RTLD_NEXT, "posix_memalign");
    c_memalign = dlsym(RTLD_NEXT, "memalign");
    c_aligned = dlsym(RTLD_NEXT, "aligned_alloc");
    c_malloc = dlsym(RTLD_NEXT, "malloc");
}

static void *gained(void *at) {
    if (on && at) {
        long now = __sync_add_and_fetch(&held, (long)malloc_usable_size(at));
        if (now > peak) peak = now;
    }
    return at;
}

static void lost(void *at) {
    if (on && at) __sync_sub_and_fetch(&held, (long)malloc_usable_size(at));
}

void *malloc(size_t n) { look_up(); return gained(c_malloc(n)); }
void *memalign(size_t a, size_t n) { look_up(); return gained(c_memalign(a, n)); }
void *aligned_alloc(size_t a, size_t n) { look_up(); return gained(c_aligned(a, n)); }
void free(void *at) { if (!is_early(at)) { look_up(); lost(at); c_free(at); } }

void *calloc(size_t n, size_t size) {
    look_up();
    if (c_calloc) return gained(c_calloc(n, size));
    void *at = early + used;
    used += (n * size + 15) & ~(size_t)15;
    return at;
}

void *realloc(void *at, size_t n) { look_up(); lost(at); return gained(c_realloc(at, n)); }

int posix_memalign(void **at, size_t a, size_t n) {
    look_up();
    int error = c_posix(at, a, n);
    if (!error) gained(*at);
    return error;
}

void counter_start(void) { held = peak = 0; on = 1; }
long counter_stop(void) { on = 0; return peak; }
