// One task: the rows of a chunk run over their keys, block by block.
//
// Blocks that the whole chunk shares are turned once and used by all its rows. A tree's own part, from the
// last multiple of 64 committed keys on, is scored once for all, and then each row gathers the scores of its
// own keys in their order.
#pragma once

namespace paceline {
namespace {

template <class Number> class Chunk {
  public:
    Chunk(const AttentionPlan &plan, std::size_t task, float *scratch)
        : plan_(plan), call_(plan.call), head_(task / plan.chunks),
          first_(task % plan.chunks * plan.chunk_rows), data_(head_of<Number>(plan, head_)) {
        const std::size_t all = call_.rows * plan.groups, left = all - first_;
        rows_ = left < plan.chunk_rows ? left : plan.chunk_rows;
        const auto take = [&scratch](std::size_t floats) {
            float *taken = scratch;
            scratch += (floats + lane_count - 1) / lane_count * lane_count;
            return taken;
        };
        q_ = take(rows_ * plan.padded);
        sums_ = take(rows_ * plan.padded);
        softmax_ = {take(rows_), take(rows_)};
        keys_ = take(plan.padded * block_keys);
        values_ = take(plan.padded * block_keys);
        weights_ = take(tile_rows * block_keys);
        k_scales_ = take(block_keys);
        v_scales_ = take(block_keys);
        offsets_ = reinterpret_cast<std::uint32_t *>(take(block_keys));
        const std::size_t tail = plan.tail_blocks * block_keys;
        tail_keys_ = take(tail * plan.padded);
        tail_values_ = take(tail * plan.padded);
        tail_scores_ = take(tile_rows * tail);
        tail_k_scales_ = take(tail);
        tail_v_scales_ = take(tail);
    }

    void run() {
        start();
        const std::size_t last = token(rows_ - 1);
        const std::size_t keys = plan_.chain ? call_.past + last + 1 : plan_.committed;
        const std::size_t blocks = plan_.chain ? (keys + block_keys - 1) / block_keys : keys / block_keys;
        for (std::size_t i = 0; i < block_keys; ++i)
            offsets_[i] = static_cast<std::uint32_t>(i * plan_.padded);
        for (std::size_t block = first_block(); block < blocks; ++block)
            shared_block(block * block_keys);
        if (!plan_.chain)
            tail(blocks * block_keys);
        finish();
    }

  private:
    std::size_t token(std::size_t row) const { return (first_ + row) / plan_.groups; }
    std::size_t query_head(std::size_t row) const {
        return head_ * plan_.groups + (first_ + row) % plan_.groups;
    }

    void start() {
        for (std::size_t r = 0; r < rows_; ++r) {
            const float *from =
                call_.q.data + query_head(r) * call_.q.head_stride + token(r) * call_.q.row_stride;
            const Lanes scale = set1(call_.scale);
            for (std::size_t d = 0; d < plan_.padded; d += lane_count) {
                const std::size_t left = call_.size - d;
                const Lanes x = left >= lane_count ? load(from + d) : load_part(from + d, left);
                store(q_ + r * plan_.padded + d, mul(x, scale));
                store(sums_ + r * plan_.padded + d, zero());
            }
            softmax_.largest[r] = call_.sinks == nullptr ? -INFINITY : call_.sinks[query_head(r)];
            softmax_.total[r] = call_.sinks == nullptr ? 0.0f : 1.0f;
        }
    }

    void finish() {
        for (std::size_t r = 0; r < rows_; ++r) {
            float *to = call_.out + query_head(r) * call_.out_head_stride + token(r) * call_.out_row_stride;
            const Lanes total = set1(softmax_.total[r]);
            for (std::size_t d = 0; d < call_.size; d += lane_count) {
                const Lanes mean = div(load(sums_ + r * plan_.padded + d), total);
                if (call_.size - d >= lane_count)
                    store(to + d, mean);
                else
                    store_part(to + d, call_.size - d, mean);
            }
        }
    }

    // The first committed key inside the window of new row t. Positions may be any numbers: nothing overflows
    // here.
    std::size_t window_start(std::size_t t) const {
        const std::int64_t position = call_.positions[t];
        if (call_.window == 0 || position < call_.window)
            return 0;
        return static_cast<std::size_t>(position - call_.window) + 1;
    }

    std::size_t first_block() const {
        std::size_t first = plan_.committed; // a key that is not committed may be seen through any window
        for (std::size_t t = token(0); t <= token(rows_ - 1); ++t)
            first = window_start(t) < first ? window_start(t) : first;
        return first / block_keys;
    }

    bool inside(std::size_t t, std::size_t key) const {
        if (call_.window == 0)
            return true;
        if (key < plan_.committed)
            return key >= window_start(t);
        if (key < call_.past)
            return true;
        const std::int64_t here = call_.positions[t], there = call_.positions[key - call_.past];
        if (here <= there)
            return true;
        return static_cast<std::uint64_t>(here) - static_cast<std::uint64_t>(there) <
               static_cast<std::uint64_t>(call_.window);
    }

    // Which of the 64 keys of the call from `first` on new row t sees, if it sees all `length` first ones but
    // for the window.
    std::uint64_t seen(std::size_t t, std::size_t first, std::size_t length) const {
        const std::size_t count = length <= first               ? 0
                                  : length - first < block_keys ? length - first
                                                                : block_keys;
        if (count == 0)
            return 0;
        std::uint64_t bits = all_keys >> (block_keys - count);
        const std::size_t start = window_start(t);
        if (call_.window == 0 || (start <= first && first + count <= plan_.committed))
            return bits;
        for (std::size_t i = 0; i < count; ++i)
            if (!inside(t, first + i))
                bits &= ~(std::uint64_t{1} << i);
        return bits;
    }

    // A block that every row of the chunk may look at. Rows that see the same part of it go together.
    void shared_block(std::size_t first) {
        bool loaded = false;
        Step step{};
        step.softcap = call_.softcap;
        const float *values = nullptr;
        for (std::size_t r = 0, count; r < rows_; r += count) {
            step.seen = seen_of_row(r, first);
            count = 1;
            while (count < tile_rows && r + count < rows_ && seen_of_row(r + count, first) == step.seen)
                ++count;
            if (step.seen == 0)
                continue;
            const bool in_cache = first + block_keys <= call_.past && call_.size == plan_.padded;
            const bool directly = in_cache && count == rows_;
            const bool values_there = in_cache && rows_ <= 2 * tile_rows;
            if (!loaded) {
                step.k_scales = copied_scales(data_.k, first, block_keys, k_scales_);
                step.v_scales = copied_scales(data_.v, first, block_keys, v_scales_);
                if (!directly) {
                    transposed_block(data_, first, keys_);
                    if (!values_there)
                        values = block_rows(data_.v, first, values_);
                }
                loaded = true;
            }
            const Query query{q_ + r * plan_.padded, plan_.padded, call_.size};
            if (directly) {
                CachedScores<Number>::of[count](query, data_, first, weights_);
                weigh_tile(r, count, step, data_.v.cached + first * call_.size, offsets_);
            } else {
                scores_of[count](query, keys_, weights_, block_keys);
                if (values_there)
                    weigh_tile(r, count, step, data_.v.cached + first * call_.size, offsets_);
                else
                    weigh_tile(r, count, step, values, offsets_);
            }
        }
    }

    std::uint64_t seen_of_row(std::size_t row, std::size_t first) const {
        const std::size_t t = token(row);
        return seen(t, first, plan_.chain ? call_.past + t + 1 : plan_.committed);
    }

    // weights_ holds the scores of rows r to r + count with the keys of a block, whose values are at data +
    // offsets.
    template <class Value>
    void weigh_tile(std::size_t r, std::size_t count, const Step &step, const Value *data,
                    const std::uint32_t *offsets) {
        float faded[lane_count];
        soften(step, count, weights_, {softmax_.largest + r, softmax_.total + r}, faded);
        weigh_seen(count, step.seen, weights_, faded, data, offsets, sums_ + r * plan_.padded, plan_.padded);
    }

    // The keys of the call from `first` on; each row sees the committed ones and those that it names.
    void tail(std::size_t first) {
        const std::size_t end = call_.past + call_.rows, count = end - first;
        for (std::size_t i = 0; i < count; i += block_keys)
            transposed_block(data_, first + i, tail_keys_ + i * plan_.padded);
        copied_rows(data_.v, first, count, tail_values_);
        copied_scales(data_.k, first, count, tail_k_scales_);
        copied_scales(data_.v, first, count, tail_v_scales_);
        for (std::size_t r = 0, rows; r < rows_; r += rows) {
            rows = 1;
            while (rows < tile_rows && r + rows < rows_ && token(r + rows) == token(r))
                ++rows;
            const std::size_t stride = plan_.tail_blocks * block_keys;
            for (std::size_t i = 0; i < count; i += block_keys)
                scores_of[rows]({q_ + r * plan_.padded, plan_.padded, call_.size},
                                tail_keys_ + i * plan_.padded, tail_scores_ + i, stride);
            own_blocks(r, rows, first);
        }
    }

    void own_blocks(std::size_t r, std::size_t rows, std::size_t first) {
        const std::size_t t = token(r), ready = plan_.committed - first;
        const std::uint32_t *columns = plan_.columns + plan_.column_ends[t];
        const std::size_t length = ready + plan_.column_ends[t + 1] - plan_.column_ends[t];
        for (std::size_t start = 0; start < length; start += block_keys) {
            const std::size_t count = length - start < block_keys ? length - start : block_keys;
            std::uint32_t own[block_keys] = {};
            Step step{};
            for (std::size_t i = 0; i < count; ++i) {
                const std::size_t n = start + i;
                own[i] = static_cast<std::uint32_t>(n < ready ? n : ready + columns[n - ready]);
                if (inside(t, first + own[i]))
                    step.seen |= std::uint64_t{1} << i;
            }
            if (step.seen != 0)
                own_block(r, rows, own, count, step);
        }
    }

    // One block of `keys` tail keys `own`, of which `step.seen` are seen; what stands behind them is not
    // read.
    void own_block(std::size_t r, std::size_t rows, const std::uint32_t *own, std::size_t keys, Step &step) {
        const std::size_t stride = plan_.tail_blocks * block_keys;
        std::uint32_t offsets[block_keys] = {};
        for (std::size_t i = 0; i < keys; ++i)
            offsets[i] = static_cast<std::uint32_t>(own[i] * plan_.padded);
        for (std::size_t j = 0; j < rows; ++j)
            for (std::size_t i = 0; i < keys; ++i)
                weights_[j * block_keys + i] = tail_scores_[j * stride + own[i]];
        if (call_.k_scales != nullptr) {
            for (std::size_t i = 0; i < keys; ++i) {
                k_scales_[i] = tail_k_scales_[own[i]];
                v_scales_[i] = tail_v_scales_[own[i]];
            }
            step.k_scales = k_scales_;
            step.v_scales = v_scales_;
        }
        step.softcap = call_.softcap;
        weigh_tile(r, rows, step, tail_values_, offsets);
    }

    const AttentionPlan &plan_;
    const Attention &call_;
    const std::size_t head_, first_;
    const Head<Number> data_;
    std::size_t rows_;
    Softmax softmax_;
    float *q_, *sums_, *keys_, *values_, *weights_, *k_scales_, *v_scales_;
    float *tail_keys_, *tail_values_, *tail_scores_, *tail_k_scales_, *tail_v_scales_;
    std::uint32_t *offsets_;
};

void attend_chunk(const AttentionPlan &plan, std::size_t task, float *scratch) {
    switch (plan.call.cache) {
    case Cache::single:
        Chunk<float>(plan, task, scratch).run();
        break;
    case Cache::half:
        Chunk<std::uint16_t>(plan, task, scratch).run();
        break;
    case Cache::int8:
        Chunk<std::int8_t>(plan, task, scratch).run();
        break;
    }
}

} // namespace
} // namespace paceline
