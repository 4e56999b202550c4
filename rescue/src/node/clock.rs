//! When the node was last alive, by the times on its disk, and whether the rescuer's clock can be
//! right.

use std::path::Path;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use x509_parser::pem::Pem;

use super::{ClockEvidence, Kubelet, StaticPod};
use crate::base::refusal::Refusal;
use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

/// Files looked at per folder. Only names are listed beyond that.
const MAX_FILES: usize = 1000;

/// A time counts when so many other times lie within [`NEAR`] of it. A node that is alive writes
/// many files; a single file with a time in the far future (a wrong clock for one moment, a copy
/// from elsewhere, a crafted disk) is not enough.
const WITNESSES: usize = 2;

/// How near other times must be.
const NEAR: Duration = Duration::days(30);

/// How far a rescue clock may be behind the disk.
const TOLERANCE: Duration = Duration::days(1);

/// Folders that a live node writes to; `*` stands for one folder.
const FOLDERS: [&str; 16] = [
    "/var/log",
    "/var/log/journal/*",
    "/var/log/pods/*",
    "/etc",
    "/etc/kubernetes",
    "/etc/kubernetes/manifests",
    "/var/lib/kubelet",
    "/var/lib/kubelet/pki",
    "/var/lib/systemd",
    "/var/lib/systemd/timesync",
    "/var/lib/systemd/timers",
    "/var/lib/containerd/io.containerd.metadata.v1.bolt",
    "/var/lib/docker",
    "/var/lib/dpkg",
    "/root",
    "/tmp",
];

/// One time and where it was seen.
#[derive(Debug, Clone)]
struct Seen {
    at: i64,
    source: String,
}

/// The newest time on the disk that other times bear out.
pub(super) fn evidence(
    guest: &Guest,
    pods: &[StaticPod],
    kubelet: &Kubelet,
) -> Option<ClockEvidence> {
    let mut seen = Vec::new();
    for folder in FOLDERS {
        modification_times(guest, folder, &mut seen);
    }
    let etcd = pods
        .iter()
        .rev()
        .find(|pod| pod.name == "etcd")
        .and_then(|pod| pod.flag("--data-dir"));
    let etcd = etcd.unwrap_or("/var/lib/etcd");
    for folder in ["member/wal", "member/snap"] {
        modification_times(guest, &format!("{etcd}/{folder}"), &mut seen);
    }
    certificate_times(guest, kubelet, &mut seen);
    for mark in &guest.time_marks {
        let source = format!(
            "last mount, write or check of {}, in its superblock",
            mark.device
        );
        seen.push(Seen {
            at: mark.seconds,
            source,
        });
    }
    let newest = newest_borne_out(seen)?;
    Some(ClockEvidence {
        newest: OffsetDateTime::from_unix_timestamp(newest.at).ok()?,
        source: newest.source,
    })
}

/// Refuses a rescue clock that is more than a day behind the disk, unless the time was given by the
/// user: certificates made by it would not be valid yet when the node boots, and expired ones would
/// look good.
pub fn clock_refusal(
    now: OffsetDateTime,
    evidence: &ClockEvidence,
    now_given: bool,
) -> Option<Refusal> {
    if now_given || evidence.newest - now <= TOLERANCE {
        return None;
    }
    let show = |time: OffsetDateTime| {
        let whole = time.replace_nanosecond(0).unwrap_or(time);
        whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
    };
    Some(Refusal::new(
        format!(
            "this machine's clock says {}, but the {} on the disk is {}",
            show(now),
            evidence.source,
            show(evidence.newest)
        ),
        "a clock behind the disk is wrong: expired certificates would pass for valid ones and new \
         ones would carry wrong dates",
        "set the clock, or give the true time yourself, for example --now $(date -u \
         +%Y-%m-%dT%H:%M:%SZ) from a machine whose clock is right",
    ))
}

/// The newest time with enough others near it. With few times at all, or none borne out, the middle
/// one counts.
fn newest_borne_out(mut seen: Vec<Seen>) -> Option<Seen> {
    seen.sort_by_key(|seen| seen.at);
    let near = NEAR.whole_seconds();
    let borne_out = (WITNESSES..seen.len()).rev().find(|&index| {
        let witness = index
            .checked_sub(WITNESSES)
            .and_then(|index| seen.get(index));
        matches!(
            (seen.get(index), witness),
            (Some(newest), Some(witness)) if newest.at - witness.at <= near
        )
    });
    let index = borne_out.unwrap_or(seen.len() / 2);
    (index < seen.len()).then(|| seen.swap_remove(index))
}

