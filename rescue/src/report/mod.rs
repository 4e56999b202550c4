//! What was seen, what will be done, what was done: as text for people and as JSON for programs.

pub mod bounded;
pub mod catalogue;
pub mod certificates;
pub mod etcd;
pub mod etcd_keys;
pub mod etcd_nodes;
pub mod etcd_plan;
pub mod fsck;
mod headroom;
pub mod inventory;
pub mod json;
pub mod left_out;
pub mod raw;
pub mod schedule;
pub mod set;
pub mod text;
pub mod verdict;
pub mod words;
mod wrap;

/// Where a unit's settings come from: its file, then the drop-ins in the order systemd applies
/// them.
fn unit_files(unit: &crate::systemd::Unit) -> Vec<String> {
    let masked = if unit.masked { " (masked)" } else { "" };
    let fragment = unit.fragment.iter().map(|path| format!("{path}{masked}"));
    fragment
        .chain(unit.drop_ins.iter().map(ToString::to_string))
        .collect()
}
