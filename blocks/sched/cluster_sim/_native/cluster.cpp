// The event loop of reference.py, operation for operation, so that both give the same bits: sums and
// maxima only, in the same order, and no fused multiplications (see the flags it is built with).
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
enum Status : int8_t { kFinished = 1, kRejected = 2, kUnplaced = 3, kFailed = 4 };
enum Kind : int32_t { kDown = 0, kUp = 1, kUnload = 2, kLoad = 3, kClock = 4 };
enum Dispatch : int32_t { kShortestQueue = 0, kLeastClock = 1, kEarliestFinish = 2 };

extern "C" struct Arrays {  // the fields of native.py's _Arrays, in their order
    int64_t num_requests, num_groups, num_replicas, num_events, noise_columns;
    const double *arrival_s, *deadline_s, *noise, *gap_s, *stage_s, *event_s, *event_seconds;
    const int32_t *model, *num_stages, *replica_group, *model_first, *size_first, *sizes;
    const int32_t *stage_first, *event_kind, *event_group, *event_replica, *up, *loaded;
    int32_t dispatch, batching, admit, retry;
    double request_s;
    double *answered_s, *busy_s;
    int32_t* group;
    int8_t* status;
};

// A queue that is pushed at one end and popped at the other; memory is that of what it holds.
template <class T>
class Fifo {
   public:
    bool empty() const { return head_ == items_.size(); }
    int64_t size() const { return static_cast<int64_t>(items_.size() - head_); }
    const T& front() const { return items_[head_]; }
    const T* begin() const { return items_.data() + head_; }
    const T* end() const { return items_.data() + items_.size(); }
    void push(const T& item) { items_.push_back(item); }
    void clear() { items_.clear(), head_ = 0; }
    void pop() {
        if (++head_ == items_.size()) return clear();
        if (head_ >= 1024 && 2 * head_ >= items_.size()) {
            items_.erase(items_.begin(), items_.begin() + static_cast<int64_t>(head_));
            head_ = 0;
        }
    }

   private:
    std::vector<T> items_;
    size_t head_ = 0;
};

struct Taken {
    int64_t request;
    double done_s, work_s;
};

struct Waiting {
    int64_t turn, request;
    double since_s;
};

struct Group {
    std::vector<double> clock;
    std::vector<int32_t> replicas;
    Fifo<Taken> taken;
    int64_t num_waiting = 0, next_turn = 0;
    bool up = true;
    double gap_s = 0, error_s = 0, error_until_s = 0, busy_s = 0;

    void forget_done(double now_s) {
        while (!taken.empty() && taken.front().done_s <= now_s) taken.pop();
    }
    double estimate_error_s(double now_s) const { return now_s < error_until_s ? error_s : 0.0; }
};

class Loop {
   public:
    explicit Loop(const Arrays& arrays) : a_(arrays), groups_(arrays.num_groups) {
        for (int64_t g = 0; g < a_.num_groups; ++g) {
            groups_[g].clock.assign(a_.num_stages[g], 0.0);
            groups_[g].gap_s = a_.gap_s[g];
            groups_[g].up = a_.up[g] != 0;
        }
        for (int64_t r = 0; r < a_.num_replicas; ++r)
            groups_[a_.replica_group[r]].replicas.push_back(static_cast<int32_t>(r));
        loaded_.assign(a_.loaded, a_.loaded + a_.num_replicas);
        queues_.resize(a_.num_replicas);
    }

    void run() {
        int64_t next_event = 0;
        for (int64_t request = 0; request < a_.num_requests; ++request) {
            const double now_s = a_.arrival_s[request];
            while (next_event < a_.num_events && a_.event_s[next_event] <= now_s)
                happen(next_event++);
            dispatch(request, now_s);
        }
        while (next_event < a_.num_events) happen(next_event++);
        for (int64_t g = 0; g < a_.num_groups; ++g) {
            launch_until(g, kNever);
            a_.busy_s[g] = groups_[g].busy_s;
        }
    }

   private:
    void dispatch(int64_t request, double now_s) {
        const int32_t model = a_.model[request];
        int32_t best = -1;
        double least = kNever;
        for (int32_t r = a_.model_first[model]; r < a_.model_first[model + 1]; ++r) {
            const int32_t g = a_.replica_group[r];
            if (!groups_[g].up || !loaded_[r]) continue;
            const double load = load_of(r, g, now_s);
            if (best < 0 || load < least) best = r, least = load;
        }
        if (best < 0) return answer(request, kUnplaced, now_s, -1);
        const int32_t g = a_.replica_group[best];
        if (a_.batching) {
            queues_[best].push({groups_[g].next_turn++, request, now_s});
            ++groups_[g].num_waiting;
            return;
        }
        const int32_t size = a_.size_first[best];
        if (too_late(g, size, now_s, request)) return answer(request, kRejected, now_s, g);
        one_[0] = request;
        take(one_, g, size, now_s);
    }

    double load_of(int32_t replica, int32_t g, double now_s) {
        if (a_.batching) launch_until(g, now_s);
        Group& group = groups_[g];
        if (a_.dispatch == kShortestQueue) {
            group.forget_done(now_s);
            return static_cast<double>(group.taken.size() + group.num_waiting);
        }
        const double error_s = group.estimate_error_s(now_s);
        if (a_.dispatch == kLeastClock) return group.clock.back() + error_s;
        return through(group, a_.size_first[replica], now_s) + error_s;
    }

