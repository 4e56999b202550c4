//! One file per failure mode: what it looks for, what it saw, which remedies mend it.
//!
//! To add one: write a file here with its test, and register it in [`catalogue`].

mod admin_kubeconfig;
mod authorities;
pub mod certificates;
mod claimed_role;
mod disk_full;
pub(crate) mod etcd_look;
mod kubelet_bootstrap;
mod service_account_keys;
mod shared_keys;

use crate::finding::Check;

/// All checks, in the order in which their remedies must be prepared: space first, then what certificates are signed with, the
/// certificates, and the kubelet's flags only after them, because a mended certificate makes patching needless.
pub fn catalogue() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(disk_full::DiskFull),
        Box::new(claimed_role::ClaimedRole),
        Box::new(shared_keys::SharedKeys),
        Box::new(service_account_keys::ServiceAccountKeys),
        Box::new(authorities::Authorities),
        Box::new(certificates::Certificates),
        Box::new(admin_kubeconfig::AdminKubeconfig),
        Box::new(kubelet_bootstrap::KubeletBootstrap),
        Box::new(etcd_look::EtcdLook),
    ]
}
