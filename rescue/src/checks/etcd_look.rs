//! etcd: a first look at a stacked member's data. Nothing of it is mended by this version.

use std::os::unix::fs::MetadataExt;

use super::{Check, Context, Finding, Severity};
use crate::etcd::look::{Database, Look};
use crate::etcd::outline::Outline;
use crate::guest::{Backing, Guest, GuestPath};
use crate::repair::in_use::held_open::{HeldOpen, Holder};
use crate::units;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct EtcdLook;

const ID: &str = "etcd";

/// `--quota-backend-bytes` where the flag is absent (etcd's DefaultQuotaBytes).
const DEFAULT_QUOTA: u64 = 2 << 30;

const COPY_FIRST: &str = "This version does not mend etcd. Before anything else copy the whole data folder away; then take the \
                          data from a healthy member (`etcdctl member remove`, `member add`) or restore a snapshot.";

impl Check for EtcdLook {
    fn id(&self) -> &'static str {
        ID
    }

    fn about(&self) -> &'static str {
        "a stacked etcd member's data: sizes, and damage that a first look shows; reports only"
    }

    fn run(&self, context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
        let Some(pod) = context.node.static_pod("etcd") else { return Ok(Vec::new()) };
        let data_dir = GuestPath::new(pod.flag("--data-dir").unwrap_or("/var/lib/etcd"));
        let quota = pod.flag("--quota-backend-bytes").and_then(|bytes| bytes.parse().ok()).filter(|bytes| *bytes > 0);
        if let Some(holder) = holder(context.guest, &data_dir) {
            let title = format!("etcd is running: {holder} has its database open, so it was not looked into");
            return Ok(vec![Finding::new(ID, Severity::Note, title).with_evidence(&data_dir, "in use")]);
        }
        let look = Look::at(context.guest, data_dir);
        Ok(vec![finding(&look, quota.unwrap_or(DEFAULT_QUOTA), &context.guest.unresolved)])
    }
}

/// Who has the database open, where the guest is mounted on this machine. Pages that change while they are read look damaged.
fn holder(guest: &Guest, data_dir: &GuestPath) -> Option<Holder> {
    let real = guest.resolve(&data_dir.join("member/snap/db")).ok()?;
    let Backing::Folder(folder) = &guest.file_system_of(&real)?.backing else { return None };
    let device = std::fs::metadata(folder).ok()?.dev();
    let inode = guest.tree().lstat(real.as_path()).ok()?.ino?;
    HeldOpen::scan().holder(device, inode).cloned()
}

fn finding(look: &Look, quota: u64, unresolved: &[String]) -> Finding {
    let (severity, title) = match worst(look, quota) {
        Some((severity, what)) => (severity, format!("etcd: {what}")),
        None => (Severity::Note, format!("etcd: {}; not examined further nor mended by this version", summary(look))),
    };
    let mut finding = Finding::new(ID, severity, title).with_evidence(&look.data_dir, summary(look));
    for file in look.wal.iter().filter(|file| !file.begins_well) {
        finding =
            finding.with_evidence(&file.path, format!("{}, begins with no record of a log", units::bytes(file.size)));
    }
    for path in &look.broken {
        finding = finding.with_evidence(path, "set aside by etcd as damaged");
    }
    for (path, why) in &look.unreadable {
        finding = finding.with_evidence(path, format!("cannot be read: {why}"));
    }
    if severity > Severity::Note {
        finding = finding.with_advice(COPY_FIRST);
        for missing in unresolved {
            finding = finding.with_advice(format!("Perhaps etcd's data is on a disk that was not given: {missing}"));
        }
    }
    finding
}

/// "db 868.0 KiB (transaction 1234, 3 members), 1 WAL file of 61.0 MiB, 0 snapshots".
fn summary(look: &Look) -> String {
    let database = match &look.database {
        Database::Missing => "no db".to_owned(),
        Database::Unreadable => "db not readable".to_owned(),
        Database::There(outline) => {
            let mut facts = Vec::new();
            facts.extend(outline.newest().map(|meta| format!("transaction {}", meta.transaction)));
            facts.extend(outline.members.map(|count| format!("{count} member{}", if count == 1 { "" } else { "s" })));
            let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
            format!("db {}{facts}", units::bytes(outline.size))
        }
    };
    let files = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let wal = format!("{} of {}", files(look.wal.len(), "WAL file"), units::bytes(look.wal_bytes()));
    let mut text = format!("{database}, {wal}, {}", files(look.snapshots, "snapshot"));
    if !look.broken.is_empty() {
        text.push_str(&format!(", {} set aside as broken", look.broken.len()));
    }
    text
}

