//! One run from sources to receipt, used by the command line and by the ISO alike.

mod choose;
pub mod etcd;
pub mod last_words;
mod set;

use crate::checks::verdict::Verdict;
use crate::finding::{Inspection, NodeReport, counts};
use crate::plan::receipt::Receipt;
use anyhow::{Context as _, Result};
use std::rc::Rc;
use std::time::Instant;

use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::disk::Leftover;
use crate::disk::Source;
use crate::etcd::read::locate;
use crate::finding::{Context, Facts, Finding};
use crate::guest::{self, Guest, GuestPath};
use crate::node::{self, Node, Role};
use crate::pki::cluster_ca;
use crate::pki::kept::Kept;
use crate::pki::lent::Lent;
use crate::pki::listing::Listing;
use crate::pki::peer::{self, Peer};
use crate::pki::trust::Party;
use crate::pki::trust::claims::doubted_by;
use crate::pki::trust::party::refuse_unclear;
use crate::pki::trust::record;
use crate::plan::{self, LeftOut, Plan};
use crate::repair::kept::KeepIn;
use crate::repair::prune::{self, Pruned};
use crate::repair::restart::Restart;
use crate::repair::runs::{self};
use crate::repair::transaction::{self, RunInfo};
use crate::repair::undo::{self, Undone};
use crate::repair::undo_look;
use crate::repair::write_mount::WritableGuest;
use crate::settings::Settings;
use crate::space::headroom::headroom;
use crate::typed;

/// A guest with its facts.
struct Met {
    guest: Guest,
    node: Node,
    peer: Rc<Peer>,
}

/// All disks of a run.
struct Everything {
    /// Those to work on.
    nodes: Vec<Met>,
    /// Those that are only read.
    lenders: Vec<Rc<Peer>>,
    /// What belongs to no node.
    leftovers: Vec<Leftover>,
}

/// The names of those who need what the etcd of another node says of the cluster, because their own
/// does not help; `None` where nobody does.
fn needed_names(nodes: &[Met]) -> Option<Vec<String>> {
    let needs = |met: &&Met| {
        let Met { guest, node, peer } = met;
        peer.may_need_lent
            && Kept::read(guest, node, &peer.authorities)
                .documents
                .is_empty()
    };
    let names = |met: &Met| {
        [
            met.node.node_name.value.clone(),
            met.peer.party.kubelet_name.clone(),
        ]
    };
    let needy: Vec<&Met> = nodes.iter().filter(needs).collect();
    let mut all: Vec<String> = needy.iter().copied().flat_map(names).flatten().collect();
    all.sort();
    all.dedup();
    (!needy.is_empty()).then_some(all)
}

/// Has the etcd of each of `nodes` say what it knows of the nodes `names`. One pass over a
/// database, so only where somebody needs it.
fn lend_to(nodes: &mut [Met], names: Option<&[String]>) {
    let Some(names) = names else { return };
    for met in nodes {
        let lent = Lent::read(&met.guest, &met.node, names).map(Rc::new);
        met.peer = Rc::new(Peer {
            lent,
            ..Peer::clone(&met.peer)
        });
    }
}

/// By node: who makes its claim to be a control plane doubtful.
fn doubts(nodes: &[Met], parties: &[&Party]) -> Vec<Option<String>> {
    let doubt = |met: &Met| {
        let own = &met.peer.party;
        let others: Vec<&Party> = parties
            .iter()
            .copied()
            .filter(|other| other.source != own.source)
            .collect();
        doubted_by(own, &others).map(Party::shown)
    };
    nodes.iter().map(doubt).collect()
}

/// `--root /` typed on the helper machine instead of the node: nothing of it is to be freed or
/// changed.
fn refuse_helper(guest: &Guest, node: &Node) -> Result<()> {
    if !guest.live || node.role.value != Some(Role::NotKubernetes) {
        return Ok(());
    }
    Err(Refusal::new(
        "the system that is running here is no Kubernetes node",
        "--root / repairs the machine that rescue runs on",
        "run it on the node, or name the node's disk (lsblk shows the disks of this machine)",
    )
    .into())
}

/// A failure after something may already have been written: never to be reported as "nothing was
/// changed". Exit code 4.
#[derive(Debug)]
pub struct PartWay(anyhow::Error);

impl PartWay {
    /// Makes an error one.
    pub fn wrap(cause: anyhow::Error) -> anyhow::Error {
        Self(cause).into()
    }

