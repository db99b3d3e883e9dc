// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <vector>

#include "common/attention.h"

namespace openseg {

// Along one side of a map: `sets` groups of `members` pixels, from pixel `first` on.
struct GroupSpan {
  int64_t first, sets, members, set_step, step;
};

// The groups along a side of `size` pixels, equally long ones in one span. A long group is the
// pixels of equal place modulo `group`, a short one `group` neighbours; where they do not divide
// the side, the first and the last one are cut off, as if the side lay centred in a multiple.
inline std::vector<GroupSpan> group_spans(int64_t size, int64_t group, bool is_long) {
  std::vector<GroupSpan> spans;
  const auto add = [&](int64_t first, int64_t sets, int64_t members) {
    if (sets > 0 && members > 0) {
      spans.push_back(is_long ? GroupSpan{first, sets, members, 1, group}
                              : GroupSpan{first, sets, members, group, 1});
    }
  };
  if (is_long) {
    add(0, size % group, size / group + 1);
    add(size % group, group - size % group, size / group);
    return spans;
  }
  const int64_t missing = (group - size % group) % group / 2;  // of the first group
  const int64_t first = missing == 0 ? 0 : std::min(group - missing, size);
  const int64_t inner = (size - first) / group, last = (size - first) % group;
  add(0, 1, first);
  add(first, inner, group);
  add(size - last, 1, last);
  return spans;
}

// The groups of one stage, those of equal size together.
inline std::vector<MapPart> interlaced_groups(int64_t height, int64_t width, int64_t down,
                                              int64_t across, bool is_long) {
  std::vector<MapPart> parts;
  for (const GroupSpan& rows : group_spans(height, down, is_long)) {
    for (const GroupSpan& columns : group_spans(width, across, is_long)) {
      const PixelSets sets{.down = rows.sets,
                           .across = columns.sets,
                           .lines = rows.members,
                           .columns = columns.members,
                           .stride_down = rows.set_step * width,
                           .stride_across = columns.set_step,
                           .stride_line = rows.step * width,
                           .stride_column = columns.step};
      parts.push_back({rows.first * width + columns.first, sets});
    }
  }
  return parts;
}

}  // namespace openseg
