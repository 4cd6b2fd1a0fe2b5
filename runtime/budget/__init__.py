"""Memory budgets: plans before loading, and what keeps to them."""
