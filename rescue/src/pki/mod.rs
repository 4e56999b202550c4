//! Certificates: reading them, saying what is wrong with them, issuing new ones with the CA keys on
//! the disk.

pub mod authority_copies;
pub mod bundle;
pub mod client_key;
pub mod cluster_ca;
pub mod config_evidence;
pub mod csr;
pub mod ferry;
pub mod inventory;
pub mod kept;
pub mod kept_kubelet;
pub mod kubelet;
pub mod kubelet_serving;
pub mod lent;
pub mod listing;
pub mod membership;
pub mod needed_names;
pub mod peer;
pub mod profile;
pub mod rebuild;
mod references;
pub mod renew_ca;
pub mod service_account;
pub mod strays;
pub mod trust;
pub mod worker_list;
pub mod x509;
