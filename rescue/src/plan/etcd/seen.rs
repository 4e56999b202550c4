//! What is at hand: each member's log, database and snapshots, what it is started with, and what it
//! could be built upon.

use std::rc::Rc;

use anyhow::Context as _;

use super::claims::AtHand;
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::change::Change;
use crate::change::folder::BuildFolder;
use crate::etcd::format::members::{Member, Members};
use crate::etcd::format::wal::{End, Tear};
use crate::etcd::operations::mend;
use crate::etcd::operations::rebuild::base::Options;
use crate::etcd::operations::rebuild::{Base, DatabaseFile};
use crate::etcd::read::boot::{Effect, Kind, Problem};
use crate::etcd::read::launch::{By, Launch};
use crate::etcd::read::locate;
use crate::etcd::read::member::{MemberData, Place};
use crate::etcd::read::moved::moved;
use crate::etcd::read::troubles::{holder, troubles};
use crate::finding::NodeReport;
use crate::guest::Guest;
use crate::in_use::held_open::Holder;
use crate::pki::trust::Party;
use crate::plan::set::SetPart;

/// One member.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Its node's name.
    pub name: String,
    /// The system that holds it.
    pub guest: &'a Guest,
    /// Where in it.
    pub place: Place,
    /// What is there.
    pub data: MemberData,
    /// Who has its database open: then it is not read, because what changes meanwhile looks
    /// damaged.
    pub holder: Option<Holder>,
    /// What keeps it from working, the worst first; what etcd copes with and alarms are left out.
    pub problems: Vec<Problem>,
    /// Whether the others look for it where it surely no longer is.
    pub is_moved: bool,
    /// Whether its database is not to be taken: a majority of the others holds something else.
    pub is_odd: bool,
    /// Whether its history counts for others. Else it may only get theirs
    /// ([`crate::pki::trust::etcd`]).
    pub lends: bool,
    /// What its disk proves.
    pub party: &'a Party,
    /// How it is started.
    pub launch: Launch,
    /// `--name`.
    pub flag_name: Option<String>,
    /// `--initial-advertise-peer-urls`.
    pub flag_urls: Vec<String>,
}

impl<'a> Seen<'a> {
    /// The member of a node's static pod or service. One inside another program is left to that: it
    /// keeps its own record of the members.
    pub fn look(report: &'a NodeReport, ui: &dyn Ui) -> Option<Self> {
        let found = locate::on_node(&report.guest, &report.node)?;
        let launch = found
            .launch
            .filter(|launch| !matches!(launch.by, By::Embedded(_)))?;
        let data = MemberData::read(&report.guest, &found.place);
        let holder = holder(&report.guest, &found.place);
        let problems = if holder.is_none() {
            troubles(&report.guest, &data, ui)
        } else {
            Vec::new()
        };
        let is_moved = moved(&launch, &data).is_some();
        Some(Self {
            name: report.name().to_owned(),
            guest: &report.guest,
            place: found.place,
            data,
            holder,
            problems,
            is_odd: false,
            is_moved,
            lends: true,
            party: &report.party,
            flag_name: launch.option("--name").map(str::to_owned),
            flag_urls: launch.peer_urls(),
            launch,
        })
    }

    /// The cluster whose log this is, where that log counts.
    pub fn cluster(&self) -> Option<u64> {
        self.data
            .log
            .identity
            .filter(|_| self.lends)
            .map(|identity| identity.cluster)
    }

    /// Whether its log is that of this member of this cluster, and counts.
    pub fn is(&self, cluster: u64, member: u64) -> bool {
        self.lends
            && self
                .data
                .log
                .identity
                .is_some_and(|own| (own.cluster, own.member) == (cluster, member))
    }

