//! Clusters whose certificates openssl made, in folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use rescue::guest::{Guest, GuestPath};
use rescue::tree::FolderTree;
use std::rc::Rc;
use tests::Cmd;

/// How openssl makes a key.
pub const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
/// RSA with 3072 bits.
pub const RSA_3072: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];
/// P-256.
pub const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
/// P-384.
pub const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
/// P-521.
pub const P521: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];

/// Extensions of a kubeadm CA.
pub const CA: &str = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n\
    basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n";
/// Extensions of a CA as kubeadm up to 1.18 made it: no key identifier.
pub const CA_WITHOUT_SKI: &str = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n\
    basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=none\n";
/// Extensions of a client.
pub const CLIENT: &str =
    "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=clientAuth\n";
/// Extensions of a server.
pub const SERVER: &str =
    "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\n";

/// One certificate to be made.
pub struct Wanted<'a> {
    /// Path of certificate and key without `.crt` and `.key`.
    pub base: &'a Path,
    /// Kind of key.
    pub key: &'a [&'a str],
    /// `/O=a/CN=b`, with `+` for several attributes in one RDN.
    pub subject: &'a str,
    /// Lines of an extension file.
    pub extensions: &'a str,
    /// Validity from now on.
    pub days: u32,
}

/// Makes a key as kubeadm writes it.
pub fn key(kind: &[&str], to: &Path) -> Result<()> {
    let made = Cmd::new("openssl").arg("genpkey").args(kind).ok()?;
    let traditional = Cmd::new("openssl")
        .args(["pkey", "-traditional"])
        .stdin(made.stdout)
        .ok()?;
    fs::create_dir_all(to.parent().context("a path with a folder")?)?;
    Ok(fs::write(to, traditional.stdout)?)
}

/// Makes a certificate: self-signed with this serial number, or signed by the CA at `signer` (path
/// without `.crt`).
pub fn certificate(wanted: &Wanted<'_>, signer: Option<&Path>, serial: Option<&str>) -> Result<()> {
    let with = |extension: &str| {
        wanted
            .base
            .with_file_name(format!("{}.{extension}", file_name(wanted.base)))
    };
    key(wanted.key, &with("key"))?;
    let (request, extensions) = (with("csr"), with("ext"));
    fs::write(&extensions, wanted.extensions)?;
    let config = with("cnf");
    fs::write(&config, "[req]\ndistinguished_name=dn\n[dn]\n")?;
    Cmd::new("openssl")
        .args([
            "req",
            "-new",
            "-utf8",
            "-multivalue-rdn",
            "-subj",
            wanted.subject,
            "-config",
        ])
        .arg(config)
        .arg("-key")
        .arg(with("key"))
        .arg("-out")
        .arg(&request)
        .ok()?;
    let mut sign = Cmd::new("openssl")
        .args(["x509", "-req", "-days", &wanted.days.to_string(), "-in"])
        .arg(&request);
    sign = sign
        .arg("-extfile")
        .arg(&extensions)
        .arg("-out")
        .arg(with("crt"));
    sign = match signer {
        Some(ca) => {
            let ca = |extension: &str| ca.with_file_name(format!("{}.{extension}", file_name(ca)));
            sign.arg("-CA").arg(ca("crt")).arg("-CAkey").arg(ca("key"))
        }
        None => sign.arg("-signkey").arg(with("key")),
    };
    sign.args(["-set_serial", serial.unwrap_or("4711")]).ok()?;
    for extension in ["csr", "ext", "cnf"] {
        let _ = fs::remove_file(with(extension));
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A control plane (or worker) in a folder: CAs, manifests and whatever a test adds.
pub struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Folders only.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for below in [
            "etc/kubernetes/pki/etcd",
            "etc/kubernetes/manifests",
            "var/lib/rescue",
            "root",
            "home",
        ] {
            fs::create_dir_all(folder.path().join(below))?;
        }
        let cluster = Self { folder };
        cluster.write("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian\"\n")?;
        cluster.write("etc/hostname", "node1\n")?;
        cluster.write(
            "var/lib/kubelet/config.yaml",
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
        )?;
        Ok(cluster)
    }

    /// With the cluster's CA and an API server's manifest.
    pub fn control_plane(
        ca_key: &[&str],
        ca_subject: &str,
        ca_extensions: &str,
        ca_days: u32,
        serial: &str,
    ) -> Result<Self> {
        let cluster = Self::new()?;
        cluster.ca("ca", ca_key, ca_subject, ca_extensions, ca_days, serial)?;
        cluster.manifest(
            "kube-apiserver",
            &["--client-ca-file=/etc/kubernetes/pki/ca.crt"],
        )?;
        Ok(cluster)
    }

    /// Its root folder.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// A path in `/etc/kubernetes/pki`.
    pub fn pki(&self, below: &str) -> PathBuf {
        self.root().join("etc/kubernetes/pki").join(below)
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().context("a path with a folder")?)?;
        Ok(fs::write(path, text)?)
    }

    /// Makes a link.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().context("a path with a folder")?)?;
        Ok(symlink(target, path)?)
    }

    /// A static pod with these flags.
    pub fn manifest(&self, name: &str, flags: &[&str]) -> Result<()> {
        let flags: String = flags.iter().map(|flag| format!("    - {flag}\n")).collect();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: kube-system\n\
             spec:\n  containers:\n  - command:\n    - {name}\n\
             {flags}    image: k8s.gcr.io/{name}:v1.20.2\n    name: {name}\n"
        );
        self.write(&format!("etc/kubernetes/manifests/{name}.yaml"), text)
    }

    /// A CA in the certificate folder.
    pub fn ca(
        &self,
        base: &str,
        key: &[&str],
        subject: &str,
        extensions: &str,
        days: u32,
        serial: &str,
    ) -> Result<()> {
        let wanted = Wanted {
            base: &self.pki(base),
            key,
            subject,
            extensions,
            days,
        };
        certificate(&wanted, None, Some(serial))
    }

    /// A leaf for a day, signed by a CA of the certificate folder.
    pub fn leaf(
        &self,
        base: &str,
        ca: &str,
        key: &[&str],
        subject: &str,
        extensions: &str,
    ) -> Result<()> {
        let wanted = Wanted {
            base: &self.pki(base),
            key,
            subject,
            extensions,
            days: 1,
        };
        certificate(&wanted, Some(&self.pki(ca)), None)
    }

    /// A client certificate and key for a day, as text.
    pub fn client(&self, ca: &str, key: &[&str], subject: &str) -> Result<(String, String)> {
        let base = self.root().join("tmp/client");
        let wanted = Wanted {
            base: &base,
            key,
            subject,
            extensions: CLIENT,
            days: 1,
        };
        certificate(&wanted, Some(&self.pki(ca)), None)?;
        let pair = (
            fs::read_to_string(base.with_extension("crt"))?,
            fs::read_to_string(base.with_extension("key"))?,
        );
        fs::remove_dir_all(self.root().join("tmp"))?;
        Ok(pair)
    }

    /// A kubeconfig with this user body; the cluster's CA is inline.
    pub fn kubeconfig(&self, user: &str, body: &str) -> Result<String> {
        let ca = base64(&fs::read(self.pki("ca.crt"))?);
        Ok(format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    \
             server: https://vip:6443\n  name: kubernetes\ncontexts:\n- context:\n    \
             cluster: kubernetes\n    user: {user}\n  name: c\ncurrent-context: c\nkind: Config\n\
             preferences: {{}}\nusers:\n- name: {user}\n  user:\n{body}"
        ))
    }

    /// The folder as a guest.
    pub fn guest(&self) -> Result<Guest> {
        Ok(Guest::new(
            "folder",
            Rc::new(FolderTree::open(self.root())?),
            Vec::new(),
        ))
    }
}

