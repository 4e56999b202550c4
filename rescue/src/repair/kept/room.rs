//! Which folders do not fit beside the old ones, and whether they fit in their place.

use anyhow::Result;

use super::keep_in::KeepIn;
use super::sparse;
use crate::base::fault;
use crate::base::refusal::Refusal;
use crate::base::units;
use crate::change::Content;
use crate::guest::RealPath;
use crate::repair::confined::{Confined, is_folder};
use crate::repair::journal::State;
use crate::repair::stage::{self, Goal, Outcome};
use crate::repair::store::Store;

/// What must stay free beside the new folder's bytes: what the file system needs for its names.
const SLACK: (u64, u64) = (128 << 10, 8);

/// Has the folders that do not fit made elsewhere, the largest first, until all else fits. Returns
/// the bytes that are needed there.
pub(in crate::repair) fn make_room(
    confined: &Confined,
    store: &Store<'_>,
    goals: &mut Vec<Goal>,
    id: &str,
) -> Result<u64> {
    let Some(keep) = &store.keep_in else {
        return stage::refuse_without_space(confined, store, goals, id).map(|()| 0);
    };
    let mut bytes = 0;
    while let Some(mount_point) = stage::short_of_space(confined, store, goals, id, true)? {
        let mut largest = None;
        for (n, goal) in goals.iter().enumerate() {
            let Outcome::Built { build } = &goal.outcome else {
                continue;
            };
            let size = build.build_folder().bytes();
            let is_here = !goal.elsewhere && confined.mount_point_of(&goal.path)? == mount_point;
            if is_here && replaces_a_folder(goals, n) && largest.is_none_or(|(_, most)| size > most)
            {
                largest = Some((n, size));
            }
        }
        // What is left is not about whole folders.
        let Some((n, size)) = largest else { break };
        keep.refuse_on(confined)?;
        bytes += size
            + goals.get(n).map_or(Ok(0), |goal| {
                allocated(confined, &goal.path).map(|(bytes, _)| bytes)
            })?;
        send_elsewhere(goals, n, keep);
    }
    stage::refuse_without_space(confined, store, goals, id)?;
    Ok(bytes)
}

/// Bytes that are needed elsewhere for all folders that are replaced, and the new ones.
pub(in crate::repair) fn needed(confined: &Confined, goals: &[Goal]) -> Result<u64> {
    let mut bytes = 2 << 20;
    for goal in goals {
        if let Outcome::Built { build } = &goal.outcome {
            bytes += build
                .build_folder()
                .bytes()
                .saturating_add(allocated(confined, &goal.path)?.0);
        }
    }
    Ok(bytes)
}

fn replaces_a_folder(goals: &[Goal], n: usize) -> bool {
    let Some(goal) = goals.get(n) else {
        return false;
    };
    let fenced = goals
        .iter()
        .take(n)
        .any(|earlier| earlier.path == goal.path && earlier.before.is_tree());
    goal.before.is_tree() || fenced
}

/// The folder's place is fenced before; the fence says where it is.
fn send_elsewhere(goals: &mut Vec<Goal>, n: usize, keep: &KeepIn) {
    let Some(goal) = goals.get(n) else { return };
    let path = goal.path.clone();
    let fence = match goals
        .iter()
        .take(n)
        .position(|earlier| earlier.path == path)
    {
        Some(fence) => fence,
        None => {
            let content = Content::new(String::new());
            let fence = Goal {
                path: path.clone(),
                before: goal.before.clone(),
                outcome: Outcome::Fence { content },
                elsewhere: false,
            };
            goals.insert(n, fence);
            n
        }
    };
    let place = keep.path().display().to_string();
    let mut sha256 = String::new();
    if let Some(Goal {
        outcome: Outcome::Fence { content },
        ..
    }) = goals.get_mut(fence)
    {
        let mut text = content.expose().to_vec();
        if text.is_empty() {
            text.extend(
                b"rescue put this file here so that nothing starts while the folder of this name is exchanged.\n",
            );
        }
        text.extend(
            format!(
                "There was no room for both folders: the old and the new one are kept in {place} \
                 on the machine that rescue ran on.\n\
                 `rescue repair --keep-in DIR` completes the exchange, `rescue undo --keep-in DIR` \
                 puts the old one back.\n"
            )
            .bytes(),
        );
        *content = Content::new(text);
        sha256 = content.sha256();
    }
    if let Some(built) = goals
        .iter_mut()
        .skip(fence + 1)
        .find(|goal| goal.path == path)
    {
        built.before = State::File { sha256 };
        built.elsewhere = true;
    }
}

/// Bytes and inodes of all that is in a folder; what removing it gives back, where nothing else
/// holds its blocks.
pub(super) fn allocated(confined: &Confined, folder: &RealPath) -> Result<(u64, u64)> {
    let (mut bytes, mut inodes) = (0, 0);
    for name in confined.names(folder)? {
        let path = folder.child(&name);
        let Some(stat) = confined.lstat(&path)? else {
            continue;
        };
        if is_folder(&stat) {
            let inside = allocated(confined, &path)?;
            bytes += inside.0 + 4096;
            inodes += inside.1;
        } else if stat.st_nlink == 1 {
            bytes += u64::try_from(stat.st_blocks)
                .unwrap_or(0)
                .saturating_mul(512);
        }
        inodes += 1;
    }
    Ok((bytes, inodes))
}

/// The new folder, which is made, must fit once the old one is gone.
pub(super) fn refuse_without_return(
    confined: &Confined,
    old: &RealPath,
    keep: &KeepIn,
    new: &RealPath,
) -> Result<()> {
    refuse_without_room(
        confined,
        old,
        allocated(confined, old)?,
        sparse::needed(keep.confined(), new)?,
    )
}

pub(super) fn refuse_without_room(
    confined: &Confined,
    path: &RealPath,
    gives: (u64, u64),
    needs: (u64, u64),
) -> Result<()> {
    let usage = confined.usage(path)?;
    let free = usage
        .bytes_available
        .saturating_sub(confined.set_aside(path)?);
    let (has, needed) = (
        free.saturating_add(gives.0),
        needs.0.saturating_add(SLACK.0),
    );
    let inodes = usage.inodes_total == 0
        || usage.inodes_free + gives.1 >= needs.1.saturating_sub(gives.1) + SLACK.1;
    if (has >= needed && inodes) || fault::skips_space_check() {
        return Ok(());
    }
    let mount_point = confined.mount_point_of(path)?;
    let what = match has >= needed {
        true => "it has too few inodes".to_owned(),
        false => format!("{} are missing", units::bytes(needed - has)),
    };
    Err(Refusal::new(
        format!(
            "the guest's file system for {mount_point} has {} free, and what is replaced gives \
             back {}",
            units::bytes(free),
            units::bytes(gives.0)
        ),
        format!(
            "what is to be in {path} needs {} there: {what}",
            units::bytes(needed)
        ),
        "free some space on it by hand or give it a larger disk, then run this again",
    )
    .into())
}
