"""Draft models of a finished bundle get adapters, and a graph that trains them."""
