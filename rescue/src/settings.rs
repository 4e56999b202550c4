//! One struct for what flags, kernel arguments and menus can set.

use std::path::PathBuf;

use time::OffsetDateTime;

use crate::disk::Source;

/// When to take `--bootstrap-kubeconfig` out of the kubelet's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PatchKubelet {
    /// Only on a control plane whose client certificate stays unusable after this plan.
    #[default]
    Needed,
    /// Whenever the flag points to a missing file.
    Always,
    /// Never.
    Never,
}

/// How much must be free afterwards, in per cent of the file system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FreeTarget {
    /// Of its bytes.
    pub bytes_percent: f64,
    /// Of its inodes.
    pub inodes_percent: f64,
}

impl Default for FreeTarget {
    /// 15 % of bytes is the kubelet's highest default eviction threshold (imagefs.available), 5 %
    /// of inodes its default for nodefs.
    fn default() -> Self {
        Self {
            bytes_percent: 15.0,
            inodes_percent: 5.0,
        }
    }
}

/// What the user asked for in one run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The time that counts as now: `--now`, else the rescue system's clock.
    pub now: OffsetDateTime,
    /// Whether `--now` was given, which overrules a clock that contradicts the disk.
    pub now_given: bool,
    /// Only these checks (all when empty).
    pub only: Vec<String>,
    /// Not these checks.
    pub skip: Vec<String>,
    /// See [`PatchKubelet`].
    pub patch_kubelet: PatchKubelet,
    /// Edit the vendor's drop-in line instead of laying a drop-in beside it.
    pub in_place: bool,
    /// See [`FreeTarget`].
    pub free_target: FreeTarget,
    /// Validity of new certificates in days.
    pub days: u32,
    /// Keep the keys of renewed certificates.
    pub reuse_keys: bool,
    /// Names and addresses for serving certificates beside those that are known.
    pub san: Vec<String>,
    /// Extend CAs that are over or end soon.
    pub renew_ca: bool,
    /// Disks that are only read, for the CA keys on them.
    pub ca: Vec<Source>,
    /// Validity of renewed CAs in days.
    pub ca_days: u32,
    /// Check each file system before the first write.
    pub fsck: bool,
    /// A folder of this machine for an etcd member that does not fit beside the new one.
    pub keep_in: Option<PathBuf>,
    /// Nodes, by name or source, that the user vouches for: what their disks say of themselves is
    /// believed without proof.
    pub trust: Vec<String>,
}

impl Settings {
    /// Whether all checks are asked for: only then may anybody be told that nothing is left.
    pub fn all_checks(&self) -> bool {
        self.only.is_empty() && self.skip.is_empty()
    }

    /// Whether the user vouches for the node of this name on this source.
    pub fn trusts(&self, name: &str, source: &str) -> bool {
        self.trust
            .iter()
            .any(|trusted| trusted == name || trusted == source)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            now: OffsetDateTime::now_utc(),
            now_given: false,
            only: Vec::new(),
            skip: Vec::new(),
            patch_kubelet: PatchKubelet::default(),
            in_place: false,
            free_target: FreeTarget::default(),
            // kubeadm's own default: CertificateValidity = 365 * 24 h (cmd/kubeadm/app/constants).
            days: 365,
            reuse_keys: false,
            san: Vec::new(),
            renew_ca: false,
            ca: Vec::new(),
            // kubeadm's own default: CertificateAuthorityValidity = 10 * 365 * 24 h.
            ca_days: 3650,
            fsck: true,
            keep_in: None,
            trust: Vec::new(),
        }
    }
}
