//! Disks that say of themselves what they are not, beside a real control plane in one run: nothing
//! secret reaches them, nothing is signed for them that they do not prove, and the real node keeps
//! every byte. docs/trust.md is the table that these tests go through.

mod names;
mod roles;
mod secrets;
mod tables;
