//! Which file systems are too full, how bad that is, and how much must be free again.

use crate::base::severity::Severity;
use crate::guest::{FileSystem, Guest, GuestPath};
use crate::node::{Node, Role};
use crate::settings::FreeTarget;
use crate::tree::Usage;

use super::eviction::{Eviction, Measured, file_system_holding, measure, percent_of};
use crate::base::units;

/// Below this (a quarter of it where neither `/` nor etcd lives) nothing that starts at boot can be
/// relied on to start: journald, the container runtime's databases, the kubelet's state. It is also
/// one of etcd's WAL files (64,000,000 bytes), which etcd sets aside before it serves.
pub const LEAST_BYTES: u64 = 64 << 20;

/// As [`LEAST_BYTES`], in inodes: a pod's start makes a few hundred files.
pub const LEAST_INODES: u64 = 1024;

/// A file system on which Kubernetes does not live is worth a note below this much.
const OTHER_FULL_PERCENT: f64 = 1.0;

/// File systems that are always full, because they cannot be written.
const READ_ONLY_KINDS: [&str; 6] = ["iso9660", "squashfs", "erofs", "cramfs", "udf", "swap"];

/// What a file system is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It holds `/`.
    Root,
    /// It holds the kubelet's folder.
    Nodefs,
    /// It holds the container images.
    Imagefs,
    /// It holds /var/log: no container starts where its log cannot be made.
    Logs,
    /// It holds etcd's data.
    Etcd,
}

/// One file system that is fuller than it should be.
#[derive(Debug, Clone)]
pub struct Assessment {
    /// Index into `guest.file_systems`.
    pub index: usize,
    /// What it is needed for; empty for /boot, /home and the like.
    pub parts: Vec<Part>,
    /// How bad.
    pub severity: Severity,
    /// What was seen, worst first.
    pub reasons: Vec<Reason>,
    /// What must be free so that nothing of this is said again.
    pub goal: Goal,
}

impl Assessment {
    /// The file system itself.
    pub fn file_system<'a>(&self, guest: &'a Guest) -> Option<&'a FileSystem> {
        guest.file_systems.get(self.index)
    }
}

/// One thing that is wrong with a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// "0 B of 20.0 GiB available (0 %)".
    pub saw: String,
    /// "below nodefs.available<10% (the kubelet's default): the kubelet …".
    pub means: String,
}

/// Bytes available and inodes free to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Goal {
    /// `bytes_available` must be at least this.
    pub bytes: u64,
    /// `inodes_free` must be at least this.
    pub inodes: u64,
}

impl Goal {
    /// Whether `usage` is there.
    pub fn is_met_by(&self, usage: &Usage) -> bool {
        usage.bytes_available >= self.bytes
            && (usage.inodes_total == 0 || usage.inodes_free >= self.inodes)
    }
}

/// Looks at every file system of the guest; those with enough free space are left out.
pub fn assess(
    guest: &Guest,
    node: &Node,
    eviction: &Eviction,
    target: FreeTarget,
) -> Vec<Assessment> {
    let parts = Parts::read(guest, node);
    guest
        .file_systems
        .iter()
        .enumerate()
        .filter(|(index, _)| guest.sharing_bytes(*index).first() == Some(index))
        .filter(|(_, fs)| fs.usage.bytes_total > 0 && !READ_ONLY_KINDS.contains(&fs.kind.as_str()))
        .filter_map(|(index, fs)| {
            let mut assessment = judge(&fs.usage, &parts.of(index), eviction, target)?;
            assessment.index = index;
            Some(assessment)
        })
        .collect()
}

/// Which file system holds what.
pub(super) struct Parts(Vec<(Part, usize)>);

impl Parts {
    pub(super) fn read(guest: &Guest, node: &Node) -> Self {
        let mut paths = vec![
            (Part::Root, GuestPath::new("/")),
            (Part::Logs, GuestPath::new("/var/log")),
        ];
        if node.role.value != Some(Role::NotKubernetes) {
            let measured = Measured::read(guest, node);
            paths.push((Part::Nodefs, measured.nodefs));
            paths.push((Part::Imagefs, measured.imagefs));
        }
        if let Some(etcd) = node.static_pod("etcd") {
            paths.push((
                Part::Etcd,
                GuestPath::new(etcd.flag("--data-dir").unwrap_or("/var/lib/etcd")),
            ));
        }
        Self(
            paths
                .into_iter()
                .filter_map(|(part, path)| Some((part, file_system_holding(guest, &path)?)))
                .collect(),
        )
    }

    pub(super) fn of(&self, index: usize) -> Vec<Part> {
        self.0
            .iter()
            .filter(|(_, holder)| *holder == index)
            .map(|(part, _)| *part)
            .collect()
    }
}

