//! The files of etcd as bytes: bbolt pages, log segments, snapshots, protobuf, raft entries and
//! requests. Nothing here knows a member.

pub mod bbolt;
pub mod crc;
pub mod file;
pub mod members;
pub mod proto;
pub mod raft;
pub mod request;
pub mod snap;
pub mod v2store;
pub mod wal;
