//! Disks of workers, made from the files of the real control-plane node: no CA key, no manifests, a
//! kubelet.conf as TLS bootstrap writes it, and a kubelet client certificate of their own that
//! expired with the control plane's.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Result;
use base64::Engine as _;

use crate::command::Cmd;
use crate::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition};
use crate::fixtures::{clamp_times, control_plane_archive};

/// Where the kubelet keeps its client certificate.
pub const CURRENT: &str = "var/lib/kubelet/pki/kubelet-client-current.pem";

/// A folder with the cluster's CA, `ca.crt` and `ca.key`, or another cluster's under the same name.
#[derive(Debug)]
pub struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    /// That of the control plane in [`crate::disk::control_plane`].
    pub fn of_the_control_plane() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let pki = "etc/kubernetes/pki";
        let pack = Cmd::new("tar").args(["--extract", "--zstd", "--strip-components=3", "--file"]);
        let pack = pack
            .arg(control_plane_archive())
            .arg("--directory")
            .arg(folder.path());
        pack.args([format!("{pki}/ca.crt"), format!("{pki}/ca.key")])
            .ok()?;
        Ok(Self { folder })
    }

    /// That of a folder with `ca.crt` and `ca.key`.
    pub fn at(path: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for file in ["ca.crt", "ca.key"] {
            fs::copy(path.join(file), folder.path().join(file))?;
        }
        Ok(Self { folder })
    }

    /// A new one, also called `kubernetes`, as every kubeadm cluster's is.
    pub fn of_another_cluster() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let (key, request) = request("/CN=kubernetes")?;
        fs::write(at("ca.key"), key)?;
        let extensions = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n\
            basicConstraints=critical,CA:TRUE\n";
        let itself = [
            "-selfsign".into(),
            "-keyfile".into(),
            at("ca.key").into_os_string(),
        ];
        fs::write(
            at("ca.crt"),
            sign(
                &itself,
                &request,
                "20230223000000Z",
                "20330223000000Z",
                extensions,
            )?,
        )?;
        Ok(Self { folder })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Signs a request with dates (`YYYYMMDDHHMMSSZ`) and an extension file; gives the certificate
    /// as PEM.
    pub fn sign(&self, request: &str, from: &str, to: &str, extensions: &str) -> Result<String> {
        let (key, certificate) = (self.path().join("ca.key"), self.path().join("ca.crt"));
        let with = [
            "-keyfile".into(),
            key.into_os_string(),
            "-cert".into(),
            certificate.into_os_string(),
        ];
        sign(&with, request, from, to, extensions)
    }
}

fn sign(
    with: &[OsString],
    request: &str,
    from: &str,
    to: &str,
    extensions: &str,
) -> Result<String> {
    let work = tempfile::tempdir()?;
    let at = |name: &str| work.path().join(name);
    fs::write(at("csr"), request)?;
    fs::write(at("index"), "")?;
    fs::write(at("ext"), extensions)?;
    let config = format!(
        "[ca]\ndefault_ca=x\n[x]\ndatabase={}\nnew_certs_dir={}\nrand_serial=yes\n\
         default_md=sha256\npolicy=any\n[any]\n\
         organizationName=optional\norganizationalUnitName=optional\ncommonName=supplied\n",
        at("index").display(),
        work.path().display()
    );
    fs::write(at("cnf"), config)?;
    let sign = Cmd::new("openssl")
        .args(["ca", "-batch", "-notext", "-preserveDN", "-config"])
        .arg(at("cnf"));
    let sign = sign
        .args(["-startdate", from, "-enddate", to, "-in"])
        .arg(at("csr"))
        .arg("-extfile")
        .arg(at("ext"));
    sign.args(with).arg("-out").arg(at("crt")).ok()?;
    Ok(fs::read_to_string(at("crt"))?)
}

/// A P-256 key and a request with this subject (`/O=…/CN=…`), as PEM.
pub fn request(subject: &str) -> Result<(String, String)> {
    let work = tempfile::tempdir()?;
    let key = work.path().join("key");
    let made = Cmd::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout"])
        .ok()?
        .stdout;
    fs::write(&key, &made)?;
    let request = Cmd::new("openssl")
        .args(["req", "-new", "-subj", subject, "-key"])
        .arg(key)
        .ok()?
        .stdout;
    Ok((made, request))
}

