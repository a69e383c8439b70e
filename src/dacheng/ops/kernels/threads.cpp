// See threads.h.
#include "threads.h"

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

const int SPINS = 2000;          // about 20 us: longer than a phase is waited for when all threads run
const int YIELDS = 200;          // then the processor is offered to others
const int64_t PIECES = 4;        // of a phase for each thread: what a thread that comes late leaves to the others

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

struct Phase {
  std::atomic<int64_t> taken{0}, done{0};
};

// Lives until the last thread has let go of it: a thread that was put aside may come by long after the end.
struct Job {
  Job(int64_t threads, int64_t count, const std::function<void(Worker&)>& job) : threads(threads), phases(count), job(job) {}
  int64_t threads;
  std::vector<Phase> phases;
  const std::function<void(Worker&)>& job;
  std::atomic<bool> over{false};
  std::atomic<int64_t> inside{0};  // threads that may look at `job`
};

class Member : public Worker {
 public:
  explicit Member(Job& job) : job_(job) {}
  void phase(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& work) override {
    Phase& phase = job_.phases[at_++];
    int64_t pieces = job_.threads == 1 ? 1 : job_.threads * PIECES;
    if (pieces * grain > n) pieces = n / grain;
    if (pieces < 1) pieces = 1;
    for (int64_t piece; (piece = phase.taken.fetch_add(1)) < pieces;) {
      work(n * piece / pieces, n * (piece + 1) / pieces);
      phase.done.fetch_add(1);
    }
    for (int spins = 0; phase.done.load(std::memory_order_acquire) < pieces; spins++)
      spins < SPINS ? pause() : void(sched_yield());
  }

 private:
  Job& job_;
  size_t at_ = 0;
};

class Pool {
 public:
  const pid_t owner = getpid();
  std::mutex turn;  // a pool does one job at a time

  void run(int64_t threads, int64_t phases, const std::function<void(Worker&)>& work) {
    auto job = std::make_shared<Job>(threads, phases, work);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (int64_t(helpers_.size()) < threads - 1) {
        int64_t number = helpers_.size();
        helpers_.emplace_back([this, number] { help(number); });
      }
      job_ = job;
    }
    posted_.fetch_add(1);
    if (sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    Member member(*job);
    work(member);
    job->over.store(true);
    while (job->inside.load() > 0) sched_yield();  // only those that are still on their way out of a finished phase
  }

 private:
  void help(int64_t number) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < SPINS + YIELDS && posted_.load() == seen; i++) i < SPINS ? pause() : void(sched_yield());
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return posted_.load() != seen; });
        sleeping_.fetch_sub(1);
        seen = posted_.load();
        job = job_;
      }
      job->inside.fetch_add(1);
      if (!job->over.load() && number < job->threads - 1) {
        Member member(*job);
        job->job(member);
      }
      job->inside.fetch_sub(1);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
  std::shared_ptr<Job> job_;
  std::atomic<uint64_t> posted_{0};
  std::atomic<int64_t> sleeping_{0};
};

}  // namespace

// One for the process, never destroyed: its threads wait until the end. A forked child has none of them, so it makes
// its own.
static Pool& shared_pool() {
  static std::atomic<Pool*> shared{nullptr};
  Pool* found = shared.load();
  if (!found || found->owner != getpid()) {
    Pool* made = new Pool;
    if (shared.compare_exchange_strong(found, made)) return *made;
    delete made;  // another thread was first; this one has no threads yet
    found = shared.load();
  }
  return *found;
}

void run_job(int64_t threads, int64_t phases, const std::function<void(Worker&)>& job) {
  if (threads > 1) {
    Pool& pool = shared_pool();
    std::unique_lock<std::mutex> turn(pool.turn, std::try_to_lock);
    if (turn.owns_lock()) return pool.run(threads, phases, job);
  }  // a second caller at the same time does its work alone
  Job alone(1, phases, job);
  Member member(alone);
  job(member);
}
