//! disk-full: a file system without the bytes or inodes that the node needs to come back.
//!
//! A full disk is what the kubelet evicts for, what etcd stops at, and what journald, containerd
//! and logins fail on. The limits are the kubelet's own (`space::eviction`); only a file system
//! that is too full is walked.

pub mod free_space;
use crate::base::severity::Severity;
use crate::base::units;
use crate::checks::disk_full::free_space::{FreeSpace, held_by_snapshots};
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::FileSystem;
use crate::settings::FreeTarget;
use crate::space::assess::{Assessment, Part, assess};
use crate::space::eviction::Eviction;
use crate::space::holders;
use crate::space::plan::{Collector, Plan};
use crate::space::walk::{Walked, walk};
use crate::tree::Usage;

const ID: &str = "disk-full";

/// Rows of "what holds the space".
const HOLDERS: usize = 8;

/// Large files that are named.
const LARGEST: usize = 5;

const SPACE: Mode = Mode::stops_boot(
    "disk-full.space",
    "a file system has too little room for the kubelet's eviction limits, or for a repair",
)
.why(
    "Below the kubelet's hard limits the node gets the taint disk-pressure and pods are \
    evicted; on a disk that is quite full neither etcd nor the kubelet can write.",
)
.done(
    "Deletes rotated logs, bundles, caches and core dumps, least valuable first, until \
    enough is free. What is deleted is listed before you agree and cannot be brought \
    back.",
)
.source("pkg/kubelet/eviction/defaults_linux.go")
.logged(&[
    "no space left on device",
    "attempting to reclaim ephemeral-storage",
]);
const LIMITS: Mode = Mode::stops_boot(
    "disk-full.limits",
    "the kubelet's eviction limits cannot be read, and the kubelet exits",
)
.why("The kubelet parses its eviction thresholds at its start and exits where it cannot.")
.done("Names the file, the value and the right form.")
.source("ParseThresholdConfig in pkg/kubelet/eviction/helpers.go");

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "file systems without enough bytes or inodes for the kubelet's eviction limits; frees \
        rotated logs, package caches and old crash dumps, least valuable first, until enough is \
        free",
    modes: &[SPACE, LIMITS],
    roles: &[],
    after: &[],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    let eviction = Eviction::read(context.node);
    let assessments = assess(
        context.guest,
        context.node,
        &eviction,
        context.settings.free_target,
    );
    let mut findings: Vec<Finding> = assessments
        .iter()
        .filter_map(|found| finding(context, found))
        .collect();
    findings.extend(eviction.malformed.iter().map(|what| {
        Finding::new(
            LIMITS,
            format!("the kubelet's eviction limits cannot be read: {what}"),
        )
        .with_advice("The kubelet exits on such a value. Correct it by hand.")
    }));
    Ok(findings)
}

fn finding(context: &Context<'_>, found: &Assessment) -> Option<Finding> {
    let fs = found.file_system(context.guest)?;
    let worst = found.reasons.first()?;
    let adjective = match found.severity {
        Severity::Note => "has little room left",
        _ => "is too full",
    };
    let mut finding = Finding::new(
        SPACE,
        format!("{} {adjective}: {}", fs.mount_point, worst.saw),
    )
    .with_severity(found.severity);
    for reason in &found.reasons {
        finding =
            finding.with_evidence(&fs.mount_point, format!("{}: {}", reason.saw, reason.means));
    }
    if !wants_freeing(context, found) {
        return Some(finding);
    }
    let (walked, plan) = look(context, found, fs);
    finding = show_holders(finding, &walked, &fs.usage);
    finding = advise(finding, found, fs, &walked, &plan);
    finding = snapshots_hold(finding, context, found);
    if !plan.candidates.is_empty() {
        let (mount_point, before) = (fs.mount_point.clone(), fs.usage);
        let now = context.settings.now.unix_timestamp();
        let snapshots = snapshots(context, found);
        finding = finding.with_remedy(FreeSpace {
            mount_point,
            before,
            plan,
            now,
            snapshots,
        });
    }
    Some(finding)
}

/// A note is not worth a walk, unless the user named a target that is not reached.
fn wants_freeing(context: &Context<'_>, found: &Assessment) -> bool {
    let asked = context.settings.free_target != FreeTarget::default() && !found.parts.is_empty();
    found.severity > Severity::Note || asked
}