/// What a kubelet's client certificate is for.
pub const CLIENT: &str = "keyUsage=critical,digitalSignature,keyEncipherment\n\
    extendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n";

/// Makes the disk of a worker called `name` in the cluster of `authority`.
pub fn worker(path: &Path, name: &str, authority: &Authority) -> Result<Disk> {
    let uuid = uuid_of(name);
    let root = Partition::new(FileSystem::Ext4, "/").uuid(&uuid);
    let disk = DiskBuilder::new(192 * MIB).partition(root).build(path)?;
    disk.mounted(|root| populate(root, name, &uuid, authority))?;
    Ok(disk)
}

/// Always the same for a name, so that tests can be repeated.
fn uuid_of(name: &str) -> String {
    use sha2::Digest as _;
    let hex: String = sha2::Sha256::digest(name)
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "{}-{}-4{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

/// Fills an empty folder with the files of such a worker.
pub fn populate(root: &Path, name: &str, uuid: &str, authority: &Authority) -> Result<()> {
    let without = [
        "var/lib/etcd",
        "var/log",
        "root/.kube",
        "etc/kubernetes/manifests",
        "etc/kubernetes/pki",
    ];
    let mut unpack = Cmd::new("tar").args([
        "--extract",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--zstd",
    ]);
    for path in without {
        unpack = unpack.arg(format!("--exclude={path}/*"));
    }
    unpack
        .arg("--file")
        .arg(control_plane_archive())
        .arg("--directory")
        .arg(root)
        .ok()?;
    for folder in [
        "boot", "dev", "home", "proc", "run", "srv", "sys", "tmp", "usr/bin", "usr/sbin",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for config in ["admin", "controller-manager", "scheduler"] {
        let _ = fs::remove_file(root.join(format!("etc/kubernetes/{config}.conf")));
    }
    fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
    fs::write(
        root.join("etc/machine-id"),
        format!("{}\n", uuid.replace('-', "")),
    )?;
    fs::write(
        root.join("etc/fstab"),
        format!("UUID={uuid} / ext4 defaults 0 1\n"),
    )?;
    fs::create_dir_all(root.join("etc/kubernetes/pki"))?;
    fs::copy(
        authority.path().join("ca.crt"),
        root.join("etc/kubernetes/pki/ca.crt"),
    )?;
    let config = root.join("etc/kubernetes/kubelet.conf");
    fs::write(&config, kubelet_conf(authority)?)?;
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
    client_certificate(root, name, authority)?;
    clamp_times(root)
}

/// As the kubelet writes it after TLS bootstrap.
fn kubelet_conf(authority: &Authority) -> Result<String> {
    let ca = base64::engine::general_purpose::STANDARD
        .encode(fs::read(authority.path().join("ca.crt"))?);
    Ok(format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    \
         server: https://k8s-vip.example.internal:6443\n  \
         name: default-cluster\ncontexts:\n- context:\n    cluster: default-cluster\n    \
         namespace: default\n    user: default-auth\n  name: default-context\n\
         current-context: default-context\nkind: Config\npreferences: {{}}\nusers:\n\
         - name: default-auth\n  user:\n    \
         client-certificate: /{CURRENT}\n    client-key: /{CURRENT}\n"
    ))
}

fn client_certificate(root: &Path, name: &str, authority: &Authority) -> Result<()> {
    let (key, request) = request(&format!("/O=system:nodes/CN=system:node:{name}"))?;
    let certificate = authority.sign(&request, "20230223090000Z", "20240223090000Z", CLIENT)?;
    let pki = root.join("var/lib/kubelet/pki");
    for entry in fs::read_dir(&pki)? {
        let path = entry?.path();
        if path.to_string_lossy().contains("kubelet-client-") {
            fs::remove_file(path)?;
        }
    }
    let dated = pki.join("kubelet-client-2023-02-23-09-05-11.pem");
    fs::write(&dated, certificate + &key)?;
    fs::set_permissions(&dated, fs::Permissions::from_mode(0o600))?;
    Ok(symlink(
        "/var/lib/kubelet/pki/kubelet-client-2023-02-23-09-05-11.pem",
        root.join(CURRENT),
    )?)
}
