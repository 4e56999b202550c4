//! etcd: a read-only first look at its data. Formats as etcd 3.3 to 3.7 and bbolt 1.3 to 1.5 write them.

pub mod bbolt;
pub mod look;
