//! etcd: its log, snapshots and database read from the disk of a member that is off. Formats as
//! etcd 3.3 to 3.7 and bbolt 1.3 to 1.5 write them. Everything is read in pieces: memory is bounded
//! whatever the size, and damage is an answer, never a panic.

pub mod format;
pub mod operations;
pub mod read;
pub mod write;
