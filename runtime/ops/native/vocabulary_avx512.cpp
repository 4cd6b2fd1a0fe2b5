#include "lanes_avx512.h"
#include "vocabulary_rows.inc.h"

const paceline::RowKernels paceline::avx512_rows = {maxima, exp_sum, noise, halves};
