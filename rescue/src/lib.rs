//! Rescue repairs a powered-off Kubernetes node from outside, before it boots.
//!
//! One way through the house, each arrow one module handing one type to the next:
//!
//! ```text
//! source -> disk -> file system -> guest -> node -> findings -> plan -> transaction -> receipt
//! ```
//!
//! Nothing left of [`repair`] writes to a disk. The library never prints or asks; it talks to a
//! [`base::ui::Ui`].

pub mod base;
pub mod change;
pub mod checks;
pub mod cli;
pub mod disk;
pub mod etcd;
pub mod finding;
pub mod fsck;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
pub mod in_use;
pub mod inventory;
pub mod kubeconfig;
pub mod live;
pub mod logs;
pub mod mount;
pub mod node;
pub mod pki;
pub mod plan;
pub mod repair;
pub mod report;
pub mod schedule;
pub mod session;
pub mod settings;
pub mod space;
pub mod survey;
pub mod systemd;
pub mod tree;
pub mod typed;