/// The worst thing that a first look shows.
fn worst(look: &Look, quota: u64) -> Option<(Severity, String)> {
    let stops = |what: String| Some((Severity::StopsBoot, what));
    if !look.has_member {
        return stops(format!(
            "{} holds no member: a first control-plane node would found an empty cluster there",
            look.data_dir
        ));
    }
    match &look.database {
        Database::Missing => return stops("its database (member/snap/db) is not there".into()),
        Database::Unreadable => return stops("its database (member/snap/db) cannot be read".into()),
        Database::There(outline) => {
            if let Some(what) = database_fault(outline) {
                return stops(what);
            }
        }
    }
    if look.wal.is_empty() && look.unreadable.is_empty() {
        return stops("its write-ahead log (member/wal) is empty".into());
    }
    let will_break = |what: String| Some((Severity::WillBreak, what));
    if let Some(file) = look.wal.iter().find(|file| !file.begins_well) {
        return will_break(format!("{} of its write-ahead log is damaged at its beginning", file.path));
    }
    if let Some(number) = look.gaps().first() {
        return will_break(format!("number {number:x} of its write-ahead log is missing between others"));
    }
    match &look.database {
        Database::There(outline) if outline.size >= quota => will_break(format!(
            "its database has reached its quota ({} of {}): it takes no more writes",
            units::bytes(outline.size),
            units::bytes(quota)
        )),
        _ => None,
    }
}

fn database_fault(outline: &Outline) -> Option<String> {
    if outline.size == 0 {
        return Some("its database (member/snap/db) is empty".into());
    }
    if let (Err(first), Err(second)) = (outline.first, outline.second) {
        return Some(format!("both meta pages of its database are damaged ({first}; {second})"));
    }
    if outline.missing() > 0 {
        return Some(format!("its database is cut short by {}", units::bytes(outline.missing())));
    }
    outline.root_fault.map(|fault| format!("the root page of its database is damaged: {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::MemoryTree;

    const DIR: &str = "/var/lib/etcd";
    const WAL: &[u8] = &[4, 0, 0, 0, 0, 0, 0, 0x84, 0x08, 0x04, 0x10, 0, 0, 0, 0, 0];

    fn healthy() -> MemoryTree {
        MemoryTree::new()
            .file(format!("{DIR}/member/snap/db"), crate::etcd::outline::sample(3))
            .file(format!("{DIR}/member/snap/0000000000000002-0000000000002711.snap"), "x")
            .file(format!("{DIR}/member/wal/0000000000000000-0000000000000000.wal"), WAL)
            .file(format!("{DIR}/member/wal/0000000000000001-0000000000001000.wal"), WAL)
            .file(format!("{DIR}/member/wal/0.tmp"), "")
    }

    fn look(tree: MemoryTree) -> Finding {
        let guest: Guest = tree.into_guest();
        finding(&Look::at(&guest, GuestPath::new(DIR)), DEFAULT_QUOTA, &[])
    }

    #[test]
    fn a_healthy_member_is_a_note() {
        let finding = look(healthy());
        assert_eq!(finding.severity, Severity::Note);
        assert_eq!(
            finding.title,
            "etcd: db 16.0 KiB (transaction 11, 3 members), 2 WAL files of 32 B, 1 snapshot; not examined further nor mended \
             by this version"
        );
    }

    #[test]
    fn clear_damage_is_told_without_a_remedy() {
        let db = format!("{DIR}/member/snap/db");
        let wal = format!("{DIR}/member/wal/0000000000000001-0000000000001000.wal");
        let mut both = crate::etcd::outline::sample(3);
        both[16] = 0;
        both[4096 + 16] = 0;
        let cases = [
            (MemoryTree::new().dir(DIR), Severity::StopsBoot, "found an empty cluster"),
            (healthy().without(&db), Severity::StopsBoot, "is not there"),
            (healthy().file(&db, ""), Severity::StopsBoot, "is empty"),
            (healthy().file(&db, both), Severity::StopsBoot, "both meta pages"),
            (
                healthy().file(&db, &crate::etcd::outline::sample(3)[..12_288]),
                Severity::StopsBoot,
                "cut short by 4.0 KiB",
            ),
            (
                healthy().without(format!("{DIR}/member/wal")).dir(format!("{DIR}/member/wal")),
                Severity::StopsBoot,
                "log",
            ),
            (healthy().file(&wal, [0; 4096]), Severity::WillBreak, "damaged at its beginning"),
            (
                healthy().file(format!("{DIR}/member/wal/0000000000000003-0000000000002000.wal"), WAL),
                Severity::WillBreak,
                "number 2",
            ),
        ];
        for (tree, severity, words) in cases {
            let finding = look(tree);
            assert_eq!(finding.severity, severity, "{}", finding.title);
            assert!(finding.title.contains(words), "{}", finding.title);
            assert!(finding.remedies.is_empty() && !finding.advice.is_empty());
        }
    }

    #[test]
    fn what_etcd_set_aside_is_named() {
        let path = format!("{DIR}/member/wal/0000000000000000-0000000000000000.wal.broken");
        let finding = look(healthy().file(&path, WAL));
        assert!(finding.evidence.iter().any(|evidence| evidence.path == path));
        assert_eq!(finding.severity, Severity::Note);
    }

    #[test]
    fn a_full_database_takes_no_writes() {
        let guest = healthy().into_guest();
        let finding = finding(&Look::at(&guest, GuestPath::new(DIR)), 16 << 10, &[]);
        assert_eq!(finding.severity, Severity::WillBreak);
    }
}