    double through(const Group& group, int32_t size, double now_s) const {
        const double* stage_s = a_.stage_s + a_.stage_first[size];
        double at_s = now_s;
        for (size_t k = 0; k < group.clock.size(); ++k)
            at_s = std::max(at_s, group.clock[k]) + stage_s[k];
        return at_s;
    }

    bool too_late(int32_t g, int32_t size, double now_s, int64_t request) const {
        if (!a_.admit) return false;
        const Group& group = groups_[g];
        const double error_s = group.estimate_error_s(now_s);
        return !(through(group, size, now_s) + a_.request_s + error_s <= a_.deadline_s[request]);
    }

    void take(const std::vector<int64_t>& requests, int32_t g, int32_t size, double now_s) {
        Group& group = groups_[g];
        const double* stages = a_.stage_s + a_.stage_first[size];
        const double* noise = a_.noise ? a_.noise + requests[0] * a_.noise_columns : nullptr;
        double at_s = now_s, work_s = 0;
        for (size_t k = 0; k < group.clock.size(); ++k) {
            const double stage_s = noise ? stages[k] * noise[k] : stages[k];
            at_s = std::max(at_s, group.clock[k]) + stage_s;
            group.clock[k] = at_s + group.gap_s;
            work_s += stage_s;
        }
        group.busy_s += work_s;
        group.forget_done(now_s);
        for (const int64_t request : requests) {
            group.taken.push({request, at_s, work_s});
            answer(request, kFinished, at_s + a_.request_s, g);
            work_s = 0;
        }
    }

    void answer(int64_t request, Status status, double at_s, int32_t g) {
        a_.status[request] = status;
        a_.answered_s[request] = at_s;
        a_.group[request] = g;
    }

    void launch_until(int64_t g, double until_s) {
        Group& group = groups_[g];
        while (group.num_waiting) {
            int32_t replica = -1;
            for (const int32_t r : group.replicas) {
                if (queues_[r].empty()) continue;
                if (replica < 0 || queues_[r].front().turn < queues_[replica].front().turn)
                    replica = r;
            }
            Fifo<Waiting>& queue = queues_[replica];
            const double now_s = std::max(group.clock[0], queue.front().since_s);
            if (!(now_s < until_s)) return;
            const int64_t head = queue.front().request;
            const int32_t size = choose_size(g, replica, queue.size(), head, now_s);
            if (size < 0) {
                answer(head, kRejected, now_s, static_cast<int32_t>(g));
                queue.pop();
                --group.num_waiting;
                continue;
            }
            batch_.clear();
            for (int32_t i = 0; i < a_.sizes[size]; ++i) {
                batch_.push_back(queue.front().request);
                queue.pop();
            }
            group.num_waiting -= a_.sizes[size];
            take(batch_, static_cast<int32_t>(g), size, now_s);
        }
    }

    int32_t choose_size(int64_t g, int32_t replica, int64_t num_waiting, int64_t head,
                        double now_s) const {
        for (int32_t size = a_.size_first[replica + 1] - 1; size >= a_.size_first[replica]; --size)
            if (a_.sizes[size] <= num_waiting &&
                !too_late(static_cast<int32_t>(g), size, now_s, head))
                return size;
        return -1;
    }

    void happen(int64_t event) {
        const double at_s = a_.event_s[event];
        const int32_t g = a_.event_group[event];
        Group& group = groups_[g];
        launch_until(g, at_s);
        switch (a_.event_kind[event]) {
            case kDown:
                if (group.up) stop(g, at_s);
                break;
            case kUp:
                if (group.up) break;
                group.up = true;
                std::fill(group.clock.begin(), group.clock.end(), at_s);
                group.error_until_s = 0;
                break;
            case kClock:
                group.error_s = a_.event_seconds[event];
                group.error_until_s = group.clock.back();
                break;
            default:
                for (const int32_t r : group.replicas)
                    if (a_.event_replica[event] < 0 || a_.event_replica[event] == r)
                        loaded_[r] = a_.event_kind[event] == kLoad;
        }
    }

    void stop(int32_t g, double at_s) {
        Group& group = groups_[g];
        group.up = false;
        group.forget_done(at_s);
        std::vector<int64_t> lost;
        for (const Taken& taken : group.taken) {
            group.busy_s -= taken.work_s;
            lost.push_back(taken.request);
        }
        for (const int32_t r : group.replicas) {
            for (const Waiting& waiting : queues_[r]) lost.push_back(waiting.request);
            queues_[r].clear();
        }
        group.taken.clear();
        group.num_waiting = 0;
        std::sort(lost.begin(), lost.end());
        for (const int64_t request : lost) {
            if (a_.retry)
                dispatch(request, at_s);
            else
                answer(request, kFailed, at_s, g);
        }
    }

    const Arrays& a_;
    std::vector<Group> groups_;
    std::vector<uint8_t> loaded_;
    std::vector<Fifo<Waiting>> queues_;
    std::vector<int64_t> one_ = {0}, batch_;
};

}  // namespace

extern "C" void run_cluster(const Arrays* arrays) { Loop(*arrays).run(); }
