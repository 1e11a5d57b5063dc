//! One file per family of hooks: thin programs over functions that do the work.

mod lineage;
mod proc;
mod sample;
mod sock_op;
mod sock_state;
mod statement;
mod threads;
