//! Guest kernel configurations: build, cache, compare.
