#include "lanes_neon.h"
#include "vocabulary_rows.inc.h"

const paceline::RowKernels paceline::neon_rows = {maxima, exp_sum, noise, halves};
