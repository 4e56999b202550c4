//! The tree of disks as text: disk, partition, volume group, file system, role, node.

use crate::base::shell;
use std::fmt::Write as _;

use super::bounded::{self, ENTRIES, MANY};
use crate::base::escaping::escape;
use crate::base::units::bytes;
use crate::inventory::{DiskItem, GroupItem, Inventory, VolumeItem};

/// The whole answer of `rescue disks`.
pub fn inventory(inventory: &Inventory) -> String {
    let mut rows = Vec::new();
    let mut drawn = vec![false; inventory.volume_groups.len()];
    for disk in &inventory.disks {
        disk_rows(disk, inventory, &mut drawn, &mut rows);
    }
    let mut text = aligned(rows.get(..MANY).unwrap_or(&rows));
    if rows.len() > MANY {
        let _ = writeln!(
            text,
            "and {} more lines (--json has all)",
            rows.len() - MANY
        );
    }
    nodes(inventory, &mut text);
    if !inventory.leftovers.is_empty() {
        text.push_str("\nNot part of a node, or not read:\n");
        bounded::list(
            &mut text,
            &inventory.leftovers,
            ENTRIES,
            ("  ", "(--json has all)"),
            |leftover| format!("{}: {}", leftover.device, leftover.what),
        );
    }
    text
}

/// A line: the branch with the name, and columns.
type Row = [String; 5];

fn disk_rows(disk: &DiskItem, all: &Inventory, drawn: &mut [bool], rows: &mut Vec<Row>) {
    if let Some(why) = &disk.in_use {
        rows.push([
            disk.path.clone(),
            String::new(),
            why.clone(),
            String::new(),
            String::new(),
        ]);
        return;
    }
    // A disk without partitions is what is on it.
    if let [whole] = disk.volumes.as_slice()
        && whole.device == disk.path
    {
        rows.push(row(String::new(), &disk.path, whole, all));
        group_rows(whole, "", all, drawn, rows);
        return;
    }
    let note = if disk.volumes.is_empty() {
        "nothing on it was read"
    } else {
        ""
    };
    rows.push([
        disk.path.clone(),
        bytes(disk.size),
        note.to_owned(),
        String::new(),
        String::new(),
    ]);
    for (number, volume) in disk.volumes.iter().enumerate() {
        let is_last = number + 1 == disk.volumes.len();
        rows.push(row(branch("", is_last), &volume.device, volume, all));
        group_rows(
            volume,
            if is_last { "   " } else { "│  " },
            all,
            drawn,
            rows,
        );
    }
}

/// The volumes of the group that a physical volume belongs to, below its first one.
fn group_rows(
    volume: &VolumeItem,
    indent: &str,
    all: &Inventory,
    drawn: &mut [bool],
    rows: &mut Vec<Row>,
) {
    let Some(index) = volume.volume_group else {
        return;
    };
    let (Some(group), Some(done)) = (all.volume_groups.get(index), drawn.get_mut(index)) else {
        return;
    };
    if std::mem::replace(done, true) {
        return;
    }
    for (number, logical) in group.volumes.iter().enumerate() {
        let name = short(group, logical);
        rows.push(row(
            branch(indent, number + 1 == group.volumes.len()),
            &name,
            logical,
            all,
        ));
    }
}

/// Without the places: they are what it is drawn below.
fn short(group: &GroupItem, logical: &VolumeItem) -> String {
    let places = format!(" on {}", group.physical_volumes.join(" and "));
    logical
        .device
        .strip_suffix(&places)
        .unwrap_or(&logical.device)
        .to_owned()
}

fn branch(indent: &str, is_last: bool) -> String {
    format!("{indent}{} ", if is_last { "└─" } else { "├─" })
}

fn row(branch: String, name: &str, volume: &VolumeItem, all: &Inventory) -> Row {
    let group = volume
        .volume_group
        .and_then(|index| all.volume_groups.get(index));
    let content = match (&volume.content, group) {
        (Some(content), Some(group)) if group.physical_volumes.len() > 1 => {
            let place = group
                .physical_volumes
                .iter()
                .position(|device| *device == volume.device)
                .unwrap_or(0)
                + 1;
            format!(
                "{content} {place} of {} of {}",
                group.physical_volumes.len(),
                group.name
            )
        }
        (Some(content), Some(group)) => format!("{content} of {}", group.name),
        (Some(content), None) => content.clone(),
        (None, _) => "-".to_owned(),
    };
    let label = volume
        .label
        .as_ref()
        .map_or_else(String::new, |label| format!(" \"{}\"", escape(label)));
    let mut roles: Vec<&str> = volume.roles.iter().map(|role| role.role.as_str()).collect();
    roles.dedup();
    let mut names: Vec<String> = Vec::new();
    for node in volume
        .roles
        .iter()
        .filter_map(|role| all.nodes.get(role.node))
    {
        let name = escape(&node.name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    [
        format!("{branch}{name}"),
        bytes(volume.size),
        content + &label,
        escape(&roles.join(", ")),
        names.join(", "),
    ]
}

fn aligned(rows: &[Row]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for [name, size, content, role, node] in rows {
        let line = format!(
            "{name:a$}  {size:>b$}  {content:c$}  {role:d$}  {node}",
            a = widths[0],
            b = widths[1],
            c = widths[2],
            d = widths[3]
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn nodes(inventory: &Inventory, text: &mut String) {
    if inventory.nodes.is_empty() {
        text.push_str("\nNo Linux system was found.\n");
        return;
    }
    text.push_str("\nNodes, and how to look at each:\n");
    let width = inventory
        .nodes
        .iter()
        .map(|node| escape(&node.name).chars().count())
        .max()
        .unwrap_or(0);
    for node in &inventory.nodes {
        let os = node
            .os
            .as_ref()
            .map_or_else(|| "unknown system".to_owned(), |os| escape(os));
        let disks: Vec<String> = node
            .disks
            .iter()
            .map(|disk| shell::quoted(disk.as_ref()))
            .collect();
        let _ = writeln!(
            text,
            "  {:width$}  {os}  rescue inspect {}",
            escape(&node.name),
            disks.join(" ")
        );
        let rest = ("  ", "lines of fstab (--json has all)");
        bounded::list(text, &node.unresolved_fstab, ENTRIES, rest, |line| {
            format!("{:width$}  fstab: {line}", "")
        });
    }
}
