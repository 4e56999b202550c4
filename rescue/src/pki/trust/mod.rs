//! Who may believe whom: the one room that every crossing from one disk of a run to another goes
//! through. docs/trust.md is its table.
//!
//! A disk may have been compromised before the outage, so what it says of itself (a manifest, a
//! host name, a public certificate, a cluster ID) proves nothing to another disk. What proves
//! something is a private key that is on the disk and fits a certificate which the cluster's own CA
//! signed ([`standing`]), or what the etcd of a proven control plane says. Where that is missing,
//! only the user's word (`--trust NODE`) lets anything cross, and the plan says so.

pub mod claims;
pub mod crossing;
pub mod etcd;
pub mod etcd_keys;
pub mod names;
pub mod party;
pub mod record;
pub mod standing;

pub use crossing::{Permit, Unproven};
pub use party::Party;
pub use standing::Standing;
