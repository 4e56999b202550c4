//! What stands on the command line of `rescue etcd`: disks, mounted guests, data folders.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};

use crate::base::refusal::Refusal;
use crate::cli::args::Stop;
use crate::disk::Backing;
use crate::disk::Source;
use crate::etcd::read::locate;
use crate::etcd::read::member::Place;
use crate::etcd::read::status::Found;
use crate::guest::{self, Guest, GuestPath};
use crate::in_use::held_open::HeldOpen;
use crate::node::Node;
use crate::tree::FolderTree;

/// Sources by kind.
#[derive(Debug)]
pub struct Sources {
    /// Disks, and folders where a guest is mounted.
    pub disks: Vec<Source>,
    data_dirs: Vec<PathBuf>,
}

impl Sources {
    /// At least one is needed; `command` as the user would type it, for the example where there is none.
    pub fn new(
        disks: &[PathBuf],
        roots: &[PathBuf],
        data_dirs: &[PathBuf],
        command: &str,
    ) -> Result<Self, Stop> {
        let disks = disks
            .iter()
            .cloned()
            .map(Source::Disk)
            .chain(roots.iter().cloned().map(Source::Root))
            .collect();
        let sources = Self {
            disks,
            data_dirs: data_dirs.to_vec(),
        };
        if sources.disks.is_empty() && sources.data_dirs.is_empty() {
            return Err(Stop::Usage(format!(
                "no disk given. Name the disks of control planes (rescue etcd {command} /dev/sdb /dev/sdc /dev/sdd), a mounted guest \
                 (--root /mnt) or a copy of a data folder (--data-dir /backup/etcd)."
            )));
        }
        Ok(sources)
    }

    /// The members on them, and what holds none.
    ///
    /// # Errors
    /// A [`Refusal`] where there is no member at all, or where etcd is running on one.
    pub fn members(&self) -> Result<(Vec<Found>, Vec<String>)> {
        let guests = if self.disks.is_empty() {
            Vec::new()
        } else {
            guest::discover(&self.disks)?.guests
        };
        let nodes: Vec<Node> = guests.iter().map(Node::read).collect();
        self.members_on(guests.iter().zip(&nodes))
    }

    /// The same on the nodes of the disks, which are open already.
    ///
    /// # Errors
    /// As of [`Sources::members`].
    pub fn members_on<'n>(
        &self,
        nodes: impl Iterator<Item = (&'n Guest, &'n Node)>,
    ) -> Result<(Vec<Found>, Vec<String>)> {
        let mut found = Vec::new();
        let mut without = Vec::new();
        for (guest, node) in nodes {
            match locate::on_node(guest, node) {
                Some(member) => found.push(member),
                None => without.push(format!("{} ({})", node.name(&guest.source), guest.source)),
            }
        }
        for data_dir in &self.data_dirs {
            found.push(in_folder(data_dir)?);
        }
        if found.is_empty() {
            return Err(Refusal::new(
                format!("no etcd member was found on {}", without.join(", ")),
                "workers have none, and control planes of a cluster with external etcd have it on other machines",
                "name the disks of the machines that run etcd, or a copy of its data folder with --data-dir DIR",
            )
            .into());
        }
        for member in &found {
            refuse_running(member)?;
        }
        Ok((found, without))
    }
}

fn in_folder(data_dir: &Path) -> Result<Found> {
    let name = data_dir.display().to_string();
    let tree = FolderTree::open(data_dir).with_context(|| format!("looking at {name}"))?;
    let guest = Guest::new(name.clone(), Rc::new(tree), Vec::new());
    let place = Place::new(GuestPath::new("/"), None);
    if !guest.exists(&place.member()) {
        return Err(Refusal::new(
            format!("{name} holds no folder member"),
            "--data-dir takes what etcd's --data-dir names",
            format!("ls {name}"),
        )
        .into());
    }
    Ok(Found {
        source: name,
        node: None,
        guest,
        place,
        launch: None,
    })
}

/// Pages that change while they are read look damaged.
fn refuse_running(member: &Found) -> Result<()> {
    let device = |guest: &Guest, path: &GuestPath| -> Option<(u64, u64)> {
        use std::os::unix::fs::MetadataExt as _;
        let real = guest.resolve(path).ok()?;
        let folder = match guest.file_system_of(&real).map(|there| &there.backing) {
            Some(Backing::Folder(folder)) => folder.clone(),
            Some(_) => return None,
            None => PathBuf::from(&guest.source),
        };
        Some((
            std::fs::metadata(folder).ok()?.dev(),
            guest.tree().lstat(real.as_path()).ok()?.ino?,
        ))
    };
    let Some((device, inode)) = device(&member.guest, &member.place.db()) else {
        return Ok(());
    };
    match HeldOpen::scan().holder(device, inode) {
        None => Ok(()),
        Some(holder) => Err(Refusal::new(
            format!("{holder} has the database of {} open", member.source),
            "etcd is running, and what is read beside it looks damaged",
            "ask it itself (etcdctl endpoint status, etcdctl get), or stop it first",
        )
        .into()),
    }
}
