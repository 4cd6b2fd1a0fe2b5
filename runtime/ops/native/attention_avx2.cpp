// Attention with AVX2 and FMA.
#include "lanes_avx2.h"

#include "attention.inc.h"

namespace paceline {

const AttentionKernels attention_avx2 = {attend_chunk, as_cached, prepare_row};

} // namespace paceline
