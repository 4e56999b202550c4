//! Certificates: reading them, saying what is wrong with them, issuing new ones with the CA keys on the disk.

pub mod authority_copies;
pub mod authority_remedy;
pub mod certificate;
pub mod config_evidence;
pub mod csr;
mod der_parts;
pub mod inventory;
pub mod issue;
pub mod key;
pub mod key_pool;
pub mod kubelet;
mod kubelet_files;
pub mod listing;
pub mod membership;
pub mod peer;
pub mod pem;
pub mod profile;
pub mod rebuild_config;
mod references;
pub mod renew;
pub mod renew_ca;
pub mod service_account;
pub mod shared_copy;
pub mod strays;
pub mod trust;
