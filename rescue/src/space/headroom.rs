//! How far each file system is from what the kubelet does something about: the question after a
//! repair of a full disk.

use serde::Serialize;

use super::assess::{Part, Parts};
use super::eviction::{Eviction, measure, percent_of};
use crate::guest::Guest;
use crate::node::Node;
use crate::tree::Usage;

/// One limit of the kubelet and what is free against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// `nodefs.available<10%`, or `image garbage collection` with its own limit.
    pub name: String,
    /// What must be free: bytes, or inodes where `inodes` is set.
    pub wanted: u64,
    /// What is free.
    pub free: u64,
    /// Whether inodes are counted.
    pub inodes: bool,
}

/// A file system and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Headroom {
    /// Where it is mounted in the guest.
    pub mount_point: String,
    /// Size in bytes.
    pub bytes_total: u64,
    /// What an ordinary process may still write, in bytes.
    pub bytes_available: u64,
    /// Those that the kubelet measures on it, hard ones first.
    pub limits: Vec<Limit>,
}

/// Each file system that the kubelet measures, in the guest's order.
pub fn headroom(guest: &Guest, node: &Node) -> Vec<Headroom> {
    let eviction = Eviction::read(node);
    let parts = Parts::read(guest, node);
    let systems = guest.file_systems.iter().enumerate();
    systems
        .filter_map(|(index, fs)| {
            let held = parts.of(index);
            let limits = limits(&eviction, &held, &fs.usage);
            (!limits.is_empty()).then(|| Headroom {
                mount_point: fs.mount_point.to_string(),
                bytes_total: fs.usage.bytes_total,
                bytes_available: fs.usage.bytes_available,
                limits,
            })
        })
        .collect()
}

fn limits(eviction: &Eviction, held: &[Part], usage: &Usage) -> Vec<Limit> {
    let measured = eviction.thresholds.iter().filter_map(|threshold| {
        let part = match threshold.signal.is_imagefs() {
            true => Part::Imagefs,
            false => Part::Nodefs,
        };
        let (free, total) = measure(threshold.signal, usage).filter(|_| held.contains(&part))?;
        Some(Limit {
            name: threshold.to_string(),
            wanted: threshold.limit.of(total),
            free,
            inodes: threshold.signal.counts_inodes(),
        })
    });
    let collects = held.contains(&Part::Imagefs) && eviction.image_gc_high_percent < 100.0;
    let collection = collects.then(|| Limit {
        name: "unused images are kept".to_owned(),
        wanted: percent_of(usage.bytes_total, 100.0 - eviction.image_gc_high_percent),
        free: usage.bytes_available,
        inodes: false,
    });
    measured.chain(collection).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    #[test]
    fn each_limit_of_the_kubelet_is_measured_where_it_counts() {
        let mut guest = MemoryTree::new()
            .file("/etc/kubernetes/kubelet.conf", "kind: Config\n")
            .file(
                "/var/lib/kubelet/config.yaml",
                "kind: KubeletConfiguration\n",
            )
            .into_guest();
        guest.file_systems[0].usage = Usage {
            bytes_total: 1000,
            bytes_free: 165,
            bytes_available: 165,
            inodes_total: 100,
            inodes_free: 50,
        };
        let node = Node::read(&guest);
        let found = headroom(&guest, &node);
        let limits: Vec<(&str, u64, u64)> = found[0]
            .limits
            .iter()
            .map(|limit| (limit.name.as_str(), limit.wanted, limit.free))
            .collect();
        let expected = [
            ("nodefs.available<10%", 100, 165),
            ("nodefs.inodesFree<5%", 5, 50),
            ("imagefs.available<15%", 150, 165),
            ("unused images are kept", 150, 165),
        ];
        assert_eq!(limits, expected);
    }
}