/// `None` where there is nothing to say.
fn judge(
    usage: &Usage,
    parts: &[Part],
    eviction: &Eviction,
    target: FreeTarget,
) -> Option<Assessment> {
    let mut seen: Vec<(Severity, Reason)> = Vec::new();
    let reason = |saw: &str, means: String| Reason {
        saw: saw.to_owned(),
        means,
    };
    let mut goal = Goal {
        bytes: percent_of(usage.bytes_total, target.bytes_percent),
        inodes: percent_of(usage.inodes_total, target.inodes_percent),
    };
    let bytes = format!(
        "{} of {} available ({})",
        units::bytes(usage.bytes_available),
        units::bytes(usage.bytes_total),
        units::percent(usage.bytes_available, usage.bytes_total)
    );
    let inodes = format!(
        "{} of {} inodes free ({})",
        usage.inodes_free,
        usage.inodes_total,
        units::percent(usage.inodes_free, usage.inodes_total)
    );
    let counts_inodes = usage.inodes_total > 0;

    if parts.is_empty() {
        // Not Kubernetes' business: no goal of ours, only a word.
        if usage.bytes_available < percent_of(usage.bytes_total, OTHER_FULL_PERCENT) {
            seen.push((
                Severity::Note,
                reason(&bytes, "nothing of Kubernetes lives here".into()),
            ));
        }
        if counts_inodes && usage.inodes_free < percent_of(usage.inodes_total, OTHER_FULL_PERCENT) {
            seen.push((
                Severity::Note,
                reason(&inodes, "nothing of Kubernetes lives here".into()),
            ));
        }
        return finish(seen, parts, Goal::default());
    }

    // A small disk must not be asked for much of itself.
    let essential = parts.contains(&Part::Root) || parts.contains(&Part::Etcd);
    let least_bytes = if essential {
        LEAST_BYTES
    } else {
        LEAST_BYTES / 4
    }
    .min(usage.bytes_total / 16);
    let least_inodes = LEAST_INODES.min(usage.inodes_total / 16);
    goal.bytes = goal.bytes.max(least_bytes);
    goal.inodes = goal.inodes.max(least_inodes);
    if usage.bytes_available < least_bytes {
        seen.push((
            Severity::StopsBoot,
            reason(&bytes, what_stops(parts, "to write")),
        ));
    }
    if counts_inodes && usage.inodes_free < least_inodes {
        seen.push((
            Severity::StopsBoot,
            reason(&inodes, what_stops(parts, "for new files")),
        ));
    }
    for threshold in &eviction.thresholds {
        let part = if threshold.signal.is_imagefs() {
            Part::Imagefs
        } else {
            Part::Nodefs
        };
        let Some((free, total)) =
            measure(threshold.signal, usage).filter(|_| parts.contains(&part))
        else {
            continue;
        };
        let limit = threshold.limit.of(total);
        let wanted = if threshold.signal.counts_inodes() {
            &mut goal.inodes
        } else {
            &mut goal.bytes
        };
        // A limit that nothing can meet is no reason to empty all logs.
        let never = if limit > total {
            ", which is more than this file system has: correct that limit"
        } else {
            ""
        };
        if never.is_empty() {
            *wanted = (*wanted).max(limit);
        }
        if free >= limit {
            continue;
        }
        let what = if threshold.signal.counts_inodes() {
            &inodes
        } else {
            &bytes
        };
        let (severity, means) = match (threshold.soft, part) {
            (true, _) => (
                Severity::WillBreak,
                "after its grace period the kubelet evicts pods",
            ),
            (false, Part::Imagefs) => (
                Severity::WillBreak,
                "the kubelet taints the node with disk pressure, removes images that nobody runs \
                 yet, and evicts pods",
            ),
            (false, _) => (
                Severity::StopsBoot,
                "the kubelet taints the node with disk pressure, refuses new pods and evicts those \
                 it has, in older versions even the static pods of the control plane",
            ),
        };
        seen.push((
            severity,
            reason(
                what,
                format!("below {threshold} ({}){never}: {means}", threshold.source),
            ),
        ));
    }
    let below_bytes = usage.bytes_available < goal.bytes;
    let below_inodes = counts_inodes && usage.inodes_free < goal.inodes;
    if seen.is_empty() && (below_bytes || below_inodes) {
        if below_bytes {
            seen.push((
                Severity::Note,
                reason(
                    &bytes,
                    format!("below the target of {} %", target.bytes_percent),
                ),
            ));
        }
        if below_inodes {
            seen.push((
                Severity::Note,
                reason(
                    &inodes,
                    format!("below the target of {} %", target.inodes_percent),
                ),
            ));
        }
    }
    finish(seen, parts, goal)
}

fn what_stops(parts: &[Part], verb: &str) -> String {
    let what = match () {
        () if parts.contains(&Part::Root) => "the system's services have no room",
        () if parts.contains(&Part::Etcd) => "etcd has no room",
        () if parts.contains(&Part::Nodefs) => "the kubelet has no room",
        () if parts.contains(&Part::Imagefs) => "the container runtime has no room",
        () => "containers' logs have no room",
    };
    format!("{what} {verb}")
}

