//! The system that is running, seen as a guest (`--root /`). Its tree follows the mounts that are
//! there, not fstab.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};

use super::discover::{Assembly, is_root};
use super::{Guest, Mounted};
use crate::base::refusal::Refusal;
use crate::disk::mountinfo::{self, Mount};
use crate::tree::{FolderTree, MemoryTree};

/// Below these, what is mounted is not the node's own: the kernel's file systems, pods' volumes,
/// layers of containers. A volume may be on a network that does not answer, so it is not even
/// looked at.
const NOT_OURS: [&str; 10] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/var/lib/kubelet/pods",
    "/var/lib/kubelet/plugins",
    "/var/lib/docker/",
    "/var/lib/containers/",
    "/var/lib/containerd/",
];

/// Opens the running system.
///
/// # Errors
/// [`Refusal`]s where `/` is not the root of a system that boots from a disk (a chroot, a
/// container, a rescue system), and for anybody but root.
pub(super) fn guest() -> Result<Guest> {
    refuse_without_root()?;
    refuse_chroot()?;
    refuse_container(Path::new("/"))?;
    refuse_rescue_system()?;
    let root = mountinfo::at(Path::new("/")).context("reading what is mounted on /")?;
    let root = root.filter(Mount::is_on_disk).ok_or_else(no_disk)?;
    let tree = FolderTree::open(Path::new("/"))?;
    if !is_root(&tree).context("looking for a system in /")? {
        return Err(Refusal::new(
            "/ holds no Linux root file system",
            "a root has /etc, /bin and /etc/fstab or /etc/hosts",
            "name the disk of the node, or the folder where it is mounted",
        )
        .into());
    }
    let below = mountinfo::below(Path::new("/")).context("reading what is mounted below /")?;
    let mut assembly = Assembly::default();
    assembly.mount_folder(
        tree,
        root.device.clone(),
        Path::new("/"),
        PathBuf::from("/"),
    )?;
    for (mount, layer) in below.iter().zip(layers(&root, &below)) {
        let at = mount.mount_point.clone();
        match layer {
            Layer::Files if at.is_dir() => {
                let tree = FolderTree::open(&at)?;
                assembly.mount_folder(tree, mount.device.clone(), &at, at.clone())?;
            }
            Layer::Alias(source) => assembly.binds.push((at, source)),
            // An empty folder, as the disk has it there.
            Layer::Files | Layer::Hidden => {
                assembly.mounts.push(Mounted {
                    mount_point: at,
                    tree: Rc::new(MemoryTree::new()),
                });
            }
            Layer::Covered => {}
        }
    }
    assembly.note_unmounted("now");
    let mut guest = assembly.finish("/".to_owned());
    guest.live = true;
    // What is there is what its processes use, mounted or not.
    guest.missing.clear();
    Ok(guest)
}

/// How one mount appears in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layer {
    /// A file system of its own.
    Files,
    /// Another name of a folder that is in the tree already (a bind mount).
    Alias(PathBuf),
    /// Not the node's: an empty folder.
    Hidden,
    /// Below something hidden.
    Covered,
}

/// For each of `below` (parents first), how it appears.
fn layers(root: &Mount, below: &[Mount]) -> Vec<Layer> {
    let mut hidden: Vec<&Path> = Vec::new();
    let mut layers = Vec::new();
    for mount in below {
        let layer = if hidden
            .iter()
            .any(|above| mount.mount_point.starts_with(above))
        {
            Layer::Covered
        } else if !is_ours(mount) {
            Layer::Hidden
        } else {
            alias(mount, root, below).map_or(Layer::Files, Layer::Alias)
        };
        if layer == Layer::Hidden {
            hidden.push(&mount.mount_point);
        }
        layers.push(layer);
    }
    layers
}

fn is_ours(mount: &Mount) -> bool {
    let below = |folder: &str| match folder.strip_suffix('/') {
        // A disk for all images is the node's; what is mounted in it belongs to containers.
        Some(folder) => {
            mount.mount_point != Path::new(folder) && mount.mount_point.starts_with(folder)
        }
        None => mount.mount_point.starts_with(folder),
    };
    mount.is_on_disk() && !NOT_OURS.iter().any(|folder| below(folder))
}

/// Where the files of a bind mount are seen without it: below the mount that shows most of the same
/// file system, if nothing else is mounted over them there.
fn alias(mount: &Mount, root: &Mount, below: &[Mount]) -> Option<PathBuf> {
    let all = || std::iter::once(root).chain(below);
    let shows_it = |other: &&Mount| {
        let is_earlier = other.root != mount.root || other.mount_point < mount.mount_point;
        other.number == mount.number
            && is_earlier
            && mount.root.starts_with(&other.root)
            && is_ours(other)
    };
    let widest = all()
        .filter(shows_it)
        .min_by_key(|other| (other.root.components().count(), &other.mount_point))?;
    let source = widest
        .mount_point
        .join(mount.root.strip_prefix(&widest.root).ok()?);
    let is_over_it = |other: &&Mount| {
        *other != widest
            && source.starts_with(&other.mount_point)
            && other.mount_point.starts_with(&widest.mount_point)
    };
    all().find(is_over_it).is_none().then_some(source)
}

fn refuse_without_root() -> Result<(), Refusal> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Refusal::new(
        "/ is the root of the system that is running, and you are not root",
        "keys and certificates of this node can be read by root only",
        "run the same command with sudo",
    ))
}

