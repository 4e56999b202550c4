//! fstab: a line that wants what none of the disks given holds.
//!
//! systemd makes every such mount, unless it is `nofail`, a requirement of local-fs.target, waits
//! 90 seconds for the device, and ends the boot in the emergency shell (systemd-fstab-generator(8),
//! systemd.mount(5)). On most systems root is locked, so that nobody gets in.
//!
//! What rescue was given may not be all that the machine has: the disk may be attached at boot. So
//! nothing is changed unasked, and never for a mount that holds what the node lives on: etcd would
//! found an empty cluster in the empty folder.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::change::{Prepared, line};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::fstab::{self, Entry};
use crate::guest::{Guest, GuestPath, Missing, Origin};
use crate::node::{Node, Role};
use crate::space::eviction::Measured;

const MISSING_DISK: Mode = Mode::stops_boot(
    "fstab.missing-disk",
    "an fstab line wants a disk that is not among those given",
)
.why(
    "systemd waits 90 seconds for the device (\"Timed out waiting for device\"), fails \
    local-fs.target (\"Dependency failed for Local File Systems\") and ends in the emergency \
    shell. The kubelet is never started.",
)
.done(
    "Names the line. Where the mount is not one that the node lives on, adds \
    `nofail,x-systemd.device-timeout=15s` to it after asking (`--allow fstab.missing-disk`). \
    A disk that the machine has at boot should be given as well, and then nothing is wrong.",
)
.source("systemd-fstab-generator(8); add_mount in src/fstab-generator/fstab-generator.c")
.logged(&[
    "Dependency failed for Local File Systems",
    "You are in emergency mode",
]);

/// See the module.
pub const CHECK: Check = Check {
    id: "fstab",
    about: "fstab lines that want a disk which is not there, and end the boot in the emergency shell",
    modes: &[MISSING_DISK],
    roles: &[Role::ControlPlane, Role::Worker, Role::Etcd],
    after: &[],
    run,
};

const FSTAB: &str = "/etc/fstab";

/// What is added to the options of a line.
const OPTIONS: &str = "nofail,x-systemd.device-timeout=15s";

/// What a node lives on: a mount at, above or within one of these is never made optional.
const LIVES_ON: [&str; 14] = [
    "/etc",
    "/usr",
    "/opt/cni",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/containers",
    "/var/lib/crio",
    "/var/lib/cni",
    "/var/lib/rancher",
    "/var/lib/dpkg",
    "/var/lib/rpm",
    "/var/lib/rescue",
];

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    let Ok(bytes) = guest.read(&GuestPath::new(FSTAB)) else {
        return Ok(Vec::new());
    };
    let entries: Vec<Entry> = fstab::parse(&bytes).into_iter().flatten().collect();
    let absent = guest.missing.iter().filter(|missing| missing.is_absent);
    Ok(absent
        .filter_map(|missing| {
            let is_its = |entry: &&Entry| entry.line == missing.line && stops_the_boot(entry);
            let entry = entries.iter().find(is_its)?;
            Some(finding(guest, node, missing, entry, &bytes))
        })
        .collect())
}

/// Whether systemd makes the mount a requirement of the boot.
fn stops_the_boot(entry: &Entry) -> bool {
    const NOT: [&str; 4] = ["nofail", "noauto", "x-systemd.automount", "_netdev"];
    !NOT.iter().any(|option| entry.has_option(option))
}

fn finding(guest: &Guest, node: &Node, missing: &Missing, entry: &Entry, bytes: &[u8]) -> Finding {
    let at = Origin::line(GuestPath::new(FSTAB), entry.line);
    let text = bytes.split(|byte| *byte == b'\n').nth(entry.line - 1);
    let text = text.map(|line| String::from_utf8_lossy(line).into_owned());
    let title = format!(
        "the boot stops at {}: fstab waits for {}",
        missing.at, entry.what
    );
    let finding = Finding::new(MISSING_DISK, title)
        .with_evidence(&at, text.as_deref().unwrap_or_default().trim())
        .with_evidence("", &missing.why)
        .with_advice(
            "Without it the boot ends in the emergency shell after 90 seconds.\nIf the machine has \
             that disk at boot: give it to this command as well. If it is gone \
             for good, the line must not wait for it.",
        );
    if let Some(held) = held_there(guest, node, missing.at.as_path()) {
        return finding.with_advice(format!(
            "It is never made optional, because the node lives on it ({held}): in the empty folder \
             the node would begin anew, without its data. Attach that disk."
        ));
    }
    match text {
        Some(text) => finding
            .with_advice(
                "Pods that keep data there (hostPath, local volumes) would begin in an empty \
                 folder.",
            )
            .with_remedy(DoNotWait { at, text }),
        None => finding,
    }
}

/// Which of the folders that the node lives on is on a mount: those of [`LIVES_ON`], those that
/// static pods mount, and where the kubelet and the container runtime are set to keep theirs.
fn held_there(guest: &Guest, node: &Node, mount_point: &Path) -> Option<String> {
    let volumes = node.static_pods.iter().flat_map(|pod| &pod.mounts.volumes);
    let volumes = volumes.map(|volume| volume.path.clone());
    let Measured { nodefs, imagefs } = Measured::read(guest, node);
    let known = LIVES_ON.iter().map(GuestPath::new);
    let mut folders = known.chain(volumes).chain([nodefs, imagefs]);
    let is_there = |folder: &GuestPath| {
        let real = guest.real_or_written(folder);
        real.starts_with(mount_point) || mount_point.starts_with(real)
    };
    folders.find(is_there).map(|folder| folder.to_string())
}

