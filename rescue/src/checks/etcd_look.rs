//! etcd: whether the member on this node will start again, read from its log, snapshots and
//! database.

use crate::etcd::read::troubles::{check_pages, holder};
use std::rc::Rc;

use crate::base::severity::Severity;
use crate::base::ui::Ui;
use crate::base::units;
use crate::change::Planned;
use crate::change::Prepared;
use crate::etcd::operations::mend::{self, Mend};
use crate::etcd::read::boot::{self, Effect, Kind, Problem};
use crate::etcd::read::launch::{By, DEFAULT_QUOTA, Embedding, Launch};
use crate::etcd::read::locate;
use crate::etcd::read::member::{MemberData, Place, Stored};
use crate::etcd::read::moved::{Moved, moved};
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::Guest;

const ID: &str = "etcd";

const COPY_FIRST: &str = "Before anything else copy the whole data folder away.";

const STOPS: Mode = Mode::stops_boot("etcd.does-not-start", "an etcd member does not start")
    .why(
        "etcd reads its snapshot, its log and its database at its start and exits where they \
    do not fit together. Without it the API server is down.",
    )
    .done(
        "Repairs in one member what loses no acknowledged write. With the disks of all \
    control planes the members are repaired together. Where a write would be lost, the \
    plan says which and asks for `--accept-loss`.",
    )
    .source("docs/etcd.md; etcd's server/storage/wal, server/etcdserver/bootstrap.go");
const BREAKS: Mode = Mode::will_break(
    "etcd.will-break",
    "an etcd member starts, and something fails then",
)
.why(
    "The member starts, and something in its data fails when it is read or when the \
    member is upgraded.",
)
.done("Names what. The plan says what can be repaired and what is promised.")
.source("docs/etcd.md");
const MOVED: Mode = Mode::will_break(
    "etcd.moved",
    "the other members look for this member at an address that it no longer has",
)
.why(
    "The other members dial this one's peer address from the membership list, and this \
    member listens somewhere else.",
)
.done(
    "Names both addresses and the line to type on a member that works: `etcdctl member \
    update`.",
)
.source("docs/etcd.md; etcd's server/etcdserver/api/membership");
const STARTS: Mode = Mode::note("etcd.starts", "an etcd member that will start")
    .why("Its snapshot, log and database were read and fit together.")
    .done("Nothing.")
    .source("docs/etcd.md");
const RUNNING: Mode = Mode::note(
    "etcd.running",
    "an etcd member that is running and was not looked into",
)
.why("The data of a running etcd changes while it is read, so that nothing true can be said.")
.done("Nothing. Stop etcd, or give a disk of a machine that is off.")
.source("docs/etcd.md");

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "an etcd member: whether its log, snapshots and database let it start; mends in place \
        what loses nothing",
    modes: &[STOPS, BREAKS, MOVED, STARTS, RUNNING],
    roles: &[],
    after: &[],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    let Some(found) = locate::on_node(context.guest, context.node) else {
        return Ok(Vec::new());
    };
    if let Some(holder) = holder(context.guest, &found.place) {
        let title =
            format!("etcd is running: {holder} has its database open, so it was not looked into");
        return Ok(vec![
            Finding::new(RUNNING, title).with_evidence(&found.place.data_dir, "in use"),
        ]);
    }
    let data = MemberData::read(context.guest, &found.place);
    let launch = found.launch;
    let quota = launch.as_ref().map_or(DEFAULT_QUOTA, Launch::quota);
    let mut findings = findings(context.guest, &data, quota, context.ui);
    findings.extend(
        launch
            .as_ref()
            .and_then(|launch| moved(launch, &data))
            .map(|moved| missed(&moved, &data.place)),
    );
    Ok(match launch.map(|launch| launch.by) {
        Some(By::Embedded(embedding)) => findings
            .into_iter()
            .map(|finding| left_to(finding, embedding))
            .collect(),
        _ => findings,
    })
}

/// etcd inside another program is not mended here: that program keeps its own record of who belongs
/// to the cluster.
fn left_to(finding: Finding, embedding: Embedding) -> Finding {
    if finding.severity == Severity::Note {
        return finding;
    }
    let advice = format!(
        "{} runs etcd inside itself and has its own way back: {}.",
        embedding.name, embedding.tool
    );
    Finding {
        remedies: Vec::new(),
        advice: vec![COPY_FIRST.to_owned(), advice],
        ..finding
    }
}

