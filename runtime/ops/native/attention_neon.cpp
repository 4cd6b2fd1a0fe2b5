// Attention with ARM's NEON.
#include "lanes_neon.h"

#include "attention.inc.h"

namespace paceline {

const AttentionKernels attention_neon = {attend_chunk, as_cached, prepare_row};

} // namespace paceline
