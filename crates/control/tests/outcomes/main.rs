//! What becomes encrypted under which key, with two accounts in one pool: the tables row by row, and any sequence of
//! operations against a small model. All in this process, on volumes that are never attached.
#![allow(clippy::print_stdout, reason = "the seed of a run, for who reads its failure")]

mod region;
mod sequences;
mod tables;
