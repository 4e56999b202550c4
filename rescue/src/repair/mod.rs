//! From findings to a mended disk: plan, prepare (remedy to changes), transaction (journal, backup,
//! apply), undo.

pub mod before_writing;
pub mod confined;
mod confined_tree;
mod exchange;
#[cfg(test)]
mod exchange_tests;
pub mod freeing;
pub mod journal;
pub mod kept;
mod new_file;
mod patch;
pub mod preen;
pub mod prune;
pub mod restart;
pub mod runs;
pub mod set;
#[cfg(test)]
mod set_tests;
pub mod shown_sink;
mod stage;
mod staged_folder;
mod store;
pub mod transaction;
pub mod undo;
pub mod undo_look;
mod write_device;
pub mod write_mount;
mod xattrs;

pub use runs::{RunState, RunSummary};
pub use transaction::{Applied, Recovered, RunInfo, TransactionError, apply, recover};
pub use undo::{UndoError, Undone, undo};
pub use write_mount::{OpenOptions, WritableGuest};