fn look(context: &Context<'_>, found: &Assessment, fs: &FileSystem) -> (Walked, Plan) {
    let guest = context.guest;
    let inodes = fs
        .usage
        .inodes_total
        .checked_sub(fs.usage.inodes_free)
        .filter(|used| *used > 0);
    let progress = context.ui.begin(
        &format!("looking for what fills {}", fs.mount_point),
        inodes,
    );
    let mut collector = Collector::new(guest, context.node, context.settings.now.unix_timestamp());
    let known = holders::known(guest, context.node);
    let walked = walk(
        guest,
        found.index,
        &known,
        &mut collector,
        progress.as_ref(),
    );
    let plan = collector.choose(guest.tree().as_ref(), fs, found.goal);
    (walked, plan)
}

/// What is deleted from a subvolume comes back only when its snapshots are deleted, too.
fn snapshots_hold(finding: Finding, context: &Context<'_>, found: &Assessment) -> Finding {
    match snapshots(context, found) {
        0 => finding,
        count => finding.with_advice(format!(
            "{} On the booted node: `snapper list` and `snapper delete`, `timeshift --list`, or \
             `btrfs subvolume list -s /` and `btrfs subvolume delete`.",
            held_by_snapshots(count)
        )),
    }
}

/// How many snapshots there are of what the guest mounts of this file system.
fn snapshots(context: &Context<'_>, found: &Assessment) -> usize {
    let shared = context.guest.sharing_bytes(found.index).into_iter();
    let subvolumes =
        shared.filter_map(|index| context.guest.file_systems.get(index)?.subvolume.as_ref());
    subvolumes.map(|subvolume| subvolume.snapshots).sum()
}

fn show_holders(mut finding: Finding, walked: &Walked, usage: &Usage) -> Finding {
    let short_of_inodes = usage.inodes_total > 0 && usage.inodes_free < usage.inodes_total / 10;
    let mut rows: Vec<_> = walked
        .rows
        .iter()
        .filter(|row| row.total.bytes >= 1 << 20 || short_of_inodes)
        .collect();
    if short_of_inodes && usage.bytes_available > usage.bytes_total / 10 {
        rows.sort_by_key(|row| std::cmp::Reverse(row.total.inodes));
    }
    for row in rows.into_iter().take(HOLDERS) {
        let label = row
            .label
            .map(|label| format!(": {label}"))
            .unwrap_or_default();
        let share = units::percent(row.total.bytes, usage.bytes_total);
        let saw = format!(
            "holds {} ({share}) in {} files{label}",
            units::bytes(row.total.bytes),
            row.total.inodes
        );
        finding = finding.with_evidence(&row.path, saw);
    }
    for (path, bytes) in walked.largest.iter().take(LARGEST) {
        finding = finding.with_evidence(path, format!("one file of {}", units::bytes(*bytes)));
    }
    for (path, why) in &walked.unreadable {
        finding = finding.with_evidence(path, format!("cannot be looked into: {why}"));
    }
    finding
}

