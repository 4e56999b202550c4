//! One file per failure mode: what it looks for, what it saw, which remedies mend it.
//!
//! To add one: write a file here with its test, and register it in [`CATALOGUE`].

mod admin_kubeconfig;
mod authorities;
#[cfg(test)]
pub(crate) mod bench;
pub mod certificates;
mod cgroup_driver;
mod cgroup_v1;
mod claimed_role;
mod cni;
mod containerd_config;
pub mod disk_full;
mod enable_unit;
mod etcd_look;
mod fstab;
mod grub;
mod kubeconfig_ca;
mod kubelet_bootstrap;
mod kubelet_config;
mod kubelet_enabled;
mod kubelet_files;
mod kubelet_flags;
mod kubelet_setting;
mod kubelet_state;
mod kubelet_unit;
mod kubelet_unit_files;
mod node_name;
mod resolv_conf;
mod runtime_unit;
mod service_account_keys;
mod shared_keys;
mod static_pod_files;
mod static_pods;
mod swap;
pub mod verdict;

use crate::finding::Check;

/// All checks, in the order in which their remedies must be prepared: space first, then what
/// certificates are signed with, the certificates, and the kubelet's flags only after them, because
/// a mended certificate makes patching needless.
pub const CATALOGUE: &[Check] = &[
    disk_full::CHECK,
    claimed_role::CHECK,
    static_pods::CHECK,
    static_pod_files::CHECK,
    node_name::CHECK,
    shared_keys::CHECK,
    service_account_keys::CHECK,
    kubelet_config::CHECK,
    kubelet_files::CHECK,
    authorities::CHECK,
    kubeconfig_ca::CHECK,
    certificates::CHECK,
    admin_kubeconfig::CHECK,
    kubelet_unit::CHECK,
    kubelet_flags::CHECK,
    kubelet_state::CHECK,
    runtime_unit::CHECK,
    containerd_config::CHECK,
    cgroup_driver::CHECK,
    resolv_conf::CHECK,
    cgroup_v1::CHECK,
    kubelet_bootstrap::CHECK,
    cni::CHECK,
    swap::CHECK,
    fstab::CHECK,
    grub::CHECK,
    etcd_look::CHECK,
];
