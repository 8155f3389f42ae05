//! Request pipeline, generic verbs, watch cache.
