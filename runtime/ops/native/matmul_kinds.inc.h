// Which kernel a format has. The unit that includes this has defined multiply_kind<kind>() for codes and
// multiply_exact_kind<kind>() for all.

namespace paceline {
namespace {

void multiply(const TileRun &run) {
    switch (run.w->kind) {
    case Kind::codes4:
        return multiply_kind<Kind::codes4>(run);
    case Kind::codes5:
        return multiply_kind<Kind::codes5>(run);
    case Kind::codes6:
        return multiply_kind<Kind::codes6>(run);
    default:
        return multiply_kind<Kind::codes8>(run);
    }
}

void multiply_exact(const TileRun &run) {
    switch (run.w->kind) {
    case Kind::codes4:
        return multiply_exact_kind<Kind::codes4>(run);
    case Kind::codes5:
        return multiply_exact_kind<Kind::codes5>(run);
    case Kind::codes6:
        return multiply_exact_kind<Kind::codes6>(run);
    case Kind::codes8:
        return multiply_exact_kind<Kind::codes8>(run);
    case Kind::half:
        return multiply_exact_kind<Kind::half>(run);
    case Kind::bfloat:
        return multiply_exact_kind<Kind::bfloat>(run);
    case Kind::single:
        return multiply_exact_kind<Kind::single>(run);
    }
}

} // namespace
} // namespace paceline
