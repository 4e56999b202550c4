//! From findings to a mended disk: plan, prepare (remedy to changes), transaction (journal, backup, apply), undo.

pub mod change;
pub mod confined;
mod confined_tree;
mod exchange;
#[cfg(test)]
mod exchange_tests;
pub mod fault;
pub mod folder;
pub mod freeing;
pub mod in_use;
pub mod journal;
pub mod kept;
mod new_file;
mod patch;
pub mod plan;
pub mod preen;
pub mod prune;
pub mod restart;
pub mod runs;
pub mod secret;
pub mod set;
pub mod set_plan;
#[cfg(test)]
mod set_tests;
pub mod shown_sink;
mod stage;
mod staged_folder;
mod storage_daemon;
mod store;
pub mod transaction;
pub mod tree_hash;
pub mod undo;
mod write_device;
pub mod write_mount;
mod writeback;
mod xattrs;

pub use change::{Attributes, Change, Content, Edit, Expect, FreeAction, Freeing, Prepared, Recipe, sha256_hex};
pub use folder::{BuildFolder, FolderSink, SinkFile, Sources};
pub use runs::{RunState, RunSummary};
pub use transaction::{Applied, Recovered, RunInfo, TransactionError, apply, recover};
pub use undo::{UndoError, Undone, undo};
pub use write_mount::{OpenOptions, WritableGuest};
