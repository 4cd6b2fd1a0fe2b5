// Attention in plain C++.
#include "lanes_portable.h"

#include "attention.inc.h"

namespace paceline {

const AttentionKernels attention_portable = {attend_chunk, as_cached, prepare_row};

} // namespace paceline
