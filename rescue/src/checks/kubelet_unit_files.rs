//! The remedies of kubelet-unit: a unit file or drop-in that a power cut emptied goes, or is written
//! again as kubeadm's packages bring it.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::change::{Change, Prepared};
use crate::finding::{Context, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::systemd::Unit;
use crate::tree::FileKind;

/// Where an administrator's files hide a package's.
const OWN: &str = "/etc/systemd/system";
/// Where packages put theirs (systemd.unit(5), the unit search path).
const PACKAGES: [&str; 3] = [
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// The drop-in of kubeadm's packages, below a unit folder.
const KUBEADM: &str = "kubelet.service.d/10-kubeadm.conf";

/// What a power cut leaves of a file whose data had not been written: nothing, or zero bytes.
pub(super) fn is_emptied(guest: &Guest, path: &GuestPath) -> bool {
    let is_file = guest
        .lstat(path)
        .is_ok_and(|meta| meta.kind == FileKind::Regular);
    let is_empty = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    is_file
        && guest
            .read(path)
            .is_ok_and(|bytes| bytes.iter().all(is_empty))
}

/// The package's file that one in /etc hides; `None` for a file that lies somewhere else, and where
/// the package's own is emptied, too.
pub(super) fn hidden_by(guest: &Guest, path: &GuestPath) -> Option<GuestPath> {
    let rest = path.as_path().strip_prefix(OWN).ok()?;
    let below = PACKAGES
        .iter()
        .map(|folder| GuestPath::new(folder).join(rest));
    let is_whole = |path: &GuestPath| guest.stat(path).is_ok_and(|meta| meta.size > 0);
    below
        .into_iter()
        .find(|path| is_whole(path) && !is_emptied(guest, path))
}

/// What gives the kubelet its configuration again, where the unit lost it.
pub(super) fn mends_bare(guest: &Guest, unit: &Unit) -> Option<RestoreUnitFile> {
    let emptied = unit.drop_ins.iter().find(|path| is_emptied(guest, path));
    if let Some(path) = emptied
        && hidden_by(guest, path).is_some()
    {
        return Some(RestoreUnitFile::remove(path.clone()));
    }
    let is_kubeadm = |path: &GuestPath| path.as_path().ends_with("10-kubeadm.conf");
    let path = match emptied {
        Some(path) if is_kubeadm(path) => path.clone(),
        Some(_) => return None,
        None => GuestPath::new(OWN).join(KUBEADM),
    };
    let is_there = |path: &str| {
        guest
            .stat(&GuestPath::new(path))
            .is_ok_and(|meta| meta.size > 0)
    };
    let has_joined =
        is_there("/etc/kubernetes/kubelet.conf") && is_there("/var/lib/kubelet/config.yaml");
    let program = unit.argv().first().filter(|_| has_joined)?.clone();
    // A drop-in of somebody else is kept as it is.
    (emptied.is_some() || !guest.exists(&path)).then(|| RestoreUnitFile {
        text: Some(drop_in(guest, &program)),
        path,
    })
}

/// 10-kubeadm.conf as the packages bring it (cmd/krel/templates/latest/kubeadm in
/// kubernetes/release). Debian's reads /etc/default/kubelet, Red Hat's /etc/sysconfig/kubelet.
fn drop_in(guest: &Guest, program: &str) -> String {
    let defaults = match guest.exists(&GuestPath::new("/etc/sysconfig")) {
        true => "/etc/sysconfig/kubelet",
        false => "/etc/default/kubelet",
    };
    format!(
        "# Written by rescue, as kubeadm's packages bring it.\n\
         [Service]\n\
         Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=\
         /etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
         Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
         EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
         EnvironmentFile=-{defaults}\n\
         ExecStart=\n\
         ExecStart={program} $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS \
         $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n"
    )
}

/// An emptied file goes, so that the package's is read again, or gets the package's text.
#[derive(Debug)]
pub(super) struct RestoreUnitFile {
    path: GuestPath,
    text: Option<String>,
}

impl RestoreUnitFile {
    /// Takes `path` away.
    pub(super) fn remove(path: GuestPath) -> Self {
        Self { path, text: None }
    }
}

impl Remedy for RestoreUnitFile {
    fn kind(&self) -> &'static str {
        "restore-unit-file"
    }

    fn summary(&self) -> String {
        match &self.text {
            Some(_) => format!("write {}, as kubeadm's packages bring it", self.path),
            None => format!(
                "remove the emptied {}, which hides the package's",
                self.path
            ),
        }
    }

    fn details(&self) -> Vec<String> {
        let text = self.text.as_deref().unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("path".to_owned(), json!(self.path.to_string()))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        match &self.text {
            None => draft.push(Change::remove(&draft.guest, &self.path)?)?,
            Some(text) => {
                for folder in Change::make_dirs(&draft.guest, &self.path.parent(), 0o755)? {
                    draft.push(folder)?;
                }
                draft.write(&self.path, text.as_bytes(), 0o644)?;
            }
        }
        Ok(draft.done())
    }
}
