//! `rescue etcd status` for people: one column for each member, then what comparing them gives and
//! what is wrong.

use std::fmt::Write as _;

use time::OffsetDateTime;

use super::bounded::{self, ENTRIES};
use super::text::Style;
use crate::base::units;
use crate::etcd::format::members::Member;
use crate::etcd::read::backend::AlarmKind;
use crate::etcd::read::boot::{Effect, Problem};
use crate::etcd::read::status::{Cluster, MemberStatus, Verdict};

/// All of it; ends with a line feed.
pub fn status(cluster: &Cluster, now: OffsetDateTime, style: &Style) -> String {
    let mut out = table(&cluster.members, now);
    out.push('\n');
    comparison(&mut out, cluster, style);
    for member in &cluster.members {
        problems(&mut out, member, style);
    }
    out
}

type Row = (
    &'static str,
    fn(&MemberStatus, OffsetDateTime) -> Option<String>,
);

/// What is shown of each member; a row that no member has is left out.
const ROWS: [Row; 20] = [
    ("node", |member, _| member.node.clone()),
    ("name", |member, _| {
        Some(member.name.clone()).filter(|name| !name.is_empty())
    }),
    ("member ID", |member, _| {
        member.identity.map(|id| format!("{:x}", id.member))
    }),
    ("cluster ID", |member, _| {
        member.identity.map(|id| format!("{:x}", id.cluster))
    }),
    ("last write", |member, now| {
        let write = member.last_write.as_ref()?;
        Some(format!(
            "{}{}",
            units::time(write.time),
            ago(now, write.time)
        ))
    }),
    ("last entry", |member, _| {
        member
            .log
            .as_ref()
            .map(|log| format!("{} of term {}", log.last, log.last_term))
    }),
    ("agreed on", |member, _| {
        member.log.as_ref().map(|log| log.commit.to_string())
    }),
    ("in the database", |member, _| {
        member
            .database
            .as_ref()
            .map(|db| db.consistent_index.to_string())
    }),
    ("snapshot", |member, _| {
        let none = |index| {
            if index == 0 {
                "none".to_owned()
            } else {
                format!("{index}")
            }
        };
        member.log.as_ref().map(|log| none(log.snapshot))
    }),
    ("first entry", |member, _| {
        member.log.as_ref().map(|log| log.first.to_string())
    }),
    ("term, vote", |member, _| {
        let vote = |vote| {
            if vote == 0 {
                "nobody".to_owned()
            } else {
                format!("{vote:x}")
            }
        };
        member
            .log
            .as_ref()
            .map(|log| format!("{}, {}", log.term, vote(log.vote)))
    }),
    ("revision", |member, _| {
        let db = member.database.as_ref()?;
        let compacted = if db.compact_revision < 0 {
            "never".to_owned()
        } else {
            format!("at {}", db.compact_revision)
        };
        Some(format!("{} (compacted {compacted})", db.revision))
    }),
    ("keys", |member, _| {
        member.database.as_ref()?.keys.map(|keys| keys.to_string())
    }),
    ("hash at revision", |member, _| {
        member
            .database
            .as_ref()?
            .hash
            .map(|hash| format!("{:08x} at {}", hash.hash, hash.revision))
    }),
    ("database", |member, _| {
        let db = member.database.as_ref()?;
        let in_use = db
            .in_use
            .map(|bytes| format!(", {} in use", units::bytes(bytes)))
            .unwrap_or_default();
        Some(format!("{}{in_use}", units::bytes(db.size)))
    }),
    ("log", |member, _| {
        let log = member.log.as_ref()?;
        Some(format!(
            "{}, {}",
            units::count(log.files, "file", "files"),
            units::bytes(log.bytes)
        ))
    }),
    ("torn at its end", |member, _| {
        let torn = member.log.as_ref()?.torn_bytes;
        (torn > 0).then(|| units::bytes(torn))
    }),
    ("alarms", |member, _| {
        let alarms = &member.database.as_ref()?.alarms;
        let name = |kind| match kind {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
            AlarmKind::Unknown => "unknown",
        };
        let names: Vec<String> = alarms
            .iter()
            .map(|alarm| format!("{} ({:x})", name(alarm.kind), alarm.member))
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }),
    ("versions", |member, _| {
        let versions = &member.versions;
        let cluster = versions
            .cluster
            .as_ref()
            .map(|version| format!("cluster {version}"));
        let storage = versions
            .storage
            .as_ref()
            .map(|version| format!("storage {version}"));
        let image = versions
            .image
            .as_ref()
            .map(|image| format!("image {}", tag(image)));
        let all: Vec<String> = [cluster, storage, image].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join(", "))
    }),
    ("starts", |member, _| {
        Some(if member.boots { "yes" } else { "NO" }.to_owned())
    }),
];

fn tag(image: &str) -> &str {
    image.rsplit_once(':').map_or(image, |(_, tag)| tag)
}

fn ago(now: OffsetDateTime, time: OffsetDateTime) -> String {
    if now > time {
        format!(" ({} ago)", units::span(now - time))
    } else {
        String::new()
    }
}

