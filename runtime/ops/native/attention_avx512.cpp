// Attention with AVX-512.
#include "lanes_avx512.h"

#include "attention.inc.h"

namespace paceline {

const AttentionKernels attention_avx512 = {attend_chunk, as_cached, prepare_row};

} // namespace paceline
