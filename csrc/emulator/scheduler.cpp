// Runs the threads of a launch on the CPU: each is a fiber, and one of them runs at a time, until it waits or ends.
// Blocks run one after another, or together if the launch is cooperative. What a GPU would leave undefined is an error
// where it shows.
#include "scheduler.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "instructions.h"

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

constexpr size_t red_zone = 64;
constexpr int most_pieces = 8;  // of shared memory, at a time
constexpr unsigned char red = 0xfb;

namespace {

enum class State { ready, waits_for_block, waits_for_grid, waits_for_warp, done };

struct Block;

struct Thread {
    Fiber fiber;
    Block* block = nullptr;
    uint3 index{};
    unsigned number = 0;  // within the block
    State state = State::ready;
    Where where{};       // what it waits for
    uint64_t given = 0;  // at a meeting of a warp
    int source = 0;
    std::vector<std::pair<Copy, int>> copies;  // with the number of its group, oldest first
    size_t landed = 0;
    int groups = 0;       // committed
    bool waited = false;  // for the grid before
    char met[2] = {};     // as Barrier::side, for the meetings of which this is the first lane
    int turn = 0;
};

// Lanes of a warp on their way to the same instruction.
struct Meeting {
    unsigned mask, arrived;
    int kind;  // ballot, nothing, or 0 for a shuffle
    Where where;
};

struct Barrier {
    uint64_t arrived = 0;
    char side[2] = {};  // what ThreadSanitizer knows it by, in turns: the fast may be at the next before the slow leave
    int turn = 0;
};

struct Block {
    uint3 index{};
    std::unique_ptr<Thread[]> threads;
    Barrier barrier;
    std::vector<std::vector<Meeting>> warps;
    std::vector<char> shared;
    int generation = 0;
    std::vector<std::pair<size_t, size_t>> pieces;  // offset, bytes
};

struct Launch {
    const cudaLaunchConfig_t* config = nullptr;
    void (*call)(const void*) = nullptr;
    const void* arguments = nullptr;
    std::vector<std::unique_ptr<Block>> blocks;  // that are there at the same time
    bool cooperative = false, overlaps = false;
    Barrier barrier;  // the grid's
    cudaError_t error = cudaSuccess;
};

Launch* launch;
Thread* running;
Fiber scheduler;
std::vector<Stack> stacks;
uint64_t random_state = 0;
// Ends the launch. The fiber that found the fault is never resumed.
[[noreturn]] void fault(cudaError_t error, const std::string& what) {
    const uint3 b = running->block->index, t = running->index;
    launch->error =
        fail(error, "thread (%u, %u, %u) of block (%u, %u, %u): %s", t.x, t.y, t.z, b.x, b.y, b.z, what.c_str());
    release(launch);
    scheduler.resume(running->fiber);
    std::abort();
}

std::string text(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }

void leave(Fiber& from);

void wait(State state, Where where) {
    running->state = state;
    running->where = where;
    release(launch);  // should the launch fail, this thread's memory is freed
    leave(running->fiber);
}

// Below `limit`, which is below 2^32. Its quality is enough to mix an order; it is drawn for every thread and barrier.
uint64_t random_below(uint64_t limit) {
    random_state = random_state * 6364136223846793005 + 1442695040888963407;
    return (random_state >> 32) * limit >> 32;
}

template <class Item>
void mix(std::vector<Item>& items) {
    for (size_t left = items.size(); left > 1; --left) std::swap(items[left - 1], items[random_below(left)]);
}

void thread_main() {
    launch->call(launch->arguments);
    if (launch->overlaps && !running->waited) {
        fault(cudaErrorLaunchFailure, "has not waited for the launch before, which may be under way");
    }
    release(launch);
    running->state = State::done;
    leave(running->fiber);
}

// The threads of a block that wait for this go on; they must have come to it at the same place.
void let_go(Block& block, State state) {
    for (unsigned t = 0; t < count(blockDim); ++t) {
        Thread& thread = block.threads[t];
        if (thread.state != state) continue;
        if (thread.where.line != running->where.line || thread.where.file != running->where.file) {
            fault(cudaErrorLaunchFailure, "is at the barrier of " + text(running->where) + " while thread " +
                                              std::to_string(t) + " is at that of " + text(thread.where));
        }
        thread.state = State::ready;
    }
}

void arrive(Barrier& barrier, uint64_t expected, State state, Where where) {
    char* side = &barrier.side[barrier.turn];
    release(side);
    running->where = where;
    if (++barrier.arrived < expected) {
        wait(state, where);
    } else if (state == State::waits_for_block) {
        let_go(*running->block, state);
    } else {
        for (auto& block : launch->blocks) let_go(*block, state);
    }
    if (side == &barrier.side[barrier.turn]) {  // the last to arrive, who did not wait
        barrier.arrived = 0;
        barrier.turn ^= 1;
    }
    acquire(side);
}

// memset, unseen by ThreadSanitizer, which would take it for the running thread's own.
void fill(char* to, unsigned char value, size_t bytes) {
#ifdef EMULATOR_THREAD
    for (size_t at = 0; at < bytes; ++at) reinterpret_cast<volatile unsigned char*>(to)[at] = value;
#else
    std::memset(to, value, bytes);
#endif
}

void lay_out_shared(Block& block) {
    block.pieces.clear();
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(block.shared.data(), block.shared.size());
#endif
    fill(block.shared.data(), red, block.shared.size());
#ifdef EMULATOR_ADDRESS
    __asan_poison_memory_region(block.shared.data(), block.shared.size());
#endif
}

// The error is found after the fact, so that no thread is to blame.
void check_red_zones(const Block& block) {
#if !defined(EMULATOR_ADDRESS) && !defined(EMULATOR_THREAD)  // a sanitizer would mistake the reads for a kernel's
    size_t from = 0;
    for (size_t p = 0; p <= block.pieces.size(); ++p) {
        const size_t to = p < block.pieces.size() ? block.pieces[p].first : block.shared.size();
        const char* zone = block.shared.data() + from;
        if (zone[0] == char(red) && std::memcmp(zone, zone + 1, to - from - 1) == 0) {  // all bytes alike
            if (p < block.pieces.size()) from = block.pieces[p].first + block.pieces[p].second;
            continue;
        }
        const std::string where = p ? "after its piece " + std::to_string(p - 1) : "before its first piece";
        launch->error = fail(cudaErrorIllegalAddress, "block (%u, %u, %u): wrote outside its shared memory, %s",
                             block.index.x, block.index.y, block.index.z, where.c_str());
        return;
    }
#endif
}

// A block that is new, or that has run before.
void prepare(Block& block, uint64_t number, size_t first_stack) {
    const dim3 grid = launch->config->gridDim;
    const unsigned threads = count(blockDim);
    block.index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    block.generation = 0;
    block.shared.resize(launch->config->dynamicSmemBytes + red_zone * (most_pieces + 1));
    lay_out_shared(block);
    if (!block.threads) {
        block.threads = std::make_unique<Thread[]>(threads);
        block.warps.resize((threads + warpSize - 1) / warpSize);
        // No fiber may free what another has allocated: a sanitizer would call that a race.
        for (auto& meetings : block.warps) meetings.reserve(warpSize);
        block.pieces.reserve(most_pieces);
    }
    while (stacks.size() < first_stack + threads) stacks.emplace_back();
    for (unsigned t = 0; t < threads; ++t) {
        Thread& thread = block.threads[t];
        thread.block = &block;
        thread.number = t;
        thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        thread.state = State::ready;
        thread.copies.clear();
        thread.landed = 0;
        thread.groups = 0;
        thread.waited = false;
        thread.fiber.prepare(stacks[first_stack + t], thread_main);
    }
}

// The threads that are there and not done, in the order of this pass through them.
std::vector<Thread*> order;
size_t next_in_order = 0;
bool anybody_ran = false;

// Leaves `from` for the next thread that is ready, or, when none is or the launch has failed, for the scheduler.
void leave(Fiber& from) {
    while (launch->error == cudaSuccess) {
        while (next_in_order < order.size()) {
            Thread* thread = order[next_in_order++];
            if (thread->state != State::ready) continue;
            anybody_ran = true;
            running = thread;
            threadIdx = thread->index;
            blockIdx = thread->block->index;
            if (&thread->fiber != &from) thread->fiber.resume(from);
            return;
        }
        if (!anybody_ran) break;
        order.erase(std::remove_if(order.begin(), order.end(), [](Thread* t) { return t->state == State::done; }),
                    order.end());
        mix(order);
        next_in_order = 0;
        anybody_ran = false;
    }
    scheduler.resume(from);
}

// Runs the blocks that are there until all threads are done.
void run_blocks() {
    order.clear();
    for (auto& block : launch->blocks) {
        for (unsigned t = 0; t < count(blockDim); ++t) {
            if (block->threads[t].state != State::done) order.push_back(&block->threads[t]);
        }
    }
    mix(order);
    next_in_order = 0;
    leave(scheduler);
    if (launch->error != cudaSuccess || order.empty()) return;
    const Thread& stuck = *order[0];
    const uint3 b = stuck.block->index, t = stuck.index;
    launch->error = fail(cudaErrorLaunchFailure,
                         "thread (%u, %u, %u) of block (%u, %u, %u): waits at %s, which not all threads reach", t.x,
                         t.y, t.z, b.x, b.y, b.z, text(stuck.where).c_str());
}

// Ends the threads of all blocks so far. ThreadSanitizer would take fibers and stacks that are used again for one
// thread.
void forget(Launch& here) {
    acquire(&here);
    here.blocks.clear();
    if (watched) stacks.clear();
}

}  // namespace

