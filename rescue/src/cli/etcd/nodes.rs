//! `rescue etcd nodes SRC…`: the cluster's nodes by the newest member among the sources, and which of the disks given is whose.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::sources::Sources;
use crate::base::refusal::Refusal;
use crate::base::schema::SCHEMA;
use crate::base::units;
use crate::cli::Outcome;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::etcd::read::node_list::{ListedNode, NodeList};
use crate::etcd::read::status::{Found, status};
use crate::guest::{self, Guest};
use crate::node::Node;
use crate::report::bounded::{self, MANY};

arguments! {
    /// list the nodes of the cluster as the newest of the etcd members given knows them, and which
    /// disk is whose; writes nothing
    #[argh(subcommand, name = "nodes")]
    pub struct NodesCommand {
        own {
            /// disks: of at least one machine that runs etcd, and of any others to be told whose
            /// they are
            #[argh(positional)]
            pub src: Vec<PathBuf>,
        }
        roots, data_dir, json, now,
    }
}

/// Lists.
pub fn run(command: &NodesCommand) -> Result<Result<Outcome>, Stop> {
    let sources = Sources::new(&command.src, &command.root, &command.data_dir, "nodes")?;
    Ok(list(command, &sources))
}

/// A system on a disk, by what tells whose it is.
struct Disk {
    source: String,
    name: String,
    machine_id: Option<String>,
}

impl Disk {
    fn of(guest: &Guest, node: &Node) -> Self {
        let name = node.name(&guest.source).to_owned();
        Self {
            source: guest.source.clone(),
            name,
            machine_id: node.machine_id.value.clone(),
        }
    }

    /// The node whose disk it is by its machine ID, where no other node has the same: machines cloned with it prove nothing.
    fn by_machine<'n>(&self, nodes: &'n [ListedNode]) -> Option<&'n ListedNode> {
        let own = self.machine_id.as_ref().filter(|id| !id.is_empty())?;
        let mut all = nodes.iter().filter(|node| node.object.machine_id == *own);
        all.next().filter(|_| all.next().is_none())
    }

    /// What is odd about it, as a whole sentence.
    fn remark(&self, nodes: &[ListedNode]) -> Option<String> {
        if nodes.iter().any(|node| node.object.name == self.name) {
            return None;
        }
        Some(match self.by_machine(nodes) {
            Some(node) => format!(
                "{} calls itself {}, which is no node of this cluster, but has the machine ID of {}: was its host name changed? As {0} is \
                 now, its kubelet is refused by the API server, or joins under the new name.",
                self.source, self.name, node.object.name
            ),
            None => format!(
                "{} ({}) is no node of this cluster.",
                self.name, self.source
            ),
        })
    }
}

/// The list, and the member that it is from.
fn read(found: &[Found]) -> Result<(String, NodeList)> {
    let cluster = status(found, false);
    let newest = cluster.newest.as_ref().map_or(0, |newest| newest.member);
    let clusters = |at: usize| {
        cluster
            .members
            .get(at)
            .and_then(|member| member.identity)
            .map(|id| id.cluster)
    };
    if (0..found.len()).any(|at| clusters(at).is_some() && clusters(at) != clusters(newest)) {
        return Err(Refusal::new(
            "the members on these disks are of different clusters",
            "there is not one list of nodes",
            "name the disks of one cluster; rescue etcd status says which belong together",
        )
        .into());
    }
    // A newer member with a damaged database knows less than an older one without.
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|at| *at != newest);
    let mut why = Vec::new();
    for at in order {
        let (Some(member), Some(found)) = (cluster.members.get(at), found.get(at)) else {
            continue;
        };
        match NodeList::read(&found.guest, &member.data) {
            Ok(mut list) => {
                list.doubts.extend(
                    why.iter()
                        .map(|why| format!("Not from the newest member: {why}.")),
                );
                return Ok((found.source.clone(), list));
            }
            Err(error) => why.push(format!("{}: {error}", found.source)),
        }
    }
    Err(Refusal::new(
        why.join("; "),
        "no member's keys can be read",
        "take the disk of another member; rescue etcd status says more",
    )
    .into())
}

