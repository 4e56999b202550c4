//! The part of a session that is about etcd members alone: finding them, reading them, and writing
//! new folders for them.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};

use super::Session;
use crate::base::refusal::Refusal;
use crate::change::folder::{DirectorySink, Sources};
use crate::etcd::read::keys::{NoView, Selection, View, view};
use crate::etcd::read::locate;
use crate::etcd::read::member::MemberData;
use crate::etcd::read::node_disks::{ClusterNodes, NodeDisk};
use crate::etcd::read::status::{Cluster, Found, status_shown};
use crate::etcd::read::troubles::holder;
use crate::finding::NodeReport;
use crate::guest::{self, Guest, GuestPath};
use crate::in_use::read_only;
use crate::node::Node;
use crate::pki::trust::etcd::units;
use crate::plan::etcd::claims;
use crate::plan::etcd::members_plan::{MembersPlan, PlannedMember};
use crate::repair::shown_sink::ShownSink;
use crate::tree::FolderTree;

/// The file beside new folders that lists the keys whose newest value is uncertain.
const UNCERTAIN_KEYS: &str = "uncertain-keys";

/// What a search for members gave.
#[derive(Debug, Clone, Default)]
pub struct MembersFound {
    /// The members, in the order of the sources.
    pub members: Vec<Found>,
    /// Names and sources of the nodes that hold none.
    pub without: Vec<String>,
}

/// Members that are to be changed, and the nodes that they are on.
#[derive(Debug, Default)]
pub struct OpenedMembers {
    /// The members, in the order of the sources.
    pub found: Vec<Found>,
    /// All nodes on the disks; none where members are only read.
    pub nodes: Vec<NodeReport>,
}

