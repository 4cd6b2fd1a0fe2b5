#include "lanes_avx2.h"
#include "vocabulary_rows.inc.h"

const paceline::RowKernels paceline::avx2_rows = {maxima, exp_sum, noise, halves};