    /// A refusal is always made before the first write.
    fn unless_refused(error: anyhow::Error) -> anyhow::Error {
        if error.is::<Refusal>() {
            error
        } else {
            Self::wrap(error)
        }
    }
}

impl std::fmt::Display for PartWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for PartWay {}

/// One run over some sources.
pub struct Session<'a> {
    /// What the user named.
    pub sources: &'a [Source],
    /// What the user asked for.
    pub settings: &'a Settings,
    /// Who is told.
    pub ui: &'a dyn Ui,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Session<'_> {
    /// Opens the sources read-only and runs the checks on every guest found.
    pub fn inspect(&self) -> Result<Inspection> {
        let Everything {
            nodes,
            lenders,
            leftovers,
        } = self.meet_all()?;
        let reports = (0..nodes.len()).map(|index| self.look_at(&nodes, index, &lenders));
        Ok(Inspection {
            nodes: reports.collect::<Result<_>>()?,
            leftovers,
        })
    }

    /// Everything on the sources, and the nodes whose disks are only read. What their disks say of
    /// themselves is weighed.
    fn meet_all(&self) -> Result<Everything> {
        self.refuse_named_twice()?;
        let discovery = guest::discover(self.sources)?;
        let mut nodes = self.meet(discovery.guests)?;
        self.take_name(&mut nodes)?;
        let lenders = self.lenders(needed_names(&nodes).as_deref())?;
        let parties: Vec<&Party> = nodes
            .iter()
            .map(|met| &met.peer)
            .chain(&lenders)
            .map(|peer| &peer.party)
            .collect();
        refuse_unclear(&parties, &self.settings.trust)?;
        let doubts = doubts(&nodes, &parties);
        for (met, by) in nodes.iter_mut().zip(doubts) {
            let Some(by) = by else { continue };
            met.node = met.node.clone().doubted(&by);
            let lent = met.peer.lent.clone();
            met.peer = Rc::new(Peer {
                lent,
                ..Peer::read(&met.guest, &met.node, self.settings)
            });
        }
        Ok(Everything {
            nodes,
            lenders,
            leftovers: discovery.leftovers,
        })
    }

    /// The nodes whose disks are only read, for their CA keys, and what their etcd says of the
    /// nodes `names`. The disks are closed again when this returns.
    pub fn lenders(&self, names: Option<&[String]>) -> Result<Vec<Rc<Peer>>> {
        let ca = &self.settings.ca;
        if ca.is_empty() {
            return Ok(Vec::new());
        }
        let mut met = self.meet(guest::discover(ca).context("looking for a CA key")?.guests)?;
        lend_to(&mut met, names);
        self.only_signing(met.into_iter().map(|met| Peer::clone(&met.peer)).collect())
    }

    /// The same for signing without the disks of those that are signed for: with the names of the
    /// control planes that their etcd knows.
    pub fn signers(&self) -> Result<Vec<Rc<Peer>>> {
        let met = self.meet(
            guest::discover(&self.settings.ca)
                .context("looking for a CA key")?
                .guests,
        )?;
        let known = |met: Met| {
            let control_planes = record::control_planes(&met.guest, &met.node);
            Peer {
                control_planes,
                ..Peer::clone(&met.peer)
            }
        };
        self.only_signing(met.into_iter().map(known).collect())
    }

    /// Marks them as named with `--ca`.
    fn only_signing(&self, peers: Vec<Peer>) -> Result<Vec<Rc<Peer>>> {
        let ca = &self.settings.ca;
        let only_signs = |peer: Peer| {
            Rc::new(Peer {
                party: Party {
                    only_signs: true,
                    ..peer.party.clone()
                },
                ..peer
            })
        };
        let peers: Vec<Rc<Peer>> = peers.into_iter().map(only_signs).collect();
        match cluster_ca::has_key(&peers) {
            true => Ok(peers),
            false => Err(cluster_ca::no_key(&peers, &typed::sources(ca)).into()),
        }
    }

    /// `--ca` promises not to write to a disk; naming it as one to be repaired says the opposite.
    fn refuse_named_twice(&self) -> Result<()> {
        let path = |source: &Source| {
            let (Source::Disk(path) | Source::Root(path)) = source;
            std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())
        };
        let twice = self
            .settings
            .ca
            .iter()
            .find(|ca| self.sources.iter().any(|source| path(source) == path(ca)));
        let Some(twice) = twice else { return Ok(()) };
        let twice = typed::source(twice);
        Err(Refusal::new(
            format!("{twice} is named with --ca and as a disk to work on"),
            "with --ca it would only be read, without it it would be repaired as well",
            format!(
                "name it once: with --ca to leave it as it is, or without to repair it too \
                ({twice} lends its CA either way)"
            ),
        )
        .into())
    }

    /// Tells the nodes that are still to be repaired what this one holds now: its CA may just have
    /// got a later end.
    pub fn refresh(&self, rest: &mut [NodeReport], repaired: &NodeReport) {
        let known = rest
            .iter()
            .flat_map(|report| &report.peers)
            .find(|peer| peer.source == repaired.guest.source);
        let lent = known.and_then(|peer| peer.lent.clone());
        let fresh = Rc::new(Peer {
            lent,
            ..Peer::read(&repaired.guest, &repaired.node, self.settings)
        });
        for report in rest {
            for peer in report
                .peers
                .iter_mut()
                .filter(|peer| peer.source == fresh.source)
            {
                *peer = Rc::clone(&fresh);
            }
            let facts = Facts::default();
            report.findings = plan::findings(&report.context(self.settings, self.ui, &facts));
        }
    }

    /// Facts of each guest, and what the others may need of it.
    fn meet(&self, guests: Vec<Guest>) -> Result<Vec<Met>> {
        let mut nodes = guests
            .into_iter()
            .map(|guest| self.meet_one(guest))
            .collect::<Result<Vec<_>>>()?;
        if nodes.len() > 1 {
            let names = needed_names(&nodes);
            lend_to(&mut nodes, names.as_deref());
        }
        Ok(nodes)
    }

    /// Gives the one node the name that the user decided on.
    fn take_name(&self, nodes: &mut [Met]) -> Result<()> {
        let Some(name) = &self.settings.node_name else {
            return Ok(());
        };
        let [met] = nodes else {
            return Err(Refusal::new(
                format!("--node-name {name} was given with {} nodes", nodes.len()),
                "it is the name of one node",
                "give the disks of that node alone, and run this again",
            )
            .into());
        };
        met.node = met.node.clone().named(name);
        met.peer = Rc::new(Peer::read(&met.guest, &met.node, self.settings));
        Ok(())
    }

    fn meet_one(&self, guest: Guest) -> Result<Met> {
        let node = Node::read(&guest);
        self.refuse_contradicting_clock(&node)?;
        refuse_helper(&guest, &node)?;
        let peer = Rc::new(Peer::read(&guest, &node, self.settings));
        Ok(Met { guest, node, peer })
    }

    fn look_at(&self, nodes: &[Met], index: usize, lenders: &[Rc<Peer>]) -> Result<NodeReport> {
        let Met { guest, node, .. } = &nodes[index];
        let peers: Vec<Rc<Peer>> = nodes.iter().map(|met| Rc::clone(&met.peer)).collect();
        let mut peers = peer::others(&peers, index);
        peers.extend(lenders.iter().map(Rc::clone));
        let context = Context {
            guest,
            node,
            settings: self.settings,
            peers: &peers,
            ui: self.ui,
            facts: &Facts::default(),
        };
        let mut findings = plan::findings(&context);
        last_words::confirm(&mut findings, guest, node);
        let Listing {
            rows: certificates,
            unreferenced,
        } = Listing::read(guest, node, self.settings.now);
        let runs = runs::list(guest).unwrap_or_default();
        let party = nodes[index].peer.party.clone();
        let is_external_etcd = node.role.value == Some(Role::NotKubernetes)
            && locate::is_started_by_service(guest, node);
        let (guest, node) = (guest.clone(), node.clone());
        Ok(NodeReport {
            guest,
            node,
            findings,
            certificates,
            unreferenced,
            runs,
            peers,
            party,
            is_external_etcd,
        })
    }

    /// Certificates judged, or made, by a clock that is behind the disk would be wrong.
    fn refuse_contradicting_clock(&self, node: &Node) -> Result<()> {
        let Some(evidence) = &node.clock else {
            return Ok(());
        };
        match node::clock_refusal(self.settings.now, evidence, self.settings.now_given) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// Works out what a repair of this node would do.
    pub fn plan(&self, report: &NodeReport) -> Plan {
        let facts = Facts::default();
        plan::plan(&report.context(self.settings, self.ui, &facts), &[])
    }

    /// Works out what a repair of this node would do without the remedies of some checks: what they
    /// would mend is mended otherwise. `agreed`: what an earlier plan left out and the user agreed
    /// to since.
    pub fn plan_without(&self, report: &NodeReport, checks: &[&str], agreed: &[LeftOut]) -> Plan {
        let skip = self
            .settings
            .skip
            .iter()
            .cloned()
            .chain(checks.iter().map(|check| (*check).to_owned()));
        let settings = &Settings {
            skip: skip.collect(),
            ..self.settings.clone()
        };
        let facts = Facts::default();
        plan::plan(&report.context(settings, self.ui, &facts), agreed)
    }

    /// Works out what the remedies of one finding would do, which the user asked for, not a check.
    pub fn plan_of(&self, report: &NodeReport, asked_for: &Finding) -> Plan {
        let facts = Facts::default();
        let context = report.context(self.settings, self.ui, &facts);
        plan::of(&context, asked_for)
    }

    /// A hibernated system keeps its file systems open in its memory image: whatever is written
    /// meanwhile is destroyed at resume.
    fn refuse_suspended(guest: &Guest) -> Result<()> {
        let Some(where_) = &guest.suspended else {
            return Ok(());
        };
        Err(Refusal::new(
            where_.clone(),
            "the system is suspended to disk, not powered off: writing to its disks now would \
             destroy them at resume",
            "resume it and shut it down, or give up its memory by overwriting the swap signature \
             with mkswap, then run this again",
        )
        .into())
    }

    /// The record of a repair belongs where the node will see it, or nothing could be taken back
    /// later.
    fn refuse_hidden_record(guest: &Guest) -> Result<()> {
        let Some(missing) = guest.hidden(&GuestPath::new(crate::repair::journal::RUNS)) else {
            return Ok(());
        };
        Err(Refusal::new(
            format!("{} is not there: {}", missing.at, missing.why),
            "what is below it now is not what the node sees once it has booted, and the record of \
             a repair would be hidden there",
            "give the disk that holds it too; if there is no such disk any more, take that line \
             out of the guest's /etc/fstab",
        )
        .into())
    }

    /// Whether this node's disks may be written to as they were given.
    pub fn refuse_unready(guest: &Guest) -> Result<()> {
        Self::refuse_suspended(guest)?;
        Self::refuse_hidden_record(guest)
    }

    /// Repairs that were cut off come before whatever else changes a node.
    ///
    /// # Errors
    /// A [`Refusal`] where an earlier repair of this node was cut off.
    pub fn refuse_unfinished(&self, node: &NodeReport) -> Result<(), Refusal> {
        let Some(run) = node.unfinished_run() else {
            return Ok(());
        };
        let sources = typed::sources(self.sources);
        Err(Refusal::new(
            format!(
                "an earlier repair of {} (run {}) was cut off",
                node.name(),
                run.id
            ),
            "it has to be completed or taken back first",
            format!("rescue repair {sources}, or rescue undo {sources}; then run this again"),
        ))
    }

    /// Mounts the guest's file systems for writing; before that, unless told not to, each is
    /// checked.
    fn open_for_writing(&self, closed: &Guest) -> Result<WritableGuest> {
        match self.settings.fsck {
            true => WritableGuest::open_checked(&closed.source, &closed.file_systems, self.ui),
            false => WritableGuest::open(&closed.source, &closed.file_systems),
        }
    }

    /// The same, with the folder of this machine that was named for what does not fit.
    fn open_keeping(&self, closed: &Guest) -> Result<WritableGuest> {
        let keep_in = self.keep_in()?;
        Ok(self.open_for_writing(closed)?.keeping_in(keep_in))
    }

    /// That folder, opened.
    ///
    /// # Errors
    /// A refusal (by downcast) where it is none.
    pub fn keep_in(&self) -> Result<Option<Rc<KeepIn>>> {
        self.settings
            .keep_in
            .as_deref()
            .map(|path| KeepIn::open(path).map(Rc::new))
            .transpose()
    }

    /// Completes or discards an earlier repair that was cut off, then looks again.
    pub fn recover(&self, report: NodeReport) -> Result<(transaction::Recovered, NodeReport)> {
        Self::refuse_unready(&report.guest)?;
        let closed = report.guest.close();
        let writable = self.open_keeping(&closed)?;
        let recovered =
            transaction::recover(&writable, self.ui).map_err(PartWay::unless_refused)?;
        writable.close().map_err(PartWay::wrap)?;
        Ok((recovered, self.look_again(&closed).map_err(PartWay::wrap)?))
    }

    /// Carries out a plan and inspects the node again. The report is consumed because its sources
    /// must be closed before a file system is mounted: a descriptor on a disk does not see what is
    /// written through its partition.
    pub fn repair(&self, report: NodeReport, plan: Plan) -> Result<Receipt> {
        let started = Instant::now();
        Self::refuse_unready(&report.guest)?;
        let node = report.name().to_owned();
        let findings_before = report
            .findings
            .iter()
            .filter(|finding| counts(finding))
            .count();
        let changed = plan
            .prepared
            .changes
            .iter()
            .map(crate::change::Change::path);
        let restart = report
            .guest
            .live
            .then(|| Restart::after(&report.guest, &report.node, changed));
        let closed = report.guest.close();
        drop((report.findings, report.node));
        let done: Vec<String> = plan
            .steps
            .iter()
            .map(|step| step.remedy.summary())
            .collect();
        let Plan {
            prepared, left_out, ..
        } = plan;
        let writable = self.open_keeping(&closed)?;
        let info = RunInfo::new(self.settings.now, done.clone());
        let run = info.id.clone();
        let applied = transaction::apply(&writable, prepared, &info, self.ui)?;
        let checked = writable.checked().to_vec();
        writable
            .close()
            .context("the repair is done, but unmounting failed")
            .map_err(PartWay::wrap)?;
        let again = self
            .look_again(&closed)
            .context("the repair is done, but inspecting the node again failed");
        let after = again.map_err(PartWay::wrap)?;
        Ok(Receipt {
            node,
            run,
            done,
            left_out,
            applied,
            checked,
            before: closed.file_systems,
            findings_before,
            headroom: headroom(&after.guest, &after.node),
            verdict: Verdict::of(&after, self.settings),
            after,
            restart,
            took: started.elapsed(),
        })
    }

    /// Takes back the newest run, or the one named.
    pub fn undo(&self, report: NodeReport, run: Option<&str>) -> Result<Undone> {
        Self::refuse_unready(&report.guest)?;
        undo_look::refuse_drifted(&report.guest, run)?;
        let closed = report.guest.close();
        drop((report.findings, report.node));
        let writable = self.open_keeping(&closed)?;
        let undone = undo::undo(&writable, run, self.ui).map_err(PartWay::unless_refused)?;
        writable
            .close()
            .context("all is restored, but unmounting failed")
            .map_err(PartWay::wrap)?;
        Ok(undone)
    }

    /// Removes all finished runs of a node but the newest `keep`.
    pub fn prune(&self, report: NodeReport, keep: usize) -> Result<Pruned> {
        Self::refuse_unready(&report.guest)?;
        let closed = report.guest.close();
        drop((report.findings, report.node));
        let writable = self.open_for_writing(&closed)?;
        let pruned = prune::prune(&writable, keep).map_err(PartWay::unless_refused)?;
        writable
            .close()
            .context("the old runs are gone, but unmounting failed")
            .map_err(PartWay::wrap)?;
        Ok(pruned)
    }

    /// Opens the sources anew and finds the same guest: same root file system, same device.
    fn look_again(&self, closed: &Guest) -> Result<NodeReport> {
        let root = |guest: &Guest| {
            guest
                .file_systems
                .first()
                .map(|fs| (fs.device.clone(), fs.uuid.clone()))
        };
        let Everything { nodes, lenders, .. } = self.meet_all()?;
        let again = nodes
            .iter()
            .position(|met| root(&met.guest) == root(closed));
        let again = again.with_context(|| format!("{} was not found again", closed.source))?;
        self.look_at(&nodes, again, &lenders)
    }
}

/// The one node of an inspection, where only one may be meant.
pub fn only_node(inspection: Inspection, wanted: Option<&str>) -> Result<NodeReport> {
    let names: Vec<String> = inspection
        .nodes
        .iter()
        .map(|node| format!("{} ({})", node.name(), node.guest.source))
        .collect();
    let mut nodes: Vec<NodeReport> = inspection
        .nodes
        .into_iter()
        .filter(|node| {
            wanted.is_none_or(|wanted| node.name() == wanted || node.guest.source == wanted)
        })
        .collect();
    match (nodes.pop(), nodes.is_empty()) {
        (Some(node), true) => Ok(node),
        (None, _) => Err(Refusal::new(
            format!(
                "no node named {} among: {}",
                wanted.unwrap_or_default(),
                names.join(", ")
            ),
            "nothing was changed",
            "name one of them with --node NAME",
        )
        .into()),
        (Some(_), false) => Err(Refusal::new(
            format!("{} systems were found: {}", names.len(), names.join(", ")),
            "which of them is meant cannot be guessed",
            "name one with --node (its name, or its disk as shown in brackets), or give only its \
             disks",
        )
        .into()),
    }
}