void seed(uint64_t number) { random_state = number; }

cudaError_t schedule(const cudaLaunchConfig_t& config, bool cooperative, bool overlaps, void (*call)(const void*),
                     const void* arguments) {
    Launch here;
    here.config = &config;
    here.call = call;
    here.arguments = arguments;
    here.cooperative = cooperative;
    here.overlaps = overlaps;
    launch = &here;
    blockDim = config.blockDim;
    gridDim = config.gridDim;
    scheduler.adopt_caller();
    const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
    std::vector<uint64_t> numbers(blocks);
    for (uint64_t b = 0; b < blocks; ++b) numbers[b] = b;
    mix(numbers);
    const bool keep = here.cooperative || watched;
    for (uint64_t b = 0; b < blocks && here.error == cudaSuccess; ++b) {
        if (watched && (here.blocks.size() + 1) * count(blockDim) > watched_threads) forget(here);
        if (keep || b == 0) here.blocks.push_back(std::make_unique<Block>());
        prepare(*here.blocks.back(), numbers[b], (here.blocks.size() - 1) * count(blockDim));
        if (here.cooperative && b + 1 < blocks) continue;
        run_blocks();
        for (const auto& block : here.blocks) {
            if (here.error == cudaSuccess) check_red_zones(*block);
        }
    }
    forget(here);
    launch = nullptr;
    return here.error;
}

