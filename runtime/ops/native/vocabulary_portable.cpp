#include "lanes_portable.h"
#include "vocabulary_rows.inc.h"

const paceline::RowKernels paceline::portable_rows = {maxima, exp_sum, noise, halves};
