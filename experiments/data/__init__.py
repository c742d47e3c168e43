"""Data sets: real images that ship inside a dependency, and those a user brings."""
