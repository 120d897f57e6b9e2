//! Answers to why: what became of a packet (`explain`), and what is wrong with this machine (`check`).

pub mod check;
pub mod explain;
