// Rows of elements in runs of up to 16 lanes.
#pragma once

#include "lanes.h"

namespace rows {

using lanes::f32x16;
using lanes::kLanes;

constexpr int64_t kSerialElements = 1 << 17;  // below, a parallel region costs more than it saves

// Calls body(column, count) for every run of up to 16 columns.
template <class Body>
inline void for_lanes(int64_t hidden_size, Body body) {
    int64_t column = 0;
    for (; column + kLanes <= hidden_size; column += kLanes) body(column, kLanes);
    if (column < hidden_size) body(column, hidden_size - column);
}

// The lanes beyond count are zero.
template <class T>
inline f32x16 get(const T* from, int64_t count) {
    return count == kLanes ? lanes::load(from) : lanes::load_some(from, count);
}

template <class T>
inline void put(T* to, f32x16 value, int64_t count) {
    if (count == kLanes) {
        lanes::store(to, value);
    } else {
        lanes::store_some(to, value, count);
    }
}

}  // namespace rows
