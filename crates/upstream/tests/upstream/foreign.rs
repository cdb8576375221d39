//! Against nbdkit, with its filters as fault injectors.