fn findings(guest: &Guest, data: &MemberData, quota: u64, ui: &dyn Ui) -> Vec<Finding> {
    let mended = |problem: &Problem| mended(problem, guest, data);
    let mut problems = boot::problems(data);
    if let Some(problem) = check_pages(guest, data, ui) {
        problems.insert(0, problem);
    }
    if let Some(problem) = boot::over_quota(data, quota) {
        problems.push(problem);
    }
    let mut findings: Vec<Finding> = problems
        .iter()
        .filter(|problem| problem.effect != Effect::Harmless)
        .map(mended)
        .collect();
    let harmless = problems
        .iter()
        .filter(|problem| problem.effect == Effect::Harmless);
    if findings.is_empty() {
        let title = format!("etcd: {}; it will start", summary(data));
        let evidence = "log, snapshots and database read whole";
        findings.push(Finding::new(STARTS, title).with_evidence(&data.place.data_dir, evidence));
    }
    if let Some(first) = findings.first_mut() {
        first.evidence.extend(
            harmless
                .map(|problem| crate::finding::Evidence::new(&problem.path, problem.saw.clone())),
        );
    }
    findings
}

/// The machine has another address than the cluster knows.
fn missed(moved: &Moved, place: &Place) -> Finding {
    let (known, own) = (moved.known.join(","), moved.own.join(","));
    let title = format!(
        "etcd: the other members look for this one at {known}, where it does not listen any more"
    );
    Finding::new(MOVED, title)
        .with_evidence(
            &place.data_dir,
            format!(
                "member {:x} is known at {known}, and is started at {own}",
                moved.id
            ),
        )
        .with_advice(
            "`rescue repair` with the disks of all members takes this one in at its new address; \
             its certificates must name that, too.",
        )
        .with_advice(
            "Or give the machine its old address back, in its network and in etcd's manifest or \
             service.",
        )
        .with_advice(format!(
            "Or, once a majority of the members runs: `etcdctl member update {:x} \
             --peer-urls={own}`.",
            moved.id
        ))
}

/// With what mends it, or why nothing does.
fn mended(problem: &Problem, guest: &Guest, data: &MemberData) -> Finding {
    let finding = finding(problem, guest);
    if problem.effect != Effect::Stops {
        return finding;
    }
    match mend::mend(guest, data, problem) {
        Ok(mend) => {
            let remedy = MendEtcd {
                place: data.place.clone(),
                kind: problem.kind,
                mend,
            };
            Finding {
                advice: Vec::new(),
                ..finding
            }
            .with_remedy(remedy)
        }
        // Where there is nothing there is nothing to be mended.
        Err(_) if matches!(problem.kind, Kind::NoMember | Kind::NoLog) => finding,
        Err(why) => finding.with_advice(why),
    }
}

/// Mends a member in place.
#[derive(Debug)]
struct MendEtcd {
    place: Place,
    kind: Kind,
    mend: Mend,
}

