//! Nodes after public reports: what somebody's node had is named, and mended where that is
//! possible.

mod asks_first;
mod ca_bundle;
mod case;
mod cgroup_driver;
mod cgroup_v1;
mod clock;
mod cni;
mod grub;
mod kubeconfig_ca;
mod kubelet_conf;
mod kubelet_flags;
mod last_words;
mod manifests;
mod node_name;
mod paths;
mod start;
mod swap;
mod worker_etcd;
