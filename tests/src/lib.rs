//! Shared helpers of the end-to-end tests: a real node's files, disks made by the real tools, and
//! the programs under test.
//!
//! Everything here wants root, loop devices and the tools that `scripts/setup` installs, and says
//! so where they are missing.

pub mod centos;
pub mod command;
#[cfg(feature = "faulty")]
pub mod crash;
pub mod disk;
pub mod endpoint;
pub mod etcd;
pub mod fill;
pub mod fixtures;
pub mod judge;
pub mod lvm;
pub mod mounts;
pub mod programs;
pub mod qemu;
#[cfg(feature = "faulty")]
pub mod small_guest;
pub mod snapshot;
pub mod worker;
pub mod x509;

pub use command::{Cmd, Ran};
pub use disk::{Disk, DiskBuilder, FileSystem, Partition, Table};
pub use programs::{rescue, rescue_binary, rescue_faulty};
