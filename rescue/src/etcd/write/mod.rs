//! etcd's files written anew, as etcd itself writes them: byte by byte the same wherever that can
//! be compared.

pub mod bbolt;
pub mod behind;
pub mod identity;
pub mod message;
pub mod snap;
pub mod store;
pub mod wal;

/// Which etcd's files are imitated. Each version reads the other's, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Up to 3.4: a snapshot's record in the log does not say who votes.
    V3_4,
    /// 3.5: it does, and etcd writes no other.
    V3_5,
}
