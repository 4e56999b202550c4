//! A plan of new folders `member`, one for each etcd member: what `rescue etcd rebuild`, `salvage`
//! and `defrag` make. The folders are either written beside (`--output`), or put in the members'
//! places as every plan for several nodes is.

use std::rc::Rc;

use anyhow::Result;
use serde_json::Value;

use crate::base::refusal::Refusal;
use crate::change::Change;
use crate::change::folder::BuildFolder;
use crate::etcd::operations::guarantee::Guarantee;
use crate::etcd::read::status::Found;
use crate::plan::set::{SetPart, SetPlan};

/// What becomes of one member.
#[derive(Debug)]
pub struct PlannedMember {
    /// The member's name: the name of its folder below `--output`.
    pub name: String,
    /// Its index in the list of members found; `None` where no disk of it was given.
    pub found: Option<usize>,
    /// The new folder.
    pub recipe: Rc<dyn BuildFolder>,
    /// For people, without a verb.
    pub details: Vec<String>,
}

/// What becomes of all of them.
#[derive(Debug)]
pub struct MembersPlan {
    /// One line that begins with a verb.
    pub summary: String,
    /// What is promised.
    pub guarantee: Guarantee,
    /// What else should be known, in sentences.
    pub notes: Vec<String>,
    /// One for each member.
    pub members: Vec<PlannedMember>,
    /// What was found, for programs.
    pub facts: Value,
    /// Keys whose newest value is uncertain, one a line: written to a file of their own beside the
    /// folders.
    pub uncertain_keys: Vec<u8>,
}

impl MembersPlan {
    /// Whether each member is on the disk of a node, so that it can be replaced there.
    pub fn is_on_nodes(&self, found: &[Found]) -> bool {
        self.members
            .iter()
            .all(|member| refuse_unwritable(member, found).is_ok())
    }

    /// The same as a plan for the nodes that the members are on.
    ///
    /// # Errors
    /// A [`Refusal`] where a member is not on the disk of a node.
    pub fn into_set(self, found: &[Found]) -> Result<SetPlan> {
        let part = |member: &PlannedMember| -> Result<SetPart> {
            let found = refuse_unwritable(member, found)?;
            let recipe = Rc::clone(&member.recipe);
            Ok(SetPart {
                source: found.source.clone(),
                name: found.node.clone().unwrap_or_else(|| member.name.clone()),
                details: member.details.clone(),
                changes: vec![Change::replace_folder(
                    &found.guest,
                    &found.place.member(),
                    recipe,
                )?],
            })
        };
        let parts = self.members.iter().map(part).collect::<Result<_>>()?;
        Ok(SetPlan {
            summary: self.summary,
            guarantee: self.guarantee,
            why: Vec::new(),
            notes: self.notes,
            parts,
            afterwards: Vec::new(),
        })
    }
}

/// A copy of a data folder belongs to no node: what is made of it is written beside it.
fn refuse_unwritable<'f>(member: &PlannedMember, found: &'f [Found]) -> Result<&'f Found, Refusal> {
    let next = "add --output DIR and move what is written there yourself, or name the node's disk \
        or --root FOLDER";
    let Some(found) = member.found.and_then(|index| found.get(index)) else {
        return Err(Refusal::new(
            format!("no disk of {} was given", member.name),
            "there is nothing that could be changed",
            next,
        ));
    };
    if !found.guest.file_systems.is_empty() {
        return Ok(found);
    }
    Err(Refusal::new(
        format!("{} is a data folder, not a node", found.source),
        "there is no place for the record that makes a change safe and lets it be taken back",
        next,
    ))
}
