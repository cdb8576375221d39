//! TLS: against nbdkit with `--tls=require`.
