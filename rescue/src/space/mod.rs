//! What holds a file system's space, and what of it may go.
//!
//! ```text
//! eviction   the kubelet's own limits           assess      which file systems are too full, and the goal
//! headroom   how far it is to each limit
//! usage      how much is free, now and after    walk        every inode of one file system, once
//! holders    what known folders hold            names       what a file's name says
//! rules      what may go, and why               never       what stays, whatever a rule says
//! sniff      what a file really is              archive     what is inside gzip and tar.gz
//! plan       candidates, until enough is free   free_space  the remedy
//! ```

pub mod archive;
pub mod assess;
pub mod eviction;
pub mod headroom;
pub mod holders;
pub mod names;
pub mod never;
pub mod plan;
pub mod rules;
pub mod sniff;
pub mod usage;
pub mod walk;

pub use usage::usage_after;
