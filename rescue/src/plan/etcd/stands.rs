//! How a member stands after a change, read anew from its disk: what a receipt ends with.

use serde::Serialize;

use crate::base::ui::Ui;
use crate::etcd::read::boot::Effect;
use crate::etcd::read::locate;
use crate::etcd::read::member::{MemberData, Stored};
use crate::etcd::read::troubles::troubles;
use crate::finding::NodeReport;
use crate::guest::Guest;
use crate::tree::FileKind;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stands {
    /// The node.
    pub name: String,
    /// Its disk.
    pub source: String,
    /// What comes of starting etcd.
    pub state: State,
    /// Why, or what it holds; as a sentence without its full stop.
    pub saw: String,
}

/// What comes of starting etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It starts and works.
    Starts,
    /// It starts, and something fails then.
    Breaks,
    /// It does not start.
    Stops,
    /// It is kept from starting on purpose.
    Fenced,
}

impl State {
    /// Whether that is as it should be.
    pub fn is_well(self) -> bool {
        matches!(self, Self::Starts | Self::Fenced)
    }
}

/// The members on these nodes, which are as they are now: also of those that a plan did not change,
/// because they stand together.
pub fn stands(nodes: &[NodeReport], ui: &dyn Ui) -> Vec<Stands> {
    nodes
        .iter()
        .filter_map(|node| stands_on(node, ui))
        .collect()
}

fn stands_on(node: &NodeReport, ui: &dyn Ui) -> Option<Stands> {
    let found = locate::on_node(&node.guest, &node.node)?;
    let (state, saw) = match node.guest.lstat(&found.place.member()) {
        Ok(meta) if meta.kind == FileKind::Regular => (
            State::Fenced,
            format!(
                "{} is a file, so that etcd does not start",
                found.place.member()
            ),
        ),
        _ => look(
            &node.guest,
            &MemberData::read(&node.guest, &found.place),
            ui,
        ),
    };
    Some(Stands {
        name: node.name().to_owned(),
        source: node.guest.source.clone(),
        state,
        saw,
    })
}

/// Alarms stay until they are disarmed, and keep nobody from starting.
fn look(guest: &Guest, data: &MemberData, ui: &dyn Ui) -> (State, String) {
    let problems = troubles(guest, data, ui);
    let worst = problems
        .iter()
        .find(|problem| problem.effect == Effect::Stops)
        .or_else(|| problems.first());
    match worst {
        Some(problem) if problem.effect == Effect::Stops => (State::Stops, problem.saw.clone()),
        Some(problem) => (State::Breaks, problem.saw.clone()),
        None => (State::Starts, holds(data)),
    }
}

fn holds(data: &MemberData) -> String {
    let revision = match &data.stored {
        Stored::Open(open) => format!("revision {}, ", open.1.revision),
        _ => String::new(),
    };
    format!(
        "{revision}last entry {} of term {}",
        data.log.last,
        data.log.last_term()
    )
}

/// For people.
pub fn line(stands: &Stands) -> String {
    let words = match stands.state {
        State::Starts => "etcd will start",
        State::Breaks => "etcd will start, but",
        State::Stops => "etcd will NOT start",
        State::Fenced => "fenced",
    };
    format!("Now {}: {words}: {}.", stands.name, stands.saw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ui::Silent;
    use crate::etcd::read::member::Place;
    use crate::etcd::read::sample;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    #[test]
    fn what_is_read_anew_is_told() {
        let of = |tree: MemoryTree| {
            let guest = tree.into_guest();
            look(
                &guest,
                &MemberData::read(&guest, &Place::new(GuestPath::new("/"), None)),
                &Silent,
            )
        };
        let (state, saw) = of(sample::member(""));
        assert_eq!(
            (state, saw.as_str()),
            (State::Starts, "revision 2, last entry 8 of term 2")
        );
        assert_eq!(
            of(sample::member("").file("/member/snap/db", "")).0,
            State::Stops
        );
        assert_eq!(
            of(sample::member("").file("/member/snap/db", sample::sound_database(20))).0,
            State::Breaks
        );
    }
}
