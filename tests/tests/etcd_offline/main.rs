//! `rescue etcd` against real etcd: what it reads of a killed member must be what that member
//! itself says when it runs again.

mod damage;
mod disks;
mod full_disk;
#[cfg(feature = "faulty")]
mod killed;
mod large;
mod learners;
mod level;
mod members;
mod reading;
mod rebuilding;
mod restarts;
mod service;
mod space;
mod together;