void sync_threads(Where where) { arrive(running->block->barrier, count(blockDim), State::waits_for_block, where); }

void sync_grid(Where where) {
    if (!launch->cooperative) {
        fault(cudaErrorLaunchFailure,
              "synchronises the grid at " + text(where) + " in a launch that is not cooperative");
    }
    const uint64_t threads = launch->blocks.size() * uint64_t(count(blockDim));
    arrive(launch->barrier, threads, State::waits_for_grid, where);
}

uint64_t meet(unsigned mask, uint64_t value, int source, Where where) {
    Thread& me = *running;
    const unsigned lane = me.number % warpSize, bit = 1u << lane;
    Thread* warp = &me.block->threads[me.number - lane];
    const unsigned lanes = std::min<unsigned>(warpSize, count(blockDim) - (me.number - lane));
    if (!(mask & bit)) fault(cudaErrorLaunchFailure, "is not in its own mask at " + text(where));
    if (lanes < 32 && mask >> lanes)
        fault(cudaErrorLaunchFailure, "names lanes that the block does not have at " + text(where));
    if (source >= 0 && !(mask >> source & 1)) {
        fault(cudaErrorLaunchFailure,
              "reads lane " + std::to_string(source) + ", which is not active, at " + text(where));
    }
    const int kind = std::min(source, 0);
    auto& meetings = me.block->warps[me.number / warpSize];
    auto meeting = std::find_if(meetings.begin(), meetings.end(), [=](const Meeting& m) { return m.mask & bit; });
    if (meeting == meetings.end()) {
        for (const Meeting& other : meetings) {
            if (other.mask & mask)
                fault(cudaErrorLaunchFailure,
                      "waits at " + text(where) + " for lanes that are at " + text(other.where));
        }
        meeting = meetings.insert(meetings.end(), {mask, 0, kind, where});
    } else if (meeting->mask != mask || meeting->kind != kind || meeting->where.line != where.line ||
               meeting->where.file != where.file) {
        fault(cudaErrorLaunchFailure,
              "is at " + text(where) + " while lanes of its warp wait for it at " + text(meeting->where));
    }
    me.given = value;
    me.source = source;
    meeting->arrived |= bit;
    Thread& first = warp[__builtin_ctz(mask)];
    char* side = &first.met[first.turn];
    if (kind == nothing) release(side);  // __syncwarp orders memory, shuffles do not
    if (meeting->arrived == mask) {
        meetings.erase(meeting);
        first.turn ^= 1;
        uint64_t given[warpSize], votes = 0;
        for (unsigned l = 0; l < lanes; ++l) {
            given[l] = warp[l].given;
            if (mask >> l & 1) votes |= (given[l] & 1) << l;
        }
        for (unsigned l = 0; l < lanes; ++l) {
            if (!(mask >> l & 1)) continue;
            warp[l].given = warp[l].source == ballot ? votes : warp[l].source >= 0 ? given[warp[l].source] : 0;
            warp[l].state = State::ready;
        }
    } else {
        wait(State::waits_for_warp, where);
    }
    if (kind == nothing) acquire(side);
    return me.given;
}

