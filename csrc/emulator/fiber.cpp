#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_THREAD
#include <sanitizer/tsan_interface.h>
#endif

// scratchcuda_switch(void** from, void* to): saves what a call preserves on the stack that it leaves, and its stack
// pointer in *from; takes up the stack `to`, which was left in the same way.
#if defined(__x86_64__)
asm(R"(
.text
.globl scratchcuda_switch
.hidden scratchcuda_switch
.type scratchcuda_switch, @function
scratchcuda_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size scratchcuda_switch, .-scratchcuda_switch
)");
constexpr int saved_words = 8;     // six registers, the return address, and one that aligns the stack
constexpr int return_address = 6;  // above the registers
#elif defined(__aarch64__)
asm(R"(
.text
.globl scratchcuda_switch
.hidden scratchcuda_switch
.type scratchcuda_switch, %function
scratchcuda_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size scratchcuda_switch, .-scratchcuda_switch
)");
constexpr int saved_words = 20;
constexpr int return_address = 11;  // x30
#else
#error "the emulator switches fibers on x86-64 and AArch64"
#endif

extern "C" void scratchcuda_switch(void** from, void* to);

namespace emulator {

static Fiber* arriving;  // for the first steps on a new stack
static Fiber* leaving;

Stack::Stack() {
    const size_t page = sysconf(_SC_PAGESIZE);
    void* memory =
        mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        std::perror("scratchcuda emulator: no memory for a stack");
        std::abort();
    }
    lowest = static_cast<char*>(memory) + page;
}

Stack::~Stack() {
    const size_t page = sysconf(_SC_PAGESIZE);
    if (lowest) munmap(lowest - page, bytes + page);
}

void Fiber::prepare(const Stack& stack, void (*main)()) {
    entry = main;
    bottom = stack.bottom();
    bytes = Stack::bytes;
    // Tops at the same place of their pages would compete for the same lines of the cache.
    const size_t shift = reinterpret_cast<uintptr_t>(bottom) / (Stack::bytes + 4096) % 61 * 64;
    auto** top = reinterpret_cast<void**>(stack.bottom() + Stack::bytes - shift) - saved_words - 2;
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(bottom, bytes);  // the red zones of an earlier fiber's frames
#endif
    std::fill(top, top + saved_words + 2, nullptr);  // a debugger's backtrace ends at a return address of 0
    top[return_address] = reinterpret_cast<void*>(&Fiber::start);
    stack_pointer = top;
#ifdef EMULATOR_THREAD
    thread = __tsan_create_fiber(0);
    owns_thread = true;
#endif
}

void Fiber::adopt_caller() {
#ifdef EMULATOR_THREAD
    thread = __tsan_get_current_fiber();
#endif
}

Fiber::~Fiber() {
#ifdef EMULATOR_THREAD
    if (owns_thread) __tsan_destroy_fiber(thread);
#endif
}

void Fiber::resume(Fiber& from) {
    arriving = this;
    leaving = &from;
#ifdef EMULATOR_THREAD
    __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMULATOR_ADDRESS
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, bottom, bytes);
#endif
    scratchcuda_switch(&from.stack_pointer, stack_pointer);
#ifdef EMULATOR_ADDRESS
    __sanitizer_finish_switch_fiber(fake_stack, &leaving->bottom, &leaving->bytes);
#endif
}

void Fiber::start() {
#ifdef EMULATOR_ADDRESS
    __sanitizer_finish_switch_fiber(nullptr, &leaving->bottom, &leaving->bytes);
#endif
    arriving->entry();
    std::abort();  // entry never returns
}

void release([[maybe_unused]] void* address) {
#ifdef EMULATOR_THREAD
    __tsan_release(address);
#endif
}

void acquire([[maybe_unused]] void* address) {
#ifdef EMULATOR_THREAD
    __tsan_acquire(address);
#endif
}

}  // namespace emulator
