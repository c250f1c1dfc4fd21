// What stands in for Hopper's instructions where generated CUDA runs on a CPU (hopper.py): every thread of a block is
// one of the host's. Barriers, TMA's copies and wgmma do what the PTX ISA says of them, as late as it allows where that
// can show an error: multiplications happen when they are waited for, and read then what lies in shared memory.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <math.h>
#include <mutex>
#include <thread>
#include <vector>

struct Place { int x = 0, y = 0, z = 0; };
static thread_local Place threadIdx, blockIdx;
template <typename T> static T __shfl_sync(unsigned, T value, int, int) { return value; }  // of equal values only

namespace hopper {
// Of a tensor map: where the matrix begins, its sizes in elements, a row's bytes, the box; innermost first.
struct Map { const char* base; int64_t size[2], stride; int32_t box[2], swizzle; };

struct Barrier { int count = 0, pending = 0, phase = 0; int64_t bytes = 0; };

alignas(1024) static unsigned char shared[256 << 10];
static std::map<uint32_t, Barrier> barriers;
static std::mutex mutex;
static std::condition_variable changed;
// Those who are waited for together: a block's threads, and each of its warps.
struct Meeting { int there = 0, turn = 0; };
static Meeting everybody, warps[32];
static int threads;
static thread_local std::vector<std::function<void()>> started;
static thread_local std::vector<std::vector<std::function<void()>>> groups;

// What first went wrong; from then on nobody waits, and what is computed is of no use.
static std::atomic<const char*> failure;
static void fail(const char* what) {
  const char* none = nullptr;
  failure.compare_exchange_strong(none, what);
  changed.notify_all();
}

template <typename F> static void wait_until(std::unique_lock<std::mutex>& lock, F done) {
  // Many short waits: a process that is stopped for a while has not waited for ever.
  for (int second = 0; second < 60; second++)
    if (changed.wait_for(lock, std::chrono::seconds(1), [&] { return failure.load() || done(); })) return;
  fail("a thread waits for ever");
}

static uint32_t address(const void* p) { return uint32_t((const unsigned char*)p - shared); }
// The 128-byte swizzle: 16-byte units of a row of 128, exchanged by the row's number.
static uint32_t swizzled(uint32_t at) { return at ^ ((at >> 7 & 7) << 4); }

static void advance(Barrier& one) {
  if (one.pending == 0 && one.bytes == 0) { one.pending = one.count; one.phase++; changed.notify_all(); }
}
static Barrier& at(uint32_t place) {
  if (!barriers.count(place)) fail("a barrier that was not initialised");
  return barriers[place];
}
static void init(uint32_t place, int count) {
  std::lock_guard<std::mutex> lock(mutex);
  barriers[place] = Barrier{count, count, 0, 0};
}
static void arrive(uint32_t place, int count, int64_t bytes = 0) {
  std::lock_guard<std::mutex> lock(mutex);
  Barrier& one = at(place);
  one.bytes += bytes;
  if ((one.pending -= count) < 0) fail("more arrive at a barrier than it waits for");
  advance(one);
}
static void wait(const void* place, int parity) {
  std::unique_lock<std::mutex> lock(mutex);
  Barrier& one = at(address(place));
  wait_until(lock, [&] { return (one.phase & 1) != parity; });
}
static void meet(Meeting& one, int count) {
  std::unique_lock<std::mutex> lock(mutex);
  int turn = one.turn;
  if (++one.there == count) { one.there = 0; one.turn++; changed.notify_all(); }
  else wait_until(lock, [&] { return one.turn != turn; });
}
static void sync() { meet(everybody, threads); }

static void copy(uint32_t to, const void* map, int inner, int outer, uint32_t barrier) {
  Map from;
  std::memcpy(&from, map, sizeof from);
  if (to % 1024 || from.swizzle != 3 || from.box[0] * 2 > 128) fail("a tile that is not as the swizzle wants it");
  for (int row = 0; row < from.box[1]; row++)
    for (int column = 0; column < from.box[0]; column++) {
      int64_t x = inner + column, y = outer + row;
      uint16_t value = 0;
      if (x >= 0 && x < from.size[0] && y >= 0 && y < from.size[1])
        std::memcpy(&value, from.base + y * from.stride + x * 2, 2);
      std::memcpy(shared + swizzled(to + (row * from.box[0] + column) * 2), &value, 2);
    }
  std::lock_guard<std::mutex> lock(mutex);
  Barrier& one = at(barrier);
  one.bytes -= int64_t(from.box[0]) * from.box[1] * 2;
  advance(one);
}

// Element (i, k) of an operand of 16-bit elements: rows along the depth, or (transposed) across it.
template <typename T> static float element(uint64_t descriptor, int i, int k, bool transposed) {
  uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
           stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("a descriptor of another swizzle");
  uint32_t offset = transposed ? i % 64 * 2 + i / 64 * leading + k % 8 * 128 + k / 8 * stride
                               : i % 8 * 128 + i / 8 * stride + k * 2;
  T value;
  std::memcpy(&value, shared + swizzled(start + offset), 2);
  return float(value);
}

template <typename T>
static void multiply(int columns, std::vector<float*> sums, uint64_t a, uint64_t b, bool keep, bool ta, bool tb) {
  int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  started.push_back([=] {
    for (int half = 0; half < 2; half++)
      for (int eight = 0; eight < columns / 8; eight++)
        for (int pair = 0; pair < 2; pair++) {
          float& sum = *sums[eight * 4 + half * 2 + pair];
          float total = keep ? sum : 0.0f;
          for (int k = 0; k < 16; k++)
            total += element<T>(a, warp * 16 + half * 8 + lane / 4, k, ta) *
                     element<T>(b, eight * 8 + lane % 4 * 2 + pair, k, tb);
          sum = total;
        }
  });
}
static void commit() { groups.push_back(std::move(started)); started.clear(); }
static void wait_group(size_t left) {
  while (groups.size() > left) {
    for (auto& one : groups.front()) one();
    groups.erase(groups.begin());
  }
  // `.aligned`: a warp's threads go on together, so that what one of them says holds for all.
  meet(warps[threadIdx.x / 32], 32);
}

// Runs a grid's blocks one after the other; returns what went wrong, or null.
template <typename F> static const char* launch(int width, int height, int block, F kernel) {
  threads = block;
  for (int y = 0; y < height; y++)
    for (int x = 0; x < width; x++) {
      barriers.clear();
      everybody = Meeting();
      std::fill(warps, warps + 32, Meeting());
      std::memset(shared, 0x7f, sizeof shared);  // NaN
      std::vector<std::thread> all;
      for (int t = 0; t < block; t++)
        all.emplace_back([=] { threadIdx.x = t; blockIdx.x = x; blockIdx.y = y; kernel(); });
      for (auto& one : all) one.join();
      if (failure.load()) return failure.load();
    }
  return nullptr;
}
}  // namespace hopper
