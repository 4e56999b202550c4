//! Rescue against the original: what real kubeadm 1.20.2 makes of a node, and what it says of it,
//! compared with ours field by field.
//!
//! kubeadm's side was recorded (tests/fixtures/kubeadm-1.20.2); with `RESCUE_KUBERNETES` naming a
//! folder that holds the real program (`scripts/test --with-kubernetes`) it is made anew in the
//! same run. The results are written down in docs/compliance.md.

mod expiration;
#[path = "../pki_support/mod.rs"]
mod pki_support;
mod profiles;
mod renewal;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tests::{Cmd, fixtures, programs};

/// kubeadm's certificates in files, without their ending.
pub const LEAVES: [&str; 7] = [
    "apiserver",
    "apiserver-kubelet-client",
    "front-proxy-client",
    "apiserver-etcd-client",
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
];

/// kubeadm's kubeconfigs with a certificate of their own.
pub const CONFIGS: [&str; 3] = ["admin.conf", "controller-manager.conf", "scheduler.conf"];

/// What kubeadm said and made: recorded, or made now.
#[derive(Debug)]
pub struct Reference {
    folder: PathBuf,
    _made: Option<tempfile::TempDir>,
}

impl Reference {
    /// Makes it with the real program where there is one.
    pub fn get() -> Result<Self> {
        if std::env::var_os("RESCUE_KUBERNETES").is_none() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubeadm-1.20.2");
            return Ok(Self {
                folder,
                _made: None,
            });
        }
        let made = tempfile::tempdir()?;
        Cmd::new(programs::workspace().join("scripts/kubeadm-fixture"))
            .arg(made.path())
            .ok()?;
        Ok(Self {
            folder: made.path().to_path_buf(),
            _made: Some(made),
        })
    }

    /// What `kubeadm certs check-expiration` printed: `before`, `after`, or `odd`.
    pub fn expiration(&self, when: &str) -> Result<String> {
        let file = self.folder.join(format!("expiration-{when}.txt"));
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// The node as kubeadm leaves it.
    pub fn renewed(&self) -> Result<tempfile::TempDir> {
        let node = node()?;
        fs::remove_dir_all(node.path().join("etc/kubernetes"))?;
        Cmd::new("tar")
            .args(["--extract", "--numeric-owner", "--zstd", "--file"])
            .arg(self.folder.join("renewed.tar.zst"))
            .arg("--directory")
            .arg(node.path())
            .ok()?;
        Ok(node)
    }
}

/// The expired node of tests/fixtures.
pub fn node() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_control_plane(folder.path())
        .context("unpacking the real node (are you root?)")?;
    Ok(folder)
}

/// The certificate of a leaf or kubeconfig below /etc/kubernetes, PEM.
pub fn certificate(root: &Path, name: &str) -> Result<String> {
    let kubernetes = root.join("etc/kubernetes");
    if name.ends_with(".conf") {
        let text =
            fs::read_to_string(kubernetes.join(name)).with_context(|| format!("reading {name}"))?;
        return tests::x509::inline(&text, "client-certificate-data")
            .with_context(|| name.to_owned());
    }
    fs::read_to_string(kubernetes.join(format!("pki/{name}.crt")))
        .with_context(|| format!("reading {name}"))
}

/// Renews all that `certificates` wants to; insists that nothing is left.
pub fn renew(root: &Path, more: &[&str]) -> Result<()> {
    let arguments = ["repair", "--yes", "--only", "certificates", "--root"];
    programs::rescue(arguments).arg(root).args(more).ok()?;
    Ok(())
}