/// In a chroot, `/` is not what the running system calls so, and what is mounted where, and who has
/// files open, cannot be known.
fn refuse_chroot() -> Result<()> {
    let identity =
        |path: &str| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let ours = identity("/").context("looking at /")?;
    match identity("/proc/1/root") {
        Ok(theirs) if theirs == ours => Ok(()),
        Ok(_) => Err(Refusal::new(
            "/ is not the root of process 1: this is a chroot or a container",
            "the system in this folder is not the one that is running",
            "leave the chroot and name its folder from outside: --root DIR",
        )
        .into()),
        Err(error) => {
            let next = match error.kind() {
                std::io::ErrorKind::NotFound => "mount it: mount -t proc proc /proc",
                _ => "run it as root on the node itself, not in a container or a sandbox",
            };
            Err(Refusal::new(
                format!("the root of process 1 cannot be seen ({error})"),
                "without /proc nobody knows whether / is the running system, nor who has which \
                 files open",
                next,
            )
            .into())
        }
    }
}

/// The signs that container engines leave (systemd's container interface, Docker's and Podman's
/// files).
fn refuse_container(root: &Path) -> Result<(), Refusal> {
    let environment = std::fs::read(root.join("proc/1/environ")).unwrap_or_default();
    let by_variable = environment
        .split(|byte| *byte == 0)
        .any(|variable| variable.starts_with(b"container="));
    let files = ["run/systemd/container", ".dockerenv", "run/.containerenv"];
    let by_file = files.iter().find(|file| root.join(file).exists());
    let sign = match (by_variable, by_file) {
        (true, _) => "process 1 was started with container=…".to_owned(),
        (false, Some(file)) => format!("/{file} is there"),
        (false, None) => return Ok(()),
    };
    Err(Refusal::new(
        format!("/ is the root of a container ({sign})"),
        "the node's own files are outside of it",
        "run rescue on the node itself, not in a container",
    ))
}

/// Whether this program is process 1: on the ISO, whose names of disks hold until the next boot.
pub fn is_rescue_system() -> bool {
    let identity =
        |path: &str| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    match (identity("/proc/1/exe"), identity("/proc/self/exe")) {
        (Ok(first), Ok(ours)) => first == ours,
        _ => false,
    }
}

fn refuse_rescue_system() -> Result<(), Refusal> {
    if !is_rescue_system() {
        return Ok(());
    }
    Err(Refusal::new(
        "/ is the rescue system itself",
        "it runs from memory and has nothing to repair",
        "name the node's disk (lsblk shows the disks of this machine)",
    ))
}

fn no_disk() -> Refusal {
    Refusal::new(
        "/ is not on a disk's file system",
        "what is changed on a live or layered system is lost when it is switched off",
        "name the node's disk (lsblk shows the disks of this machine), or run this on the node \
         itself",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(number: &str, root: &str, mount_point: &str, kind: &str) -> Mount {
        Mount {
            mount_point: mount_point.into(),
            kind: kind.into(),
            device: format!("/dev/{number}"),
            number: number.into(),
            root: root.into(),
        }
    }

    fn layers_of(below: &[Mount]) -> Vec<Layer> {
        layers(&mount("8:1", "/", "/", "ext4"), below)
    }

    #[test]
    fn disks_are_files_and_everything_else_is_hidden() {
        let below = [
            mount("0:5", "/", "/dev", "devtmpfs"),
            mount("0:6", "/", "/run", "tmpfs"),
            mount("8:2", "/", "/var", "xfs"),
            mount("0:7", "/", "/nfs", "nfs4"),
            mount("0:8", "/", "/run/shm", "tmpfs"),
            mount("8:9", "/", "/var/lib/kubelet/pods/x/volumes/pv", "ext4"),
            mount("8:3", "/", "/var/lib/docker", "ext4"),
            mount("8:4", "/", "/var/lib/docker/devicemapper/mnt/1", "ext4"),
        ];
        use Layer::{Covered, Files, Hidden};
        assert_eq!(
            layers_of(&below),
            [
                Hidden, Hidden, Files, Hidden, Covered, Hidden, Files, Hidden
            ]
        );
    }

    #[test]
    fn a_bind_mount_is_another_name() {
        let below = [
            mount("8:2", "/", "/data", "ext4"),
            mount("8:2", "/kubelet", "/var/lib/kubelet", "ext4"),
            mount("8:1", "/srv/etcd", "/var/lib/etcd", "ext4"),
        ];
        let alias = |path: &str| Layer::Alias(path.into());
        assert_eq!(
            layers_of(&below),
            [Layer::Files, alias("/data/kubelet"), alias("/srv/etcd")]
        );
    }

    #[test]
    fn a_bind_mount_of_what_is_not_to_be_seen_is_files_of_its_own() {
        let hidden_below = [
            mount("8:3", "/", "/srv", "xfs"),
            mount("8:1", "/srv/etcd", "/var/lib/etcd", "ext4"),
        ];
        assert_eq!(layers_of(&hidden_below), [Layer::Files, Layer::Files]);
        let subvolume = [
            mount("0:30", "/@var", "/var", "btrfs"),
            mount("0:30", "/@home", "/home", "btrfs"),
        ];
        assert_eq!(layers_of(&subvolume), [Layer::Files, Layer::Files]);
        let twice = [
            mount("8:2", "/", "/a", "xfs"),
            mount("8:2", "/", "/b", "xfs"),
        ];
        assert_eq!(layers_of(&twice), [Layer::Files, Layer::Alias("/a".into())]);
    }

    #[test]
    fn signs_of_containers() {
        let root = tempfile::tempdir().unwrap();
        assert!(refuse_container(root.path()).is_ok());
        std::fs::create_dir_all(root.path().join("run/systemd")).unwrap();
        std::fs::write(root.path().join("run/systemd/container"), "lxc").unwrap();
        assert!(refuse_container(root.path()).is_err());
    }
}
