//! What builds, runs and tests decnet-trace.
