//! btrfs: what its superblock says, under which UUID the kernel sees it, and its subvolumes.
//!
//! Its trees are the kernel's to read. What is done here is what the kernel cannot know: that the
//! disk is a guest's, that copies of it may be attached beside it, and which of its subvolumes the
//! guest boots from.

mod identity;
mod subvolumes;
mod superblock;

pub use identity::{UnderOwnUuid, expect_on_device, explain_known, forget, open_subvolume};
pub use subvolumes::{Subvolume, Subvolumes};
pub use superblock::{BtrfsSuper, OFFSET};
