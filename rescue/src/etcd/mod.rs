//! etcd: its log, snapshots and database read from the disk of a member that is off. Formats as etcd 3.3 to 3.7 and bbolt 1.3 to 1.5
//! write them. Everything is read in pieces: memory is bounded whatever the size, and damage is an answer, never a panic.

pub mod backend;
pub mod bbolt;
pub mod boot;
pub mod crc;
pub mod file;
pub mod guarantee;
pub mod history;
pub mod keys;
pub mod kubernetes;
pub mod launch;
pub mod lease;
pub mod locate;
pub mod member;
pub mod members;
pub mod mend;
pub mod moved;
pub mod node_list;
pub mod objects;
pub mod proto;
pub mod raft;
pub mod rebuild;
pub mod replay;
pub mod request;
pub mod salvage;
#[cfg(test)]
pub(crate) mod sample;
pub mod snap;
pub mod soundness;
pub mod status;
pub mod survey;
pub mod troubles;
pub mod v2store;
pub mod wal;
pub mod write;