    /// As the room that decides who may be planned together sees it.
    pub fn at_hand(&self) -> AtHand<'_> {
        let is_whole = self.is_log_whole() && self.is_mended_in_place();
        AtHand {
            guest: self.guest,
            launch: Some(&self.launch),
            data: &self.data,
            party: self.party,
            is_whole,
        }
    }

    /// Which of `members` it is: by the ID in its log, else by what it is started with. A disk that
    /// was taken back to before its member was taken in anew still has the removed ID.
    pub fn whose<'m>(&self, cluster: u64, members: &'m Members) -> Option<&'m Member> {
        let own = self
            .data
            .log
            .identity
            .filter(|identity| identity.cluster == cluster);
        if let Some(member) = own.and_then(|identity| members.list.get(&identity.member)) {
            return Some(member);
        }
        members.list.values().find(|member| {
            member
                .peer_urls
                .iter()
                .any(|url| self.flag_urls.contains(url))
        })
    }

    /// Whether the mends in place, which its own node's plan offers, are enough.
    pub fn is_mended_in_place(&self) -> bool {
        match self.problems.as_slice() {
            [] => true,
            [only] => {
                only.effect == Effect::Stops && mend::mend(self.guest, &self.data, only).is_ok()
            }
            _ => false,
        }
    }

    /// Whether its log holds everything that it has ever promised, as far as that shows.
    pub fn is_log_whole(&self) -> bool {
        let log = &self.data.log;
        let good_end = log
            .tail()
            .is_some_and(|tail| matches!(tail.end, End::Complete | End::Torn(_)));
        let gone = [
            Kind::LogDamaged,
            Kind::LogMissing,
            Kind::TailDamaged,
            Kind::LogMixed,
            Kind::CommitBeyondLog,
            Kind::DatabaseBeyondLog,
        ];
        let removed = [Kind::Removed, Kind::Unknown, Kind::Unreadable];
        !log.is_empty()
            && log.identity.is_some()
            && good_end
            && log.last >= self.data.commit()
            && !self
                .problems
                .iter()
                .any(|problem| gone.contains(&problem.kind) || removed.contains(&problem.kind))
    }

    /// Whether the log ends with a whole record.
    pub fn is_clean(&self) -> bool {
        self.data
            .log
            .tail()
            .is_some_and(|tail| tail.end == End::Complete)
    }

    /// Whether the log's last record is there in its full length with a sector of zeros: etcd cuts
    /// it off, but it may have been promised.
    pub fn has_lost_sector(&self) -> bool {
        self.data
            .log
            .tail()
            .is_some_and(|tail| tail.end == End::Torn(Tear::ZeroSector))
    }

    /// Whether the folder of the log is part of the folder `member`, which is replaced as a whole.
    pub fn is_in_one_folder(&self) -> bool {
        self.place.wal == self.place.member().join("wal")
    }

    /// What its node gets: a folder in the place of `member`, made by `recipe`. `details`: what it
    /// is and why, a line each.
    ///
    /// # Errors
    /// A [`Refusal`] where that is not one folder; what keeps the old one from being read.
    pub fn part(
        &self,
        recipe: impl BuildFolder + 'static,
        mut details: Vec<String>,
    ) -> anyhow::Result<SetPart> {
        if !self.is_in_one_folder() {
            return Err(Refusal::new(
                format!(
                    "etcd on {} keeps its log in {}, apart from its database",
                    self.name, self.place.wal
                ),
                "log and database are exchanged as one folder, which cannot be done across two",
                "rescue etcd rebuild --output DIR builds the folder elsewhere; put its parts in \
                 place by hand",
            )
            .into());
        }
        let member = self.place.member();
        let change = Change::replace_folder(self.guest, &member, Rc::new(recipe))
            .with_context(|| format!("planning what replaces {member} on {}", self.name))?;
        details.push(format!("keep {member} as it is, whole, for undo"));
        let source = self.guest.source.clone();
        Ok(SetPart {
            source,
            name: self.name.clone(),
            details,
            changes: vec![change],
        })
    }

    /// The database, if it is sound from end to end.
    pub fn database(&self) -> Option<DatabaseFile> {
        if self.is_odd || !self.lends {
            return None;
        }
        DatabaseFile::examine(self.guest, &self.place.db()).ok()
    }

    /// What a member can be built upon with this one's log: with its own database, else with that
    /// of another which reaches furthest.
    ///
    /// # Errors
    /// Why nothing can, one sentence each.
    pub fn base(&self, all: &[&Self], options: Options) -> Result<Rc<Base>, Vec<String>> {
        let own = std::iter::once(self);
        let mut others: Vec<&Self> = all
            .iter()
            .copied()
            .filter(|other| !std::ptr::eq(*other, self))
            .collect();
        others.sort_by_key(|other| std::cmp::Reverse(other.data.consistent_index()));
        let mut why = Vec::new();
        for owner in own.chain(others).filter(|owner| owner.lends) {
            if owner.is_odd {
                why.push(format!(
                    "The database of {} cannot be taken: a majority holds something else.",
                    owner.name
                ));
                continue;
            }
            let database = match DatabaseFile::examine(owner.guest, &owner.place.db()) {
                Ok(database) => database,
                Err(unfit) => {
                    why.push(format!(
                        "The database of {} cannot be taken: {unfit}.",
                        owner.name
                    ));
                    continue;
                }
            };
            match Base::new(self.guest, &self.data, database, Some(&owner.data), options) {
                Ok(base) => return Ok(base),
                Err(no) => why.push(format!("With the database of {}: {no}.", owner.name)),
            }
        }
        Err(why)
    }
}