impl Remedy for MendEtcd {
    fn kind(&self) -> &'static str {
        self.mend.name()
    }

    fn summary(&self) -> String {
        self.mend.summary()
    }

    fn details(&self) -> Vec<String> {
        self.mend.details()
    }

    /// Worked out against the member as it is when this is prepared: an earlier remedy may have
    /// mended it, or changed what mends it.
    fn prepare(&self, context: &Context<'_>) -> anyhow::Result<Prepared> {
        let guest = context.guest;
        let data = MemberData::read(guest, &self.place);
        let pages = check_pages(guest, &data, context.ui);
        let problems = boot::problems(&data);
        let problem = problems
            .iter()
            .chain(&pages)
            .find(|p| p.kind == self.kind && p.effect == Effect::Stops);
        let Some(problem) = problem else {
            return Ok(Prepared::default());
        };
        let mend = mend::mend(guest, &data, problem).map_err(anyhow::Error::msg)?;
        let changes = mend.changes(guest)?;
        let mut tree = Planned::over(guest.tree(), context.settings.now.unix_timestamp());
        for change in &changes {
            tree.apply(change)?;
        }
        mend::prove(
            &guest.with_tree(Rc::new(tree)),
            &self.place,
            &data,
            self.kind,
        )
        .map_err(anyhow::Error::msg)?;
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

fn finding(problem: &Problem, guest: &Guest) -> Finding {
    let mode = if problem.effect == Effect::Stops {
        STOPS
    } else {
        BREAKS
    };
    let says = problem.etcd_says.as_ref().filter(|says| !says.is_empty());
    let says = says
        .map(|says| format!("; etcd will say: {says}"))
        .unwrap_or_default();
    let mut finding = Finding::new(mode, format!("etcd: {}", problem.saw))
        .with_evidence(&problem.path, format!("{}{says}", problem.saw));
    if let Some(advice) = boot::advice(problem) {
        finding = finding.with_advice(advice);
    }
    if mode == STOPS {
        finding = finding.with_advice(COPY_FIRST);
        finding = finding.with_advice(
            "Next: `rescue repair` with the disks of all control planes shows what can be made of \
             them together; `rescue etcd status` with the same disks says which one holds the \
             newest writes.",
        );
        for missing in &guest.unresolved {
            finding = finding.with_advice(format!(
                "Perhaps etcd's data is on a disk that was not given: {missing}"
            ));
        }
    }
    finding
}

/// "k8s-master01, one of 3 members, at revision 4711 of 868.0 KiB".
fn summary(data: &MemberData) -> String {
    let (members, _) = data.membership();
    let own = data
        .log
        .identity
        .and_then(|identity| members.list.get(&identity.member));
    let name = own
        .map(|member| member.name.as_str())
        .filter(|name| !name.is_empty())
        .unwrap_or("a member");
    let of = match members.list.len() {
        0 => String::new(),
        1 => ", the only member".to_owned(),
        count => format!(", one of {count} members"),
    };
    let facts = data
        .facts()
        .map(|facts| format!(", revision {}", facts.revision))
        .unwrap_or_default();
    let size = match &data.stored {
        Stored::Open(open) => format!(", database {}", units::bytes(open.0.db.size())),
        _ => String::new(),
    };
    format!(
        "{name}{of}{facts}{size}, last entry {} of term {}",
        data.log.last,
        data.log.last_term()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ui::Silent;
    use crate::etcd::read::sample;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    const DIR: &str = "/var/lib/etcd";
    const LOG: &str = "/var/lib/etcd/member/wal/0000000000000000-0000000000000000.wal";
    const DB: &str = "/var/lib/etcd/member/snap/db";

    fn read(guest: &Guest) -> MemberData {
        MemberData::read(guest, &Place::new(GuestPath::new(DIR), None))
    }

    fn look(tree: MemoryTree) -> Vec<Finding> {
        let guest = tree.into_guest();
        findings(&guest, &read(&guest), DEFAULT_QUOTA, &Silent)
    }

    #[test]
    fn a_healthy_member_is_a_note() {
        let findings = look(sample::member(DIR));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Note);
        assert_eq!(
            findings[0].title,
            "etcd: master01, the only member, revision 2, database 16.0 KiB, last entry 8 of term \
             2; it will start"
        );
    }

    #[test]
    fn what_stops_etcd_is_a_finding_with_advice() {
        let mut flipped = sample::log(8);
        let at = flipped.len() - 9;
        flipped[at] ^= 1;
        let mut metas = sample::sound_database(8);
        metas[16] = 0;
        metas[4096 + 16] = 0;
        let cases = [
            (MemoryTree::new().dir(DIR), "empty cluster"),
            (sample::member(DIR).file(DB, ""), "meta pages"),
            (sample::member(DIR).file(DB, metas), "meta pages"),
            (
                sample::member(DIR).file(DB, &sample::sound_database(8)[..3 * 4096]),
                "cut short",
            ),
            (sample::member(DIR).without(LOG), "log is empty"),
            (sample::member(DIR).file(LOG, flipped), "checksum is wrong"),
        ];
        for (tree, words) in cases {
            let findings = look(tree);
            let found = findings
                .iter()
                .find(|finding| finding.title.contains(words));
            let found = found.unwrap_or_else(|| panic!("{words}: {findings:#?}"));
            assert_eq!(found.severity, Severity::StopsBoot, "{words}");
            assert!(!found.advice.is_empty() || !found.remedies.is_empty());
        }
    }

    #[test]
    fn a_member_that_is_lost_names_the_repair_with_all_disks() {
        for tree in [
            MemoryTree::new().dir(DIR),
            sample::member(DIR).without(LOG),
            sample::member(DIR).file(DB, ""),
        ] {
            let findings = look(tree);
            let advice = findings[0].advice.join("\n");
            assert!(
                advice.contains("Next: `rescue repair` with the disks of all control planes"),
                "{advice}"
            );
            assert!(!advice.contains("whose it is"), "{advice}");
        }
    }

    #[test]
    fn what_etcd_mends_itself_is_evidence_of_a_note() {
        let log = sample::log(8);
        let findings = look(sample::member(DIR).file(LOG, &log[..log.len() - 3]));
        assert_eq!(findings[0].severity, Severity::Note, "{findings:#?}");
        assert!(
            findings[0]
                .evidence
                .iter()
                .any(|evidence| evidence.saw.contains("etcd cuts it off itself"))
        );
    }

    #[test]
    fn a_database_ahead_of_its_log_will_break() {
        let findings = look(sample::member(DIR).file(DB, sample::sound_database(20)));
        assert_eq!(findings[0].severity, Severity::WillBreak, "{findings:#?}");
    }

    #[test]
    fn a_full_database_takes_no_writes() {
        let guest = sample::member(DIR).into_guest();
        let findings = findings(&guest, &read(&guest), 16 << 10, &Silent);
        assert_eq!(findings[0].severity, Severity::WillBreak);
    }
}
