//! What a member holds, how it is started, and what etcd would do with it.

pub mod backend;
pub mod boot;
pub mod history;
pub mod keys;
pub mod kubernetes;
pub mod launch;
pub mod lease;
pub mod locate;
pub mod member;
pub mod moved;
pub mod node_disks;
pub mod node_list;
pub mod objects;
pub mod replay;
#[cfg(test)]
pub(crate) mod sample;
pub mod soundness;
pub mod status;
pub mod survey;
pub mod troubles;