fn list(command: &NodesCommand, sources: &Sources) -> Result<Outcome> {
    let guests = if sources.disks.is_empty() {
        Vec::new()
    } else {
        guest::discover(&sources.disks)?.guests
    };
    let nodes: Vec<Node> = guests.iter().map(Node::read).collect();
    let (found, _) = sources.members_on(guests.iter().zip(&nodes))?;
    let disks: Vec<Disk> = guests
        .iter()
        .zip(&nodes)
        .map(|(guest, node)| Disk::of(guest, node))
        .collect();
    let (source, list) = read(&found)?;
    if command.json {
        println!("{}", in_json(&source, &list, &disks));
    } else {
        print!(
            "{}",
            in_text(&source, &list, &disks, args::with_now(command.now).now)
        );
    }
    Ok(Outcome::Clean)
}

/// The disks of a node.
fn disks_of<'d>(node: &ListedNode, nodes: &[ListedNode], disks: &'d [Disk]) -> Vec<&'d str> {
    let is_its = |disk: &&Disk| match nodes.iter().find(|one| one.object.name == disk.name) {
        Some(named) => named.object.name == node.object.name,
        None => disk
            .by_machine(nodes)
            .is_some_and(|one| one.object.name == node.object.name),
    };
    disks
        .iter()
        .filter(is_its)
        .map(|disk| disk.source.as_str())
        .collect()
}

fn in_json(source: &str, list: &NodeList, disks: &[Disk]) -> Value {
    let nodes = list.nodes.iter().map(|node| {
        let mut value = json!(node);
        if let Some(object) = value.as_object_mut() {
            object.insert(
                "disks".to_owned(),
                json!(disks_of(node, &list.nodes, disks)),
            );
        }
        value
    });
    let others: Vec<String> = disks
        .iter()
        .filter_map(|disk| disk.remark(&list.nodes))
        .collect();
    json!({
        "schema": SCHEMA, "source": source, "revision": list.revision, "uncertain": list.uncertain, "doubts": list.doubts,
        "nodes": nodes.collect::<Vec<Value>>(), "unreadable": list.unreadable, "remarks": others,
    })
}

fn in_text(source: &str, list: &NodeList, disks: &[Disk], now: OffsetDateTime) -> String {
    let or_dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    let row = |node: &ListedNode| {
        let heard = node.last_heartbeat.map(|time| {
            let ago = if now > time {
                format!(" ({} ago)", units::span(now - time))
            } else {
                String::new()
            };
            format!("{}{ago}", units::time(time))
        });
        let disks = disks_of(node, &list.nodes, disks).join(", ");
        [
            node.object.name.clone(),
            or_dash(node.object.roles.join(",")),
            or_dash(node.object.internal_ips.join(",")),
            or_dash(node.object.kubelet_version.clone()),
            or_dash(heard.unwrap_or_default()),
            if disks.is_empty() {
                "not given".to_owned()
            } else {
                disks
            },
        ]
    };
    let head = [
        "NODE",
        "ROLE",
        "INTERNAL IP",
        "KUBELET",
        "LAST HEARTBEAT",
        "DISK",
    ]
    .map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head)
        .chain(list.nodes.iter().map(row))
        .collect();
    let mut widths = [0; 6];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for line in lines.iter().take(MANY + 1) {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    if lines.len() > MANY + 1 {
        out.push_str(&format!(
            "and {} more (--json has all)\n",
            lines.len() - MANY - 1
        ));
    }
    let count = units::count(list.nodes.len(), "node", "nodes");
    out.push_str(&format!(
        "{count} by the etcd member on {source}, at revision {}.\n",
        list.revision
    ));
    if !list.unreadable.is_empty() {
        out.push_str(&format!(
            "Encrypted at rest or damaged, so only named: {}.\n",
            bounded::names(&list.unreadable)
        ));
    }
    if list.uncertain > 0 {
        let entries = units::count(
            usize::try_from(list.uncertain).unwrap_or(usize::MAX),
            "entry",
            "entries",
        );
        out.push_str(&format!(
            "The last {entries} of the log may not be agreed on by a majority.\n"
        ));
    }
    for line in list
        .doubts
        .iter()
        .cloned()
        .chain(disks.iter().filter_map(|disk| disk.remark(&list.nodes)))
    {
        out.push_str(&line);
        out.push('\n');
    }
    out
}