fn modification_times(guest: &Guest, pattern: &str, seen: &mut Vec<Seen>) {
    let folders = match pattern.strip_suffix("/*") {
        Some(above) => {
            let above = GuestPath::new(above);
            let entries = guest.read_dir(&above).unwrap_or_default();
            let folders = entries
                .into_iter()
                .filter(|entry| entry.kind == FileKind::Directory);
            folders
                .take(MAX_FILES / 10)
                .map(|entry| above.join(entry.name))
                .collect()
        }
        None => vec![GuestPath::new(pattern)],
    };
    let tree = guest.tree();
    for folder in folders {
        let Ok(real) = guest.resolve(&folder) else {
            continue;
        };
        let files = tree.read_dir(real.as_path()).unwrap_or_default();
        for file in files
            .into_iter()
            .filter(|file| file.kind == FileKind::Regular)
            .take(MAX_FILES)
        {
            let path = real.as_path().join(&file.name);
            if let Ok(meta) = tree.lstat(&path) {
                remember(
                    meta.mtime,
                    format!("modification time of {}", GuestPath::new(&path)),
                    seen,
                );
            }
        }
    }
}

/// A certificate was issued at its NotBefore or (kubeadm up to 1.30) later.
fn certificate_times(guest: &Guest, kubelet: &Kubelet, seen: &mut Vec<Seen>) {
    let Some(folder) = &kubelet.cert_dir.value else {
        return;
    };
    for entry in guest
        .read_dir(folder)
        .unwrap_or_default()
        .into_iter()
        .take(MAX_FILES)
    {
        if Path::new(&entry.name)
            .extension()
            .is_none_or(|extension| extension != "pem")
        {
            continue;
        }
        let path = folder.join(&entry.name);
        let Ok(pem) = guest.read(&path) else { continue };
        for block in Pem::iter_from_buffer(&pem)
            .flatten()
            .filter(|block| block.label == "CERTIFICATE")
        {
            if let Ok(certificate) = block.parse_x509() {
                remember(
                    certificate.validity().not_before.timestamp(),
                    format!("NotBefore in {path}"),
                    seen,
                );
            }
        }
    }
}

/// Times before 1990 are no evidence of anything but a missing clock.
fn remember(at: i64, source: String, seen: &mut Vec<Seen>) {
    const YEAR_1990: i64 = 631_152_000;
    const YEAR_9999: i64 = 253_402_300_799;
    if (YEAR_1990..=YEAR_9999).contains(&at) {
        seen.push(Seen { at, source });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    const DAY: i64 = 86_400;
    const LAST: i64 = 1_700_000_000;

    fn newest(tree: MemoryTree) -> i64 {
        let guest = tree.into_guest();
        let kubelet = super::super::kubelet::read(&guest);
        evidence(&guest, &[], &kubelet)
            .expect("there are files")
            .newest
            .unix_timestamp()
    }

    fn alive() -> MemoryTree {
        (0..6).fold(MemoryTree::new(), |tree, index| {
            let path = format!("/var/log/log.{index}");
            tree.file(&path, "x").mtime(&path, LAST - index * 5 * DAY)
        })
    }

    #[test]
    fn the_newest_log_counts() {
        assert_eq!(
            newest(
                alive()
                    .file("/var/log/now", "")
                    .mtime("/var/log/now", LAST + DAY)
            ),
            LAST + DAY
        );
    }

    #[test]
    fn one_file_from_the_far_future_does_not() {
        let future = alive()
            .file("/var/log/odd", "")
            .mtime("/var/log/odd", LAST + 9000 * DAY);
        assert_eq!(newest(future), LAST);
        assert_eq!(
            newest(
                MemoryTree::new()
                    .file("/var/log/only", "")
                    .mtime("/var/log/only", LAST)
            ),
            LAST
        );
    }

    #[test]
    fn a_clock_behind_the_disk_is_refused() {
        let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).expect("in range");
        let evidence = ClockEvidence {
            newest: at(LAST),
            source: "modification time of /var/log/syslog".into(),
        };
        assert_eq!(clock_refusal(at(LAST - DAY), &evidence, false), None);
        assert_eq!(clock_refusal(at(LAST + 9000 * DAY), &evidence, false), None);
        let refusal = clock_refusal(at(LAST - DAY - 1), &evidence, false).expect("behind");
        assert!(
            refusal.to_string().contains("2023-11-13T22:13:19Z"),
            "{refusal}"
        );
        assert!(refusal.next.contains("--now"));
        assert_eq!(clock_refusal(at(0), &evidence, true), None);
    }
}
