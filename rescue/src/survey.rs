//! The certificates of many nodes in one look, without running any check: a node that cannot be
//! read is named and does not keep the others from being shown.

use anyhow::{Context as _, Result};

use crate::base::refusal::Refusal;
use crate::disk::Leftover;
use crate::disk::Source;
use crate::guest::{self, Discovery, Guest};
use crate::node::{self, Node, Role};
use crate::pki::listing::Listing;
use crate::settings::Settings;

/// What the sources hold.
#[derive(Debug, Default)]
pub struct Survey {
    /// The nodes that could be read.
    pub nodes: Vec<Surveyed>,
    /// Those that could not.
    pub unreadable: Vec<Unreadable>,
    /// What belongs to none of them.
    pub leftovers: Vec<Leftover>,
}

/// One node.
#[derive(Debug)]
pub struct Surveyed {
    /// The Node object's name, else the host name, else the source.
    pub name: String,
    /// What was given.
    pub source: String,
    /// Its role.
    pub role: Option<Role>,
    /// Its certificates.
    pub listing: Listing,
}

/// One source, or one node on it, that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unreadable {
    /// What was given; with the node's name where that is known.
    pub source: String,
    /// Why, with the cause chain.
    pub reason: String,
}

/// Looks at all sources; writes nothing.
///
/// # Errors
/// Where nothing at all can be read: the first source's own error.
pub fn survey(sources: &[Source], settings: &Settings) -> Result<Survey> {
    let mut survey = Survey::default();
    let discovery = discover(sources, &mut survey.unreadable)?;
    survey.leftovers = discovery.leftovers;
    let mut refusal = None;
    for guest in discovery.guests {
        let node = Node::read(&guest);
        match clock_refusal(&node, settings) {
            None => survey.nodes.push(surveyed(&guest, &node, settings)),
            // Certificates judged by a clock that is behind the disk would be judged wrongly.
            Some(why) => {
                let source = format!("{} ({})", node.name(&guest.source), guest.source);
                survey.unreadable.push(Unreadable {
                    source,
                    reason: why.to_string(),
                });
                refusal = Some(why);
            }
        }
    }
    match refusal {
        Some(refusal) if survey.nodes.is_empty() => Err(refusal.into()),
        _ => Ok(survey),
    }
}

impl Survey {
    /// Only the node of that name or source.
    ///
    /// # Errors
    /// A [`Refusal`] that names those that are there.
    pub fn only(mut self, wanted: &str) -> Result<Self> {
        let names: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{} ({})", node.name, node.source))
            .collect();
        self.nodes
            .retain(|node| node.name == wanted || node.source == wanted);
        if self.nodes.is_empty() {
            return Err(Refusal::new(
                format!("no node named {wanted} among: {}", names.join(", ")),
                "there is nothing to list",
                "name one of them with --node NAME",
            )
            .into());
        }
        Ok(self)
    }

    /// Whether every node could be read and every certificate is good.
    pub fn is_healthy(&self) -> bool {
        self.unreadable.is_empty() && self.nodes.iter().all(|node| node.listing.is_healthy())
    }
}

fn surveyed(guest: &Guest, node: &Node, settings: &Settings) -> Surveyed {
    Surveyed {
        name: node.name(&guest.source).to_owned(),
        source: guest.source.clone(),
        role: node.role.value,
        listing: Listing::read(guest, node, settings.now),
    }
}

fn clock_refusal(node: &Node, settings: &Settings) -> Option<Refusal> {
    node::clock_refusal(settings.now, node.clock.as_ref()?, settings.now_given)
}

/// All sources together, since a node may need several; without those that fail by themselves and
/// help no other.
fn discover(sources: &[Source], unreadable: &mut Vec<Unreadable>) -> Result<Discovery> {
    let together = match guest::discover(sources) {
        Ok(discovery) => return Ok(discovery),
        Err(error) => error,
    };
    let mut good: Vec<Source> = Vec::new();
    let mut failed: Vec<(&Source, anyhow::Error)> = Vec::new();
    for source in sources {
        match guest::discover(std::slice::from_ref(source)) {
            Ok(_) => good.push(source.clone()),
            Err(error) => failed.push((source, error)),
        }
    }
    if good.is_empty() || failed.is_empty() {
        return Err(together);
    }
    for (source, error) in failed {
        // A disk without a system may hold the /var of another one's.
        let with: Vec<Source> = good.iter().chain([source]).cloned().collect();
        match guest::discover(&with) {
            Ok(_) => good = with,
            Err(_) => unreadable.push(Unreadable {
                source: name(source),
                reason: format!("{error:#}"),
            }),
        }
    }
    guest::discover(&good).context("looking at the disks that can be read")
}

fn name(source: &Source) -> String {
    match source {
        Source::Disk(path) | Source::Root(path) => path.display().to_string(),
    }
}
