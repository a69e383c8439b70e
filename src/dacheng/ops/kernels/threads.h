// Phases of work shared out among threads, in pieces that are taken as they come. A phase is over when its pieces are
// done, not when every thread has come by: on a busy machine a thread that the system has put aside holds up nobody,
// unless it has a piece in its hands.
#pragma once
#include <cstdint>
#include <functional>

// Hands out the phases of one job; every thread that takes part calls `phase` for the same phases in the same order.
class Worker {
 public:
  virtual ~Worker() {}
  // work(begin, end) over pieces of [0, n) of at least `grain`; returns when all of [0, n) is done.
  virtual void phase(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& work) = 0;
};

// Runs `job` on up to `threads` threads, the caller among them, and returns when it is done. The job has at most
// `phases` phases; apart from them it must change nothing that the threads share.
void run_job(int64_t threads, int64_t phases, const std::function<void(Worker&)>& job);
