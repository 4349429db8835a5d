// Fibers: stacks of their own, switched to by hand, without the operating system. AddressSanitizer and ThreadSanitizer
// are told of each switch.
#pragma once

#include <cstddef>

namespace emulator {

// A stack, above a page that may not be touched, so that an overflow stops there.
class Stack {
  public:
#ifdef EMULATOR_ADDRESS  // which keeps variables apart
    static constexpr size_t bytes = 256 * 1024;
#else
    static constexpr size_t bytes = 64 * 1024;
#endif

    Stack();
    ~Stack();
    Stack(Stack&& other) noexcept : lowest(other.lowest) { other.lowest = nullptr; }
    char* bottom() const { return lowest; }

  private:
    char* lowest;
};

class Fiber {
  public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    ~Fiber();

    // Will run entry() on this stack at the first switch. entry never returns.
    void prepare(const Stack& stack, void (*entry)());
    // The fiber that this system thread runs already.
    void adopt_caller();

    // Leaves `from`, which is running, and goes on where this one left off.
    void resume(Fiber& from);

  private:
    void* stack_pointer = nullptr;
    void (*entry)() = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;
    void* thread = nullptr;  // ThreadSanitizer's
    bool owns_thread = false;

    static void start();
};

// Everything before release(a) in one fiber is before everything after acquire(a) in another; known to ThreadSanitizer
// alone, because only one fiber runs at a time.
void release(void* address);
void acquire(void* address);

}  // namespace emulator