fn table(members: &[MemberStatus], now: OffsetDateTime) -> String {
    let mut lines: Vec<Vec<String>> = vec![
        std::iter::once("disk".to_owned())
            .chain(members.iter().map(shown))
            .collect(),
    ];
    for (label, value) in ROWS {
        let values: Vec<Option<String>> = members.iter().map(|member| value(member, now)).collect();
        if values.iter().any(Option::is_some) {
            let values = values
                .into_iter()
                .map(|value| value.unwrap_or_else(|| "-".to_owned()));
            lines.push(std::iter::once(label.to_owned()).chain(values).collect());
        }
    }
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..=members.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}

fn shown(member: &MemberStatus) -> String {
    member.source.clone()
}

fn comparison(out: &mut String, cluster: &Cluster, style: &Style) {
    if let Some(newest) = &cluster.newest {
        if let [_, _, ..] = cluster.members.as_slice() {
            let _ = writeln!(
                out,
                "{} {}: {}.",
                style.heading("Newest:"),
                newest.source,
                newest.why
            );
        }
        if let Some(member) = cluster.members.get(newest.member) {
            membership(out, member, style);
        }
    }
    for left_out in &cluster.left_out {
        let _ = writeln!(out, "{}", style.heading(left_out));
    }
    for agreement in &cluster.agreement {
        let (one, other) = &agreement.between;
        let _ = writeln!(out, "{one} and {other} {}.", verdict(&agreement.verdict));
    }
    for (source, moved) in cluster
        .members
        .iter()
        .filter_map(|member| Some((&member.source, member.moved.as_ref()?)))
    {
        let _ = writeln!(
            out,
            "MOVED: the other members look for {source} at {}, where it does not listen any more; \
             it is started at {}. `rescue repair` with the disks \
             of all members takes it in there; or give the machine its old address back.",
            moved.known.join(","),
            moved.own.join(",")
        );
    }
    bounded::list(
        out,
        &cluster.absent_voters,
        ENTRIES,
        ("", "voters (--json has all)"),
        |member| {
            let urls = bounded::names(&member.peer_urls);
            format!(
                "Not on the table: voter {} ({urls}). Its disk may hold newer writes.",
                member.handle()
            )
        },
    );
}

fn verdict(verdict: &Verdict) -> String {
    match *verdict {
        Verdict::Same { from, to } => {
            format!("have the same history (entries {from} to {to} compared)")
        }
        Verdict::Fork {
            entry,
            first,
            second,
        } => format!(
            "hold TWO HISTORIES: entry {entry}, agreed on in both, is of term {first} in the \
             first and of term {second} in \
                 the second. They were not always one cluster; never start both"
        ),
        Verdict::Differ => {
            "hold DIFFERENT keys at the same revision, though their logs agree".to_owned()
        }
        Verdict::OtherCluster => "belong to different clusters".to_owned(),
        Verdict::NotComparable => {
            "have no agreed entry in common that could be compared".to_owned()
        }
    }
}

fn membership(out: &mut String, member: &MemberStatus, style: &Style) {
    let line = |member: &Member| {
        let name = if member.has_joined() {
            &member.name
        } else {
            "(never joined)"
        };
        format!("{name} {:x} {}", member.id, member.peer_urls.join(","))
    };
    let all = member.voters.iter().map(line).chain(
        member
            .learners
            .iter()
            .map(|m| format!("{} (learner)", line(m))),
    );
    let all: Vec<String> = all.collect();
    if !all.is_empty() {
        let _ = writeln!(
            out,
            "{} {}",
            style.heading("Members:"),
            bounded::sentences(&all)
        );
    }
    for learner in member
        .learners
        .iter()
        .filter(|learner| !learner.has_joined())
        .take(ENTRIES)
    {
        let _ = writeln!(
            out,
            "Learner {:x} ({}) was added and has never joined; to take it out: rescue etcd \
             remove-member {:x}, with the disks of all voters.",
            learner.id,
            learner.peer_urls.join(","),
            learner.id
        );
    }
    if !member.pending_changes.is_empty() {
        let entries: Vec<String> = member.pending_changes.iter().map(u64::to_string).collect();
        let _ = writeln!(
            out,
            "Entries that change the members and may not be agreed on: {}.",
            bounded::names(&entries)
        );
    }
}

fn problems(out: &mut String, member: &MemberStatus, style: &Style) {
    if member.problems.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", style.heading(&member.source));
    bounded::list(
        out,
        &member.problems,
        ENTRIES,
        ("  ", "problems (--json has all)"),
        |problem| {
            let mut text = format!(
                "{:<12}{}: {}.\n",
                effect(problem.effect),
                problem.path,
                problem.saw
            );
            if let Some(says) = problem.etcd_says.as_ref().filter(|says| !says.is_empty()) {
                let _ = writeln!(text, "{:<12}etcd's words: {says}", "");
            }
            if let Some(advice) = advice(problem) {
                let _ = writeln!(text, "{:<12}{advice}", "");
            }
            text
        },
    );
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Stops => "stops etcd",
        Effect::Breaks => "breaks",
        Effect::Harmless => "harmless",
    }
}

fn advice(problem: &Problem) -> Option<&'static str> {
    crate::etcd::read::boot::advice(problem)
}
