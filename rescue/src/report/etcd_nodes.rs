//! The nodes of a cluster as an etcd member lists them, as text and as JSON.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::bounded::{self, MANY};
use crate::base::schema::SCHEMA;
use crate::base::units;
use crate::etcd::read::node_disks::ClusterNodes;
use crate::etcd::read::node_list::ListedNode;

const COLUMNS: usize = 6;
const HEAD: [&str; COLUMNS] = [
    "NODE",
    "ROLE",
    "INTERNAL IP",
    "KUBELET",
    "LAST HEARTBEAT",
    "DISK",
];

/// For programs.
pub fn json(nodes: &ClusterNodes) -> Value {
    let node = |node: &ListedNode| {
        let mut value = json!(node);
        if let Some(object) = value.as_object_mut() {
            object.insert("disks".to_owned(), json!(nodes.disks_of(node)));
        }
        value
    };
    let list = &nodes.list;
    json!({
        "schema": SCHEMA,
        "source": nodes.source,
        "revision": list.revision,
        "uncertain": list.uncertain,
        "doubts": list.doubts,
        "nodes": list.nodes.iter().map(node).collect::<Vec<Value>>(),
        "unreadable": list.unreadable,
        "remarks": nodes.remarks(),
    })
}

/// For people; heartbeats are shown as so long before `now`.
pub fn text(nodes: &ClusterNodes, now: OffsetDateTime) -> String {
    let list = &nodes.list;
    let mut out = table(nodes, now);
    out.push_str(&format!(
        "{} by the etcd member on {}, at revision {}.\n",
        units::count(list.nodes.len(), "node", "nodes"),
        nodes.source,
        list.revision
    ));
    if !list.unreadable.is_empty() {
        out.push_str(&format!(
            "Encrypted at rest or damaged, so only named: {}.\n",
            bounded::names(&list.unreadable)
        ));
    }
    if list.uncertain > 0 {
        let number = usize::try_from(list.uncertain).unwrap_or(usize::MAX);
        out.push_str(&format!(
            "The last {} of the log may not be agreed on by a majority.\n",
            units::count(number, "entry", "entries")
        ));
    }
    for line in list.doubts.iter().chain(&nodes.remarks()) {
        out.push_str(line);
        out.push('\n');
    }
    out
}

fn table(nodes: &ClusterNodes, now: OffsetDateTime) -> String {
    let lines: Vec<[String; COLUMNS]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(nodes.list.nodes.iter().map(|node| row(nodes, node, now)))
        .collect();
    let mut widths = [0; COLUMNS];
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
    out
}

fn row(nodes: &ClusterNodes, node: &ListedNode, now: OffsetDateTime) -> [String; COLUMNS] {
    let disks = nodes.disks_of(node).join(", ");
    [
        node.object.name.clone(),
        or_dash(node.object.roles.join(",")),
        or_dash(node.object.internal_ips.join(",")),
        or_dash(node.object.kubelet_version.clone()),
        or_dash(heartbeat(node, now)),
        if disks.is_empty() {
            "not given".to_owned()
        } else {
            disks
        },
    ]
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn heartbeat(node: &ListedNode, now: OffsetDateTime) -> String {
    let Some(time) = node.last_heartbeat else {
        return String::new();
    };
    let ago = if now > time {
        format!(" ({} ago)", units::span(now - time))
    } else {
        String::new()
    };
    format!("{}{ago}", units::time(time))
}
