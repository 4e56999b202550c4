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
    /// Failure modes, or whole checks, whose remedies are carried out though what they change may be
    /// wanted as it is.
    pub allow: Vec<String>,
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
    /// The name of the Node object, where what the disk says of it contradicts itself.
    pub node_name: Option<String>,
}

impl Settings {
    /// Whether all checks are asked for: only then may anybody be told that nothing is left.
    pub fn all_checks(&self) -> bool {
        self.only.is_empty() && self.skip.is_empty()
    }

    /// Whether a check is asked for: `--only` names it or nothing, and `--skip` does not name it.
    pub fn asks_for(&self, check: &str) -> bool {
        let is_named = |ids: &[String]| ids.iter().any(|id| id == check);
        (self.only.is_empty() || is_named(&self.only)) && !is_named(&self.skip)
    }

    /// Whether `--allow` names a failure mode, or its check.
    pub fn allows(&self, mode: &str) -> bool {
        let check = mode.split_once('.').map_or(mode, |(check, _)| check);
        self.allow.iter().any(|id| id == mode || id == check)
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
            allow: Vec::new(),
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
            node_name: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_check_is_asked_for_unless_it_is_skipped_or_others_are_named() {
        let all = Settings::default();
        assert!(all.asks_for("swap"));
        let only = Settings {
            only: ids(&["swap", "etcd"]),
            skip: ids(&["etcd"]),
            ..Settings::default()
        };
        assert!(only.asks_for("swap"));
        assert!(!only.asks_for("etcd") && !only.asks_for("disk-full"));
    }

    #[test]
    fn a_mode_is_allowed_by_its_own_name_or_its_checks() {
        let allowing = |id: &str| Settings {
            allow: ids(&[id]),
            ..Settings::default()
        };
        assert!(allowing("fstab.missing-disk").allows("fstab.missing-disk"));
        assert!(allowing("fstab").allows("fstab.missing-disk"));
        assert!(!allowing("fstab.missing-disk").allows("fstab.other"));
        assert!(!allowing("fst").allows("fstab.other"));
        assert!(!Settings::default().allows("fstab.other"));
    }
}
