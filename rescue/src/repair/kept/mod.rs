//! A folder that does not fit beside the old one: both are kept on the machine that rescue runs on
//! (`--keep-in DIR`) until the new one is in its place.
//!
//! ```text
//! DIR/RUN/NODE/          0700, its files 0600: an etcd member holds every Secret of the cluster
//!   README.txt           what this is, and how to put it back by hand
//!   old.json, old/       the old folder, and of everything in it the owner, mode, time and attributes
//!   new.json, new/       the new one, until it is in its place
//! ```
//!
//! 1. Before the commit record: the old folder is copied there, the new one is built there; both
//!    are read back. The record has the hashes of both lists. On the guest `staged/N`, an empty
//!    folder, is what will be the new one.
//! 2. A fence takes the old folder's place: nothing starts there. The old folder is `backup/M` now.
//! 3. Both copies are read back once more, `emptied-M.json` is written, `backup/M` is emptied,
//!    `staged/N` filled, hashed and exchanged with the fence.
//!
//! Undo: the fence again, the new folder is emptied, `backup/M` filled, hashed and exchanged with
//! the fence. Wherever either is cut off, the fence stands, and it goes on from the start of
//! filling.

mod keep_in;
mod list;
mod made;
mod moving;
mod room;
mod sparse;
mod tree;

pub use keep_in::KeepIn;
pub(super) use moving::{
    bring_back, give_up_new, ready, refuse_missing_back, refuse_missing_forward, stage,
};
pub(super) use room::{make_room, needed};

use super::store::Store;

/// Whether what is to be kept elsewhere fits there.
pub(super) fn refuse_without_room(store: &Store<'_>, bytes: u64) -> anyhow::Result<()> {
    match &store.keep_in {
        Some(keep) if bytes > 0 => keep.refuse_without_room(bytes),
        _ => Ok(()),
    }
}

/// Removes what this process put elsewhere for a run that is not committed after all.
pub(super) fn take_back(store: &Store<'_>, run: &str) -> anyhow::Result<()> {
    store
        .keep_in
        .as_ref()
        .map_or(Ok(()), |keep| keep.take_back(run))
}