void begin_copy(const Copy& copy) {
    const auto misaligned = [&](const void* p) { return (reinterpret_cast<uintptr_t>(p) & (copy.bytes - 1)) != 0; };
    if (misaligned(copy.shared) || misaligned(copy.global)) {
        fault(cudaErrorMisalignedAddress,
              "copies " + std::to_string(copy.bytes) + " bytes that are not aligned to as many");
    }
    const auto& shared = running->block->shared;
    if (copy.shared < shared.data() || copy.shared >= shared.data() + shared.size()) {
        fault(cudaErrorIllegalAddress, "copies asynchronously to memory that is not shared");
    }
    running->copies.emplace_back(copy, running->groups);
}

void commit_copies() { ++running->groups; }

bool next_landing(int newest, Copy& copy) {
    Thread& me = *running;
    if (me.landed == me.copies.size() || me.copies[me.landed].second >= me.groups - newest) return false;
    copy = me.copies[me.landed++].first;
    if (me.landed == me.copies.size()) {
        me.copies.clear();
        me.landed = 0;
    }
    return true;
}

void wait_for_grid_before() { running->waited = true; }

void* take_shared(int generation, int piece, size_t bytes) {
    Block& block = *running->block;
    if (generation > block.generation) {
        check_red_zones(block);
        if (launch->error != cudaSuccess) scheduler.resume(running->fiber);
        block.generation = generation;
        lay_out_shared(block);
    }
    if (generation < block.generation) {
        fault(cudaErrorLaunchFailure, "takes shared memory that another thread has released");
    }
    if (size_t(piece) < block.pieces.size()) {
        const auto [offset, had] = block.pieces[piece];
        if (had != bytes) {
            fault(cudaErrorLaunchFailure, "takes " + std::to_string(bytes) +
                                              " bytes of shared memory where another took " + std::to_string(had));
        }
        return block.shared.data() + offset;
    }
    // CUDA's own layout, so that the launch must have asked for enough, with red zones between the pieces.
    size_t offset = red_zone, used = 0;
    for (const auto& [at, size] : block.pieces) {
        offset = (at + size + red_zone + 15) / 16 * 16;
        used += (size + 15) / 16 * 16;
    }
    if (used + bytes > launch->config->dynamicSmemBytes || block.pieces.size() == most_pieces) {
        fault(cudaErrorIllegalAddress, "takes " + std::to_string(used + bytes) + " bytes of shared memory in " +
                                           std::to_string(block.pieces.size() + 1) + " pieces, of " +
                                           std::to_string(launch->config->dynamicSmemBytes) + " bytes launched");
    }
    char* memory = block.shared.data() + offset;
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(memory, bytes);
#endif
    fill(memory, 0xff, bytes);
    block.pieces.emplace_back(offset, bytes);
    return memory;
}

}  // namespace emulator

#ifndef EMULATOR_ADDRESS
// What the compiler's alignment checks call: the place in the source, and the address.
extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const void* data, uintptr_t address) {
    struct Place {
        const char* file;
        uint32_t line, column;
    };
    const auto* place = static_cast<const Place*>(data);
    char where[64];
    std::snprintf(where, sizeof where, ":%u: misaligned access to %#zx", place->line, size_t(address));
    emulator::fault(cudaErrorMisalignedAddress, "at " + std::string(place->file) + where);
}
#endif
