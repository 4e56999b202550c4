//! Members built anew out of a log, a database and snapshots that are there: for members that go, come, move, or must be given the best
//! history of them all. The log stays what it is; what changes is appended to it, as a leader would have done, and etcd's own start applies
//! it. So nothing is lost that the log holds, where `--force-new-cluster` drops what is not known to be agreed on.
//!
//! [`Base`] says what can be built upon and why not; [`changes`] what is appended; [`Recipe`] is both, and builds.

pub mod base;
pub mod changes;
pub mod database;
pub mod recipe;

pub use base::Base;
pub use database::DatabaseFile;
pub use recipe::Recipe;