/// The line with further options in its fourth field; everything else stays.
fn with_options(text: &str) -> Option<String> {
    let mut fields = Vec::new();
    let mut start = None;
    for (at, letter) in text.char_indices().chain([(text.len(), ' ')]) {
        match (letter.is_ascii_whitespace(), start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                fields.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    let edited = match (fields.get(3), fields.get(2), fields.get(1)) {
        (Some(options), _, _) if !text.get(options.clone())?.starts_with('#') => {
            let (before, after) = text.split_at(options.end);
            format!("{before},{OPTIONS}{after}")
        }
        (_, Some(kind), _) => {
            let (before, after) = text.split_at(kind.end);
            format!("{before} defaults,{OPTIONS}{after}")
        }
        (_, None, Some(place)) => {
            let (before, after) = text.split_at(place.end);
            format!("{before} auto defaults,{OPTIONS}{after}")
        }
        _ => return None,
    };
    Some(edited)
}

/// The boot goes on without the mount.
#[derive(Debug)]
struct DoNotWait {
    at: Origin,
    text: String,
}

impl Remedy for DoNotWait {
    fn kind(&self) -> &'static str {
        "make-mount-optional"
    }

    fn summary(&self) -> String {
        format!("let the boot go on without {}: add {OPTIONS}", self.at)
    }

    fn asks_first(&self) -> bool {
        true
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("path".to_owned(), json!(self.at.to_string()))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let new = with_options(&self.text).context("the line has no options to add to")?;
        let change = line::replace_line(context.guest, &self.at, &self.text, &new)?;
        Ok(Prepared {
            changes: vec![change],
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};

    /// A guest whose second line of fstab wants a disk that is not there.
    fn guest(line: &str, at: &str) -> Guest {
        let text = format!("UUID=1 / ext4 defaults 0 1\n{line}\n# the end\n");
        let mut guest = control_plane().file(FSTAB, text).into_guest();
        guest.missing = vec![Missing {
            at: GuestPath::new(at),
            why: format!("{at} is on none of the disks given"),
            line: 2,
            is_absent: true,
        }];
        guest
    }

    fn mended(line: &str) -> String {
        let bench = Bench::new(CHECK);
        let guest = guest(line, "/data");
        let found = bench.found_in(&guest);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].remedies[0].asks_first());
        let after = bench.after(&guest, found[0].remedies[0].as_ref());
        assert!(bench.found_in(&after).is_empty());
        let text = after.read_text(&GuestPath::new(FSTAB)).unwrap();
        assert!(text.ends_with("\n# the end\n"), "{text}");
        text.lines().nth(1).unwrap().to_owned()
    }

    #[test]
    fn options_are_added_and_the_rest_of_the_line_stays() {
        assert_eq!(
            mended("UUID=2\t/data  xfs\tdefaults,noatime 0 2"),
            "UUID=2\t/data  xfs\tdefaults,noatime,nofail,x-systemd.device-timeout=15s 0 2"
        );
        assert_eq!(
            mended("LABEL=x /data ext4"),
            "LABEL=x /data ext4 defaults,nofail,x-systemd.device-timeout=15s"
        );
    }

    #[test]
    fn a_mount_that_the_node_lives_on_is_never_made_optional() {
        for at in [
            "/var",
            "/var/lib/etcd",
            "/var/lib/containerd/io.containerd",
            "/usr",
        ] {
            let found =
                Bench::new(CHECK).found_in(&guest(&format!("UUID=2 {at} xfs defaults"), at));
            assert_eq!(found.len(), 1, "{at}");
            assert!(found[0].remedies.is_empty(), "{at}");
            assert!(found[0].advice[2].contains("never made optional"), "{at}");
        }
    }

    #[test]
    fn nor_one_that_the_nodes_own_settings_lead_to() {
        let line = "UUID=2 /data xfs defaults 0 0";
        let base = || control_plane().file(FSTAB, format!("UUID=1 / ext4 defaults 0 1\n{line}\n"));
        let trees = [
            base().link("/var/lib/containerd", "/data/containerd"),
            base()
                .link("/var/lib/kubelet/pods", "/x")
                .link("/var/lib/etcd", "../../data/etcd"),
            base().file(
                "/var/lib/kubelet/kubeadm-flags.env",
                "KUBELET_KUBEADM_ARGS=\"--root-dir=/data/kubelet\"\n",
            ),
            base()
                .file("/var/lib/containerd/x", "")
                .file(
                    "/etc/containerd/config.toml",
                    "version = 2\nroot = \"/data/containerd\"\n",
                )
                .file(
                    "/var/lib/kubelet/kubeadm-flags.env",
                    "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/\
                     containerd.sock\"\n",
                ),
        ];
        for (number, tree) in trees.into_iter().enumerate() {
            let mut with_line = tree.into_guest();
            with_line.missing = guest(line, "/data").missing;
            let found = Bench::new(CHECK).found_in(&with_line);
            assert_eq!(found.len(), 1, "{number}");
            assert!(found[0].remedies.is_empty(), "{number}: {found:#?}");
        }
    }

    #[test]
    fn what_does_not_stop_the_boot_is_no_finding() {
        let bench = Bench::new(CHECK);
        for options in [
            "nofail",
            "noauto",
            "x-systemd.automount",
            "_netdev",
            "ro,nofail",
        ] {
            let line = format!("UUID=2 /data xfs {options} 0 0");
            assert!(
                bench.found_in(&guest(&line, "/data")).is_empty(),
                "{options}"
            );
        }
        let mut unread = guest("UUID=2 /data xfs defaults 0 0", "/data");
        unread.missing[0].is_absent = false;
        assert!(bench.found_in(&unread).is_empty());
        bench.silent(control_plane());
    }
}
