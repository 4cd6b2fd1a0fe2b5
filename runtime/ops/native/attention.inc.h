// Attention over Lanes. A unit includes one lanes_*.h and then this.
#pragma once
#include "attention_plan.h"
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "lanes_math.inc.h"

#include "attention_blocks.inc.h"
#include "attention_tile.inc.h"

#include "attention_rows.inc.h"

#include "attention_heads.inc.h"