fn advise(
    mut finding: Finding,
    found: &Assessment,
    fs: &FileSystem,
    walked: &Walked,
    plan: &Plan,
) -> Finding {
    let used = fs.usage.bytes_total.saturating_sub(fs.usage.bytes_free);
    let unseen = used.saturating_sub(walked.total.bytes);
    if walked.unreadable_count == 0 && unseen > used / 5 && unseen > 64 << 20 {
        finding = finding.with_advice(format!(
            "{} are in use without a name that leads to them: deleted files that were still open \
             (gone after the next mount), snapshots, or files hidden below a mount point.",
            units::bytes(unseen)
        ));
    }
    if plan.enough {
        return finding;
    }
    let lacks_bytes = found.goal.bytes.saturating_sub(plan.after.bytes_available);
    let lacks_inodes = found.goal.inodes.saturating_sub(plan.after.inodes_free);
    let lacks = match (lacks_bytes, lacks_inodes) {
        (bytes, 0) => units::bytes(bytes),
        (0, inodes) => format!("{inodes} inodes"),
        (bytes, inodes) => format!("{} and {inodes} inodes", units::bytes(bytes)),
    };
    let what = if plan.candidates.is_empty() {
        format!(
            "Nothing on {} may be freed by rule, and {lacks} more must be free.",
            fs.mount_point
        )
    } else {
        format!(
            "What may be freed by rule is not enough: {lacks} more must be freed on {} by hand.",
            fs.mount_point
        )
    };
    finding = finding.with_advice(what);
    for spared in plan.spared.iter().take(LARGEST) {
        finding = finding.with_advice(format!(
            "Left alone: {} ({}): {}.",
            spared.path,
            units::bytes(spared.bytes),
            spared.why
        ));
    }
    for (rule, shown) in &plan.shown {
        let files = units::count(
            usize::try_from(shown.files).unwrap_or(usize::MAX),
            "file",
            "files",
        );
        finding = finding.with_advice(format!(
            "{files} with {}: {}.",
            units::bytes(shown.bytes),
            rule.why
        ));
    }
    let look = match lacks_bytes {
        0 => "du -x --inodes --max-depth=3 MOUNTPOINT | sort -n | tail -n 30",
        _ => "du -xh --max-depth=3 MOUNTPOINT | sort -h | tail -n 30",
    };
    let images = found.parts.contains(&Part::Imagefs);
    finding.with_advice(format!(
        "Delete by hand what you can spare of what is listed above (`{look}` shows more), or let \
         the file system grow. On LVM, where `vgs` shows free space (VFree): `lvextend -r -l \
         +100%FREE VG/LV`. Else enlarge the disk in the hypervisor, then `growpart`, and \
         `resize2fs`, `xfs_growfs` or `btrfs filesystem resize max`.{}",
        if images {
            " Do not delete single files of the container images' folder: that breaks the images."
        } else {
            ""
        }
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::rc::Rc;

    use super::*;
    use crate::base::ui::Silent;
    use crate::change::Planned;
    use crate::change::{FreeAction, Freeing};
    use crate::checks::bench::Bench;
    use crate::finding::Facts;
    use crate::finding::Remedy;
    use crate::guest::{Guest, GuestPath};
    use crate::node::Node;
    use crate::settings::Settings;
    use crate::space::never;
    use crate::space::usage_after;
    use crate::tree::{FolderTree, MemoryTree, Tree};

    const GIB: u64 = 1 << 30;
    const LINE: &str = "Feb 23 08:01:02 master01 app[1]: something happened\n";

    fn log(bytes: usize) -> Vec<u8> {
        LINE.repeat(bytes / LINE.len() + 1).into_bytes()
    }

    /// A 100 MiB disk with nothing left.
    fn full(guest: Guest) -> Guest {
        let usage = Usage {
            bytes_total: 100 << 20,
            inodes_total: 10_000,
            inodes_free: 5_000,
            ..Usage::default()
        };
        with_usage(guest, usage)
    }

    fn with_usage(mut guest: Guest, usage: Usage) -> Guest {
        guest.file_systems[0].usage = usage;
        guest
    }

    fn run(guest: &Guest) -> Vec<Finding> {
        Bench::new(CHECK).found_in(guest)
    }

    fn actions(guest: &Guest) -> Vec<FreeAction> {
        let (node, settings) = (Node::read(guest), Settings::default());
        let context = Context {
            guest,
            node: &node,
            settings: &settings,
            peers: &[],
            ui: &Silent,
            facts: &Facts::default(),
        };
        let found = run(guest);
        let remedies = found.iter().flat_map(|finding| &finding.remedies);
        remedies
            .flat_map(|remedy| remedy.prepare(&context).unwrap().free)
            .collect()
    }

    fn planned_paths(guest: &Guest) -> Vec<String> {
        actions(guest)
            .iter()
            .map(|action| action.path.to_string())
            .collect()
    }

    /// The guest as the plan leaves it.
    fn after(guest: &Guest) -> Guest {
        let actions = actions(guest);
        let mut planned = Planned::over(guest.tree(), 0);
        actions
            .iter()
            .for_each(|action| planned.free(action).unwrap());
        let mut after = guest.with_tree(Rc::new(planned));
        for (fs, usage) in after
            .file_systems
            .iter_mut()
            .zip(usage_after(guest, &actions))
        {
            fs.usage = usage;
        }
        after
    }

    #[test]
    fn the_outage_s_three_commands_are_covered() {
        let base = tempfile::tempdir().unwrap();
        let logs = base.path().join("var/log");
        std::fs::create_dir_all(&logs).unwrap();
        let mib = 1 << 20;
        for name in [
            "vmware-network.1.log",
            "vmware-vmsvc-root.2.log",
            "vmware-vmsvc.log.old",
            "syslog.1",
            "messages-20230219",
        ] {
            std::fs::write(logs.join(name), log(mib)).unwrap();
        }
        std::fs::write(logs.join("vmware-vmsvc-root.log"), log(4 * mib)).unwrap();
        for older in ["syslog.2", "messages-20230101"] {
            std::fs::write(logs.join(older), log(mib)).unwrap();
            let file = std::fs::File::options()
                .write(true)
                .open(logs.join(older))
                .unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(9))
                .unwrap();
        }
        let made = std::process::Command::new("sh")
            .args([
                "-ec",
                "mkdir log; seq 1000000 > log/a.log; tar czf old-logs.tar.gz log; rm -r log",
            ])
            .current_dir(&logs)
            .status()
            .unwrap();
        assert!(made.success());
        let guest = MemoryTree::new()
            .into_guest()
            .with_tree(Rc::new(FolderTree::open(base.path()).unwrap()));
        let guest = full(guest);
        let actions = actions(&guest);
        let freeing = |name: &str| {
            let path = format!("/var/log/{name}");
            actions
                .iter()
                .find(|action| action.path.to_string() == path)
                .map(|action| action.freeing)
        };
        for name in [
            "vmware-network.1.log",
            "vmware-vmsvc-root.2.log",
            "vmware-vmsvc.log.old",
            "syslog.2",
            "old-logs.tar.gz",
        ] {
            assert_eq!(freeing(name), Some(Freeing::Delete), "{name}");
        }
        assert!(matches!(
            freeing("vmware-vmsvc-root.log"),
            Some(Freeing::KeepTail(_))
        ));
        // The newest generation is short enough to stay.
        assert_eq!(freeing("syslog.1"), None);
        let newest_first = actions
            .iter()
            .position(|a| a.path.to_string().ends_with(".tar.gz"));
        assert_eq!(newest_first, Some(actions.len() - 1), "{actions:?}");
    }

    #[test]
    fn a_plan_that_is_enough_silences_the_check() {
        let guest = full(
            MemoryTree::new()
                .file("/var/log/syslog.2", log(60 << 20))
                .file("/var/log/syslog.1", log(10 << 20))
                .file("/var/log/app/app.log.1", log(10 << 20))
                .file("/var/log/app/app.log.2", log(1 << 20))
                .mtime("/var/log/syslog.2", 5)
                .mtime("/var/log/app/app.log.2", 4)
                .into_guest(),
        );
        let findings = run(&guest);
        assert_eq!(findings[0].severity, Severity::StopsBoot);
        assert_eq!(
            findings[0].title,
            "/ is too full: 0 B of 100.0 MiB available (0 %)"
        );
        // Oldest first, and stop when enough: app.log.1 and syslog.1 are not needed.
        assert_eq!(
            planned_paths(&guest),
            ["/var/log/app/app.log.2", "/var/log/syslog.2"]
        );
        assert!(run(&after(&guest)).is_empty(), "{:?}", run(&after(&guest)));
    }

    #[test]
    fn not_enough_is_said_with_what_holds_the_space() {
        let guest = full(
            MemoryTree::new()
                .file("/var/log/syslog.2.gz", b"not gzip at all")
                .file("/var/lib/etcd/member/snap/db", vec![1; 50 << 20])
                .into_guest(),
        );
        let finding = run(&guest).remove(0);
        assert!(finding.remedies.is_empty());
        assert!(
            finding
                .advice
                .iter()
                .any(|line| line.contains("Nothing on / may be freed")),
            "{:?}",
            finding.advice
        );
        let holder = finding
            .evidence
            .iter()
            .find(|seen| seen.place() == "/var/lib/etcd")
            .unwrap();
        assert!(holder.saw.contains("etcd's data"), "{holder:?}");
    }

    #[test]
    fn a_disk_without_inodes_is_freed_by_counting_files() {
        let mut tree = MemoryTree::new();
        for n in 0..1400 {
            let path = format!("/var/log/many/{}.log.{}", n % 2, n / 2 + 1);
            tree = tree.file(path, if n % 3 == 0 { "" } else { LINE });
        }
        let usage = Usage {
            bytes_total: 10 * GIB,
            bytes_free: 9 * GIB,
            bytes_available: 9 * GIB,
            inodes_total: 10_000,
            inodes_free: 0,
        };
        let guest = with_usage(tree.into_guest(), usage);
        let findings = run(&guest);
        assert_eq!(findings[0].severity, Severity::StopsBoot);
        assert!(
            findings[0].title.contains("0 of 10000 inodes free"),
            "{}",
            findings[0].title
        );
        let planned = actions(&guest);
        assert!(
            planned
                .iter()
                .all(|action| action.freeing == Freeing::Delete)
        );
        assert!(run(&after(&guest)).is_empty());
        // What a boot needs and a little for the repair itself, no more.
        assert_eq!(planned.len(), 10_000 / 16 + 64);
        assert_eq!(
            usage_after(&guest, &planned)[0].inodes_free,
            planned.len() as u64
        );
        let remedy = &findings[0].remedies[0];
        let lines = remedy.details();
        assert!(
            lines.len() < 30
                && lines
                    .iter()
                    .any(|line| line.contains("and 669 more files in 1 folder")),
            "{lines:?}"
        );
        assert_eq!(
            remedy.fields()["candidates"].as_array().unwrap().len(),
            planned.len(),
            "all of them are in the JSON"
        );
    }

    #[test]
    fn data_is_spared_whatever_its_name() {
        let mib = 1 << 20;
        let with_head = |head: &[u8]| {
            let mut bytes = vec![3u8; mib];
            bytes[..head.len()].copy_from_slice(head);
            bytes
        };
        let mut bbolt = vec![0u8; mib];
        bbolt[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
        let spared = [
            ("/var/log/mysql/mysql-bin.000123", with_head(b"\xfebin")),
            ("/var/log/mysql/mysql-bin.123", with_head(b"\xfebin")),
            ("/var/log/app.db.1", with_head(b"SQLite format 3\0")),
            ("/var/log/app.log.1", with_head(b"SQLite format 3\0")),
            ("/var/log/etcd-snapshot.db.1", bbolt.clone()),
            ("/var/log/etcd.log.2", bbolt),
            ("/var/log/db.sql.1", log(mib)),
            ("/var/log/mail.tar.xz", with_head(b"\xfd7zXZ\0")),
            ("/var/log/secure.conf.1", b"a = b\n".repeat(mib / 6)),
            ("/var/log/settings.1", b"a = b\n".repeat(mib / 6)),
            ("/var/log/sa/sa01.1", with_head(b"\x96\xd5\x01\x02")),
            ("/var/log/random.gz", with_head(b"\x1f\x8b\x08\x00")),
            ("/var/log/wtmp", vec![0; mib]),
            (
                "/var/log/journal/abc/system.journal",
                with_head(b"LPKSHHRH"),
            ),
            (
                "/var/log/journal/abc/system@1.journal",
                with_head(b"not a journal"),
            ),
            (
                "/var/cache/apt/archives/x_1_amd64.deb",
                with_head(b"not a package"),
            ),
            (
                "/var/crash/core.1",
                with_head(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0"),
            ),
        ];
        let mut tree = MemoryTree::new();
        for (path, bytes) in &spared {
            // A sibling that is older, so that nothing is spared for being the newest.
            tree = tree.file(path, bytes).mtime(path, 1);
        }
        let guest = full(
            tree.file("/var/log/zzz.log.3", log(mib))
                .file("/var/log/zzz.log.2", log(mib))
                .into_guest(),
        );
        let planned = planned_paths(&guest);
        assert_eq!(planned, ["/var/log/zzz.log.3"]);
    }

    #[test]
    fn a_lone_backup_is_spared() {
        let base = tempfile::tempdir().unwrap();
        let logs = base.path().join("var/log");
        std::fs::create_dir_all(&logs).unwrap();
        let made = std::process::Command::new("sh")
            .args([
                "-ec",
                "mkdir log etc; seq 400000 > log/a.log; seq 400000 > etc/x; tar czf backup.tar.gz \
                 log; tar czf z.tar.gz log etc",
            ])
            .current_dir(&logs)
            .status()
            .unwrap();
        assert!(made.success());
        let guest = MemoryTree::new()
            .into_guest()
            .with_tree(Rc::new(FolderTree::open(base.path()).unwrap()));
        assert!(
            !planned_paths(&full(guest))
                .iter()
                .any(|path| path.ends_with(".tar.gz"))
        );
    }

    #[test]
    fn nothing_of_the_never_list_goes_even_through_a_link() {
        for (folder, _) in never::FOLDERS {
            let tree = MemoryTree::new()
                .link("/var/log", folder)
                .file(format!("{folder}/app.log.2"), log(1 << 20))
                .file(format!("{folder}/app.log.1"), log(1 << 20));
            let planned = planned_paths(&full(tree.into_guest()));
            assert!(planned.is_empty(), "{folder}: {planned:?}");
        }
        // And where the link leads above it.
        for above in ["/", "/var", "/var/lib"] {
            let tree = MemoryTree::new()
                .link("/var/cache/dnf", above)
                .link("/var/crash", above)
                .file("/var/lib/dpkg/x.rpm", b"\xed\xab\xee\xdb")
                .file(
                    "/var/lib/core.1",
                    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0",
                )
                .file(
                    "/var/lib/core.2",
                    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0",
                );
            assert!(
                planned_paths(&full(tree.into_guest())).is_empty(),
                "{above}"
            );
        }
    }

    #[test]
    fn a_link_to_a_data_disk_is_followed() {
        let tree = MemoryTree::new()
            .link("/var/log", "/data/log")
            .file("/data/log/syslog.2", log(1 << 20))
            .file("/data/log/syslog.1", log(1 << 20));
        assert_eq!(
            planned_paths(&full(tree.into_guest())),
            ["/data/log/syslog.2"]
        );
    }

    #[test]
    fn links_are_no_candidates() {
        let tree = MemoryTree::new()
            .file("/srv/precious.1", log(1 << 20))
            .link("/var/log/app.log.1", "/srv/precious.1")
            .link("/var/log/app.log.2", "/srv/precious.1")
            .link("/var/log/sub", "/srv");
        assert!(planned_paths(&full(tree.into_guest())).is_empty());
    }

    #[test]
    fn hard_links_free_only_when_all_names_go() {
        let base = tempfile::tempdir().unwrap();
        let logs = base.path().join("var/log");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::create_dir_all(base.path().join("keep")).unwrap();
        for name in ["a.log.1", "a.log.2", "b.log.1", "b.log.2"] {
            std::fs::write(logs.join(name), log(1 << 20)).unwrap();
        }
        for old in ["a.log.2", "b.log.2"] {
            let file = std::fs::File::options()
                .write(true)
                .open(logs.join(old))
                .unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(9))
                .unwrap();
        }
        std::fs::hard_link(logs.join("a.log.2"), logs.join("a.log.3")).unwrap();
        std::fs::hard_link(logs.join("b.log.2"), base.path().join("keep/b")).unwrap();
        let guest = full(
            MemoryTree::new()
                .into_guest()
                .with_tree(Rc::new(FolderTree::open(base.path()).unwrap())),
        );
        let planned = actions(&guest);
        let shown: Vec<_> = planned
            .iter()
            .map(|a| (a.path.to_string(), a.frees > 0))
            .collect();
        assert_eq!(
            shown,
            [
                ("/var/log/a.log.2".to_owned(), true),
                ("/var/log/a.log.3".to_owned(), false)
            ]
        );
        assert_eq!(usage_after(&guest, &planned)[0].inodes_free, 5_001);
        assert_eq!(usage_after(&guest, &planned[..1])[0].inodes_free, 5_000);
    }

    #[test]
    fn crash_evidence_goes_last_or_never() {
        let core = |n: u8| {
            let mut bytes = vec![n; 1 << 20];
            bytes[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0");
            bytes
        };
        let journal = |state: u8, boot: u8| {
            let mut bytes = vec![0u8; 1 << 20];
            bytes[..8].copy_from_slice(b"LPKSHHRH");
            bytes[16] = state;
            bytes[56..72].fill(boot);
            bytes
        };
        let dir = "/var/log/journal/abc";
        let mut tree = MemoryTree::new()
            .file("/var/lib/systemd/coredump/core.a", core(1))
            .file("/var/lib/systemd/coredump/core.b", core(2))
            .file("/var/log/a.log.1", log(1 << 20))
            .file("/var/log/a.log.2", log(1 << 20))
            .file(format!("{dir}/system.journal"), journal(1, 9));
        for (n, boot) in [(1, 7), (2, 8), (3, 9), (4, 9)] {
            let path = format!("{dir}/system@{n}.journal");
            tree = tree.file(&path, journal(2, boot)).mtime(&path, n);
        }
        tree = tree.mtime("/var/lib/systemd/coredump/core.a", 5);
        let planned = planned_paths(&full(tree.into_guest()));
        let expected = [
            "/var/log/a.log.2",
            "/var/log/journal/abc/system@1.journal",
            "/var/log/journal/abc/system@2.journal",
            "/var/lib/systemd/coredump/core.a",
            // Of the boot that wrote last: after everything else.
            "/var/log/journal/abc/system@3.journal",
            "/var/log/journal/abc/system@4.journal",
        ];
        assert_eq!(planned, expected);
    }

    #[test]
    fn hostile_names_are_shown_safely_and_freed_exactly() {
        let evil = "/var/log/a\n\x1b[2Jb.log.2";
        let tree = MemoryTree::new()
            .file(evil, log(1 << 20))
            .file("/var/log/a\n\x1b[2Jb.log.1", log(1 << 20));
        let guest = full(tree.into_guest());
        let finding = run(&guest).remove(0);
        assert_eq!(actions(&guest)[0].path.as_path(), Path::new(evil));
        let remedy = &finding.remedies[0];
        let shown = format!(
            "{:?}{}{}",
            remedy.details(),
            remedy.summary(),
            serde_json::Value::Object(remedy.fields())
        );
        assert!(
            !shown.contains('\x1b') && !shown.contains("a\nb"),
            "{shown}"
        );
    }

    #[test]
    fn a_file_system_that_is_not_full_is_not_walked() {
        struct NoWalk(MemoryTree);
        impl Tree for NoWalk {
            fn lstat(&self, path: &Path) -> crate::tree::TreeResult<crate::tree::Meta> {
                self.0.lstat(path)
            }
            fn read_range(
                &self,
                path: &Path,
                offset: u64,
                length: usize,
            ) -> crate::tree::TreeResult<Vec<u8>> {
                self.0.read_range(path, offset, length)
            }
            fn read_dir(&self, path: &Path) -> crate::tree::TreeResult<Vec<crate::tree::DirEntry>> {
                panic!("{} was listed", path.display())
            }
            fn read_link(&self, path: &Path) -> crate::tree::TreeResult<std::path::PathBuf> {
                self.0.read_link(path)
            }
        }
        let guest = MemoryTree::new().into_guest();
        let node = Node::read(&guest);
        let walked = guest.with_tree(Rc::new(NoWalk(
            MemoryTree::new().file("/var/log/a.log.2", log(10)),
        )));
        let settings = Settings::default();
        let findings = super::run(&Context {
            guest: &walked,
            node: &node,
            settings: &settings,
            peers: &[],
            ui: &Silent,
            facts: &Facts::default(),
        })
        .unwrap();
        assert!(findings.is_empty());
    }

    #[test]
    fn the_remedy_reads_well() {
        let guest = full(
            MemoryTree::new()
                .file("/var/log/a.log.2", log(3 << 20))
                .file("/var/log/a.log.1", "x")
                .into_guest(),
        );
        let remedy: Rc<dyn Remedy> = run(&guest).remove(0).remedies.remove(0);
        assert_eq!(remedy.kind(), "free-space");
        assert!(!remedy.can_be_undone());
        assert_eq!(
            remedy.summary(),
            "free 3.0 MiB on / (0 B -> 3.0 MiB available) by deleting 1 file"
        );
        assert_eq!(remedy.fields()["candidates"][0]["rule"], "rotated-logs");
        let row = remedy
            .details()
            .into_iter()
            .find(|line| line.contains("/var/log/a.log.2"))
            .unwrap();
        assert!(
            row.contains("3.0 MiB")
                && row.contains("delete")
                && row.contains("rotated-logs: log lines"),
            "{row}"
        );
        assert!(guest.exists(&GuestPath::new("/var/log/a.log.2")));
    }
}