impl Session<'_> {
    /// The members on the sources, and in data folders of this machine.
    ///
    /// # Errors
    /// A [`Refusal`] (by downcast) where there is no member at all, or where etcd is running on
    /// one.
    pub fn find_members(&self, data_dirs: &[PathBuf]) -> Result<MembersFound> {
        let nodes = self.nodes()?;
        find_among(nodes.iter().map(|(guest, node)| (guest, node)), data_dirs)
    }

    /// The same for members that are only read.
    ///
    /// # Errors
    /// As of [`Session::find_members`].
    pub fn open_members_for_reading(&self, data_dirs: &[PathBuf]) -> Result<OpenedMembers> {
        Ok(OpenedMembers {
            found: self.find_members(data_dirs)?.members,
            nodes: Vec::new(),
        })
    }

    /// The same for members that are to be replaced. The disks are read-only from here on, until
    /// the user agrees.
    ///
    /// # Errors
    /// As of [`Session::find_members`]; a [`Refusal`] where an earlier repair was cut off.
    pub fn open_members_for_change(&self, data_dirs: &[PathBuf]) -> Result<OpenedMembers> {
        if self.sources.is_empty() {
            return self.open_members_for_reading(data_dirs);
        }
        read_only::protect(self.sources);
        let nodes = self.inspect()?.nodes;
        for node in &nodes {
            self.refuse_unfinished(node)?;
        }
        let systems = nodes.iter().map(|node| (&node.guest, &node.node));
        Ok(OpenedMembers {
            found: find_among(systems, data_dirs)?.members,
            nodes,
        })
    }

    /// Every member's state, compared; names and sources of the nodes without one. `quick`: only
    /// the ends of the files are read.
    ///
    /// # Errors
    /// As of [`Session::find_members`].
    pub fn etcd_status(
        &self,
        data_dirs: &[PathBuf],
        quick: bool,
    ) -> Result<(Cluster, Vec<String>)> {
        let MembersFound { members, without } = self.find_members(data_dirs)?;
        let mut cluster = status_shown(&members, !quick, self.ui);
        if members.len() > 1 {
            let data = cluster.members.iter().map(|member| &member.data);
            let claims = claims::claims_of(&members, data, self.settings)?;
            cluster.left_out = units(&claims)
                .left_out
                .into_iter()
                .filter(|left_out| left_out.matters)
                .map(|left_out| claims::note(&left_out, &claims))
                .collect();
        }
        Ok((cluster, without))
    }

    /// The nodes of the cluster as the newest member knows them, and whose disks were given.
    ///
    /// # Errors
    /// As of [`Session::find_members`] and [`ClusterNodes::read`].
    pub fn cluster_nodes(&self, data_dirs: &[PathBuf]) -> Result<ClusterNodes> {
        let nodes = self.nodes()?;
        let found = find_among(nodes.iter().map(|(guest, node)| (guest, node)), data_dirs)?;
        let disks = nodes
            .iter()
            .map(|(guest, node)| NodeDisk::of(guest, node))
            .collect();
        ClusterNodes::read(&found.members, disks)
    }

    /// The source of the only member, and what it holds.
    ///
    /// # Errors
    /// A [`Refusal`] (by downcast) where there are several, or its keys cannot be read.
    pub fn view_of_one_member(
        &self,
        data_dirs: &[PathBuf],
        selection: &Selection,
    ) -> Result<(String, View)> {
        let members = self.find_members(data_dirs)?.members;
        let [found] = members.as_slice() else {
            return Err(Refusal::new(
                format!("{} members were found", members.len()),
                "keys are read from one",
                "name one disk; rescue etcd status says which is newest",
            )
            .into());
        };
        let source = found.source.clone();
        let data = MemberData::read(&found.guest, &found.place);
        match view(&found.guest, &data, selection) {
            Ok(view) => Ok((source, view)),
            Err(error @ (NoView::Fault(_) | NoView::Missing)) => Err(Refusal::new(
                format!("{source}: {error}"),
                "its keys cannot be read",
                "take the disk of another member; rescue etcd status says more",
            )
            .into()),
            Err(error) => {
                let what = format!("reading the keys of {source}");
                Err(anyhow::Error::from(error).context(what))
            }
        }
    }

    /// Writes the folders of a plan below the new folder `output`. Returns what was made. Nothing
    /// stays of folders that could not be completed: they are of no use, and stand in the way of
    /// the next attempt.
    ///
    /// # Errors
    /// Where `output` exists, a database proves damaged, or what was written cannot be read back.
    pub fn write_members_beside(
        &self,
        plan: &MembersPlan,
        found: &[Found],
        output: &Path,
    ) -> Result<Vec<PathBuf>> {
        drop(DirectorySink::create(output)?);
        self.write_members(plan, found, output)
            .inspect_err(|_| drop(std::fs::remove_dir_all(output)))
    }

    fn write_members(
        &self,
        plan: &MembersPlan,
        found: &[Found],
        output: &Path,
    ) -> Result<Vec<PathBuf>> {
        let guests: Vec<&Guest> = found.iter().map(|found| &found.guest).collect();
        let sources = Sources::new(guests);
        let mut made = Vec::new();
        for member in &plan.members {
            let folder = output.join(&member.name);
            self.write_member(member, &sources, &folder)?;
            made.push(folder);
        }
        if !plan.uncertain_keys.is_empty() {
            let list = output.join(UNCERTAIN_KEYS);
            std::fs::write(&list, &plan.uncertain_keys)
                .with_context(|| format!("writing {}", list.display()))?;
            made.push(list);
        }
        Ok(made)
    }

    fn write_member(
        &self,
        member: &PlannedMember,
        sources: &Sources<'_>,
        folder: &Path,
    ) -> Result<()> {
        drop(DirectorySink::create(folder)?);
        let mut sink = DirectorySink::create(&folder.join("member"))?;
        let recipe = &member.recipe;
        let what = format!("writing {}", member.name);
        let progress = self.ui.begin(&what, Some(recipe.bytes()));
        recipe.build(sources, &mut ShownSink::new(&mut sink, &*progress))?;
        drop(progress);
        let name = folder.display().to_string();
        let tree = Rc::new(FolderTree::open(folder)?);
        let guest = Guest::new(name.clone(), tree, Vec::new());
        let _progress = self
            .ui
            .begin(&format!("reading {} back", member.name), None);
        sink.finish_beside(|| recipe.verify(&guest, &GuestPath::new("/member")))?
            .with_context(|| format!("reading {name} back"))
    }

    /// The systems on the sources, with their facts.
    fn nodes(&self) -> Result<Vec<(Guest, Node)>> {
        if self.sources.is_empty() {
            return Ok(Vec::new());
        }
        let guests = guest::discover(self.sources)?.guests.into_iter();
        Ok(guests
            .map(|guest| {
                let node = Node::read(&guest);
                (guest, node)
            })
            .collect())
    }
}

fn find_among<'n>(
    nodes: impl Iterator<Item = (&'n Guest, &'n Node)>,
    data_dirs: &[PathBuf],
) -> Result<MembersFound> {
    let mut found = MembersFound::default();
    for (guest, node) in nodes {
        match locate::on_node(guest, node) {
            Some(member) => found.members.push(member),
            None => found
                .without
                .push(format!("{} ({})", node.name(&guest.source), guest.source)),
        }
    }
    for data_dir in data_dirs {
        found.members.push(locate::in_folder(data_dir)?);
    }
    if found.members.is_empty() {
        return Err(Refusal::new(
            format!("no etcd member was found on {}", found.without.join(", ")),
            "workers have none, and control planes of a cluster with external etcd have it on \
             other machines",
            "name the disks of the machines that run etcd, or a copy of its data folder with \
             --data-dir DIR",
        )
        .into());
    }
    for member in &found.members {
        refuse_running(member)?;
    }
    Ok(found)
}

/// Pages that change while they are read look damaged.
fn refuse_running(member: &Found) -> Result<(), Refusal> {
    let Some(holder) = holder(&member.guest, &member.place) else {
        return Ok(());
    };
    Err(Refusal::new(
        format!("{holder} has the database of {} open", member.source),
        "etcd is running, and what is read beside it looks damaged",
        "ask it itself (etcdctl endpoint status, etcdctl get), or stop it first",
    ))
}