/// Standard base64 on one line.
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// What [`base64`] encoded.
pub fn decoded(text: &str) -> Result<Vec<u8>> {
    Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
}

/// Body of a user with inline credentials.
pub fn inline(pair: &(String, String)) -> String {
    let (certificate, key) = (base64(pair.0.as_bytes()), base64(pair.1.as_bytes()));
    format!("    client-certificate-data: {certificate}\n    client-key-data: {key}\n")
}

/// A file of a (planned) guest, as text.
pub fn text(guest: &Guest, path: &str) -> Result<String> {
    Ok(String::from_utf8(guest.read(&GuestPath::new(path))?)?)
}

/// What openssl prints of a certificate.
pub fn openssl_x509(pem: &str, arguments: &[&str]) -> Result<String> {
    Ok(Cmd::new("openssl")
        .args(["x509", "-noout"])
        .args(arguments)
        .stdin(pem)
        .ok()?
        .stdout)
}

/// Insists that openssl verifies the leaf with the CA today and that the key belongs to it.
pub fn verify(guest: &Guest, ca: &str, certificate: &str, key: &str) -> Result<()> {
    verify_at(guest, ca, certificate, key, None)
}

/// The same at another time.
pub fn verify_at(
    guest: &Guest,
    ca: &str,
    certificate: &str,
    key: &str,
    at: Option<time::OffsetDateTime>,
) -> Result<()> {
    let work = tempfile::tempdir()?;
    let (ca_file, leaf) = (work.path().join("ca"), work.path().join("leaf"));
    fs::write(&ca_file, text(guest, ca)?)?;
    fs::write(&leaf, certificate)?;
    let mut check = Cmd::new("openssl").arg("verify");
    if let Some(at) = at {
        check = check.args(["-attime", &at.unix_timestamp().to_string()]);
    }
    check.arg("-CAfile").arg(&ca_file).arg(&leaf).ok()?;
    let of_key = Cmd::new("openssl")
        .args(["pkey", "-pubout"])
        .stdin(key)
        .ok()?
        .stdout;
    ensure!(
        openssl_x509(certificate, &["-pubkey"])? == of_key,
        "the key does not belong to the certificate"
    );
    Ok(())
}