fn finish(mut seen: Vec<(Severity, Reason)>, parts: &[Part], goal: Goal) -> Option<Assessment> {
    seen.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
    let severity = seen.first()?.0;
    let reasons = seen.into_iter().map(|(_, reason)| reason).collect();
    Some(Assessment {
        index: 0,
        parts: parts.to_vec(),
        severity,
        reasons,
        goal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn usage(available: u64, inodes_free: u64) -> Usage {
        Usage {
            bytes_total: 20 * GIB,
            bytes_free: available,
            bytes_available: available,
            inodes_total: 100_000,
            inodes_free,
        }
    }

    fn node_eviction() -> Eviction {
        let limit = |signal, percent, written: &str| super::super::eviction::Threshold {
            signal,
            limit: super::super::eviction::Limit::Percent(percent),
            written: written.into(),
            soft: false,
            source: "the kubelet's default".into(),
        };
        use super::super::eviction::Signal;
        Eviction {
            thresholds: vec![
                limit(Signal::NodefsAvailable, 10.0, "10%"),
                limit(Signal::NodefsInodesFree, 5.0, "5%"),
                limit(Signal::ImagefsAvailable, 15.0, "15%"),
            ],
            image_gc_high_percent: 85.0,
            malformed: Vec::new(),
        }
    }

    const ALL: [Part; 4] = [Part::Root, Part::Nodefs, Part::Imagefs, Part::Logs];

    fn severity(usage: Usage, parts: &[Part]) -> Option<Severity> {
        judge(&usage, parts, &node_eviction(), FreeTarget::default()).map(|a| a.severity)
    }

    #[test]
    fn severities_follow_what_happens_at_boot() {
        assert_eq!(severity(usage(0, 50_000), &ALL), Some(Severity::StopsBoot));
        assert_eq!(
            severity(usage(GIB, 50_000), &ALL),
            Some(Severity::StopsBoot)
        );
        assert_eq!(
            severity(usage(10 * GIB, 0), &ALL),
            Some(Severity::StopsBoot)
        );
        assert_eq!(
            severity(usage(5 * GIB / 2, 50_000), &ALL),
            Some(Severity::WillBreak)
        );
        assert_eq!(severity(usage(10 * GIB, 50_000), &ALL), None);
        // A root apart from the kubelet's file system only needs room to write; below the target is
        // worth a note.
        assert_eq!(
            severity(usage(GIB, 50_000), &[Part::Root]),
            Some(Severity::Note)
        );
        assert_eq!(
            severity(usage(1 << 20, 50_000), &[Part::Root]),
            Some(Severity::StopsBoot)
        );
        // /boot, /home.
        assert_eq!(severity(usage(1 << 20, 50_000), &[]), Some(Severity::Note));
        assert_eq!(severity(usage(GIB, 50_000), &[]), None);
    }

    #[test]
    fn the_goal_is_the_highest_of_target_and_limits() {
        let mut eviction = node_eviction();
        eviction.thresholds[0].limit = super::super::eviction::Limit::Percent(30.0);
        let found = judge(
            &usage(0, 0),
            &ALL,
            &eviction,
            FreeTarget {
                bytes_percent: 1.0,
                inodes_percent: 1.0,
            },
        );
        let goal = found.expect("a full disk").goal;
        assert_eq!(
            goal,
            Goal {
                bytes: 6 * GIB,
                inodes: 5000
            }
        );
        assert!(
            judge(
                &usage(goal.bytes, goal.inodes),
                &ALL,
                &eviction,
                FreeTarget::default()
            )
            .is_none()
        );
        assert!(
            judge(
                &usage(goal.bytes - 1, goal.inodes),
                &ALL,
                &eviction,
                FreeTarget::default()
            )
            .is_some()
        );
    }

    #[test]
    fn a_limit_beyond_the_disk_is_said_and_frees_nothing() {
        let mut eviction = node_eviction();
        eviction.thresholds[2].limit = super::super::eviction::Limit::Amount(30 * GIB);
        let found = judge(
            &usage(10 * GIB, 50_000),
            &ALL,
            &eviction,
            FreeTarget::default(),
        )
        .expect("never met");
        assert_eq!(found.severity, Severity::WillBreak);
        assert!(
            found.reasons[0]
                .means
                .contains("more than this file system has"),
            "{:?}",
            found.reasons
        );
        assert!(
            found.goal.is_met_by(&usage(10 * GIB, 50_000)),
            "{:?}",
            found.goal
        );
    }

    #[test]
    fn a_file_system_without_a_fixed_number_of_inodes_is_not_out_of_them() {
        let btrfs = Usage {
            inodes_total: 0,
            ..usage(10 * GIB, 0)
        };
        assert_eq!(severity(btrfs, &ALL), None);
    }
}
