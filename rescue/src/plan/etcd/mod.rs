//! What several members need together: the smallest repair that suffices, as a plan for all their
//! nodes.

mod behind_damage;
pub mod claims;
pub mod defrag;
pub mod from_database;
mod levelled;
pub mod members_plan;
pub mod new_cluster;
pub mod odd;
pub mod plan;
pub mod rebuild;
pub mod remove;
pub mod salvage;
pub mod seen;
pub mod stands;
pub mod table;

pub use plan::plan_sets;
pub use remove::plan_removal;
