//! A healthy control plane made by openssl, copies of it, and what openssl says of one.

use super::damage::beside;
use super::pki_support::cluster::{
    CA, CLIENT, Cluster, P256, Wanted, certificate, inline, key, openssl_x509,
};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tests::Cmd;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

/// How long the tree's leaves live.
pub const LEAF_DAYS: u32 = 900;

const API: &str = "keyUsage=critical,digitalSignature,keyEncipherment\n\
    extendedKeyUsage=serverAuth\n\
    subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
    DNS:kubernetes.default.svc.cluster.local,DNS:node1,DNS:vip,IP:10.96.0.1,IP:10.0.0.5\n";
const ETCD: &str = "keyUsage=critical,digitalSignature,keyEncipherment\n\
    extendedKeyUsage=serverAuth,clientAuth\n\
    subjectAltName=DNS:localhost,DNS:node1,IP:10.0.0.5,IP:127.0.0.1,IP:::1\n";

/// One certificate of kubeadm with its key.
pub struct Pair {
    /// Below the certificate folder, without extension.
    pub name: &'static str,
    ca: Option<&'static str>,
    subject: &'static str,
    extensions: &'static str,
}

impl Pair {
    /// Whether it is no CA.
    pub fn is_leaf(&self) -> bool {
        self.ca.is_some()
    }

    /// Below the guest's root, without extension.
    pub fn path(&self) -> String {
        format!("etc/kubernetes/pki/{}", self.name)
    }
}

const fn ca(name: &'static str, subject: &'static str) -> Pair {
    Pair {
        name,
        ca: None,
        subject,
        extensions: CA,
    }
}

const fn leaf(
    name: &'static str,
    ca: &'static str,
    subject: &'static str,
    extensions: &'static str,
) -> Pair {
    Pair {
        name,
        ca: Some(ca),
        subject,
        extensions,
    }
}

/// All pairs, CAs first.
pub const PKI: [Pair; 10] = [
    ca("ca", "/CN=kubernetes"),
    ca("front-proxy-ca", "/CN=front-proxy-ca"),
    ca("etcd/ca", "/CN=etcd-ca"),
    leaf("apiserver", "ca", "/CN=kube-apiserver", API),
    leaf(
        "apiserver-kubelet-client",
        "ca",
        "/O=system:masters/CN=kube-apiserver-kubelet-client",
        CLIENT,
    ),
    leaf(
        "front-proxy-client",
        "front-proxy-ca",
        "/CN=front-proxy-client",
        CLIENT,
    ),
    leaf(
        "apiserver-etcd-client",
        "etcd/ca",
        "/O=system:masters/CN=kube-apiserver-etcd-client",
        CLIENT,
    ),
    leaf("etcd/server", "etcd/ca", "/CN=node1", ETCD),
    leaf("etcd/peer", "etcd/ca", "/CN=node1", ETCD),
    leaf(
        "etcd/healthcheck-client",
        "etcd/ca",
        "/O=system:masters/CN=kube-etcd-healthcheck-client",
        CLIENT,
    ),
];

/// kubelet.conf, the one kubeconfig whose certificate moves to files of its own.
pub const KUBELET: &str = "kubelet.conf";

/// The kubeconfigs by file name, with the client certificate in each; users are called as their
/// common names.
pub const CONFIGS: [Pair; 4] = [
    leaf(
        "admin.conf",
        "ca",
        "/O=system:masters/CN=kubernetes-admin",
        CLIENT,
    ),
    leaf(
        "controller-manager.conf",
        "ca",
        "/CN=system:kube-controller-manager",
        CLIENT,
    ),
    leaf("scheduler.conf", "ca", "/CN=system:kube-scheduler", CLIENT),
    leaf(
        KUBELET,
        "ca",
        "/O=system:nodes/CN=system:node:node1",
        CLIENT,
    ),
];

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Certificate of a leaf.
    LeafCertificate,
    /// Its key.
    LeafKey,
    /// Certificate of a CA.
    CaCertificate,
    /// Its key.
    CaKey,
    /// A kubeconfig with its credentials inline.
    Config,
}

/// One file to be damaged.
pub struct File {
    /// Below the guest's root.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// The certificate in question; a kubeconfig's has no file of its own.
    pub pair: &'static Pair,
}

impl File {
    /// Whether a changed path is this file, the other half of its pair, or what the kubelet keeps
    /// for it.
    pub fn belongs_to(&self, path: &str) -> bool {
        path == self.path
            || path
                .strip_prefix(&self.pair.path())
                .is_some_and(|rest| rest == ".crt" || rest == ".key")
            || (self.pair.name == KUBELET
                && path.starts_with("var/lib/kubelet/pki/kubelet-client-"))
    }
}

/// Every file of the pki, and the kubeconfigs.
pub fn files() -> Vec<File> {
    let file = |pair: &'static Pair, extension: &str, kind| File {
        path: format!("{}.{extension}", pair.path()),
        kind,
        pair,
    };
    let config = |pair: &'static Pair| File {
        path: config_path(pair.name),
        kind: Kind::Config,
        pair,
    };
    PKI.iter()
        .flat_map(|pair| {
            let kinds = if pair.is_leaf() {
                (Kind::LeafCertificate, Kind::LeafKey)
            } else {
                (Kind::CaCertificate, Kind::CaKey)
            };
            [file(pair, "crt", kinds.0), file(pair, "key", kinds.1)]
        })
        .chain(CONFIGS.iter().map(config))
        .collect()
}

/// Below the guest's root.
pub fn config_path(name: &str) -> String {
    format!("etc/kubernetes/{name}")
}

/// A control plane in a folder.
pub struct Tree {
    cluster: Option<Cluster>,
    folder: Option<tempfile::TempDir>,
    /// The time that counts.
    pub now: OffsetDateTime,
}

impl Tree {
    /// A healthy one.
    pub fn new() -> Result<Self> {
        let cluster = Cluster::new()?;
        for pair in &PKI {
            let (base, days) = (
                cluster.pki(pair.name),
                if pair.is_leaf() { LEAF_DAYS } else { 3650 },
            );
            let wanted = Wanted {
                base: &base,
                key: P256,
                subject: pair.subject,
                extensions: pair.extensions,
                days,
            };
            let signer = pair.ca.map(|ca| cluster.pki(ca));
            certificate(&wanted, signer.as_deref(), None)?;
        }
        manifests(&cluster)?;
        cluster.write(
            "var/lib/kubelet/config.yaml",
            "kind: KubeletConfiguration\nclusterDomain: cluster.local\n\
             staticPodPath: /etc/kubernetes/manifests\n",
        )?;
        for config in &CONFIGS {
            let pair = client(&cluster, config.subject)?;
            let user = config
                .subject
                .rsplit_once("CN=")
                .context("a common name")?
                .1;
            cluster.write(
                &config_path(config.name),
                cluster.kubeconfig(user, &inline(&pair))?,
            )?;
        }
        let _ = fs::remove_dir_all(cluster.root().join("tmp"));
        Ok(Self {
            cluster: Some(cluster),
            folder: None,
            now: OffsetDateTime::now_utc() + Duration::minutes(10),
        })
    }

    /// The guest's root.
    pub fn root(&self) -> &Path {
        match (&self.folder, &self.cluster) {
            (Some(folder), _) => folder.path(),
            (None, Some(cluster)) => cluster.root(),
            (None, None) => Path::new("/nonexistent"),
        }
    }

    /// Another folder with the same files; in memory where the machine has such a place, because
    /// hundreds of repairs wait for thousands of writes to reach a disk otherwise.
    pub fn copy(&self) -> Result<Self> {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        Cmd::new("cp")
            .arg("-a")
            .arg(self.root().join("."))
            .arg(folder.path())
            .ok()?;
        Ok(Self {
            cluster: None,
            folder: Some(folder),
            now: self.now,
        })
    }

    /// Makes the file's certificate anew for its old key (a CA's for another one where it is not
    /// dated otherwise), valid for these days from now, and puts it to `to`. `stranger`: signed by
    /// another CA of the same name.
    pub fn certify(
        &self,
        file: &File,
        days: impl Fn((i64, i64)) -> (i64, i64),
        to: &Path,
        stranger: bool,
    ) -> Result<()> {
        let work = tempfile::tempdir()?;
        let at = |name: &str| work.path().join(name);
        let usual = (-1, i64::from(LEAF_DAYS));
        let (from, until) = days(usual);
        let own_key = match file.kind {
            Kind::Config => self.config_key(file, work.path())?,
            _ => beside(&self.root().join(&file.path)),
        };
        let subject_key = at("subject.key");
        // Undated, the damage is the key: another one than beside the certificate, except where the
        // signer is what is wrong.
        if (from, until) == usual && !stranger {
            key(P256, &subject_key)?;
        } else {
            fs::copy(&own_key, &subject_key)?;
        }
        let (ca_certificate, ca_key) = match file.pair.ca {
            Some(name) if stranger => {
                let subject = PKI
                    .iter()
                    .find(|pair| pair.name == name)
                    .context("a CA")?
                    .subject;
                let base = at("stranger");
                certificate(
                    &Wanted {
                        base: &base,
                        key: P256,
                        subject,
                        extensions: CA,
                        days: 3650,
                    },
                    None,
                    Some("9"),
                )?;
                (base.with_extension("crt"), base.with_extension("key"))
            }
            Some(name) => {
                let base = self.root().join(format!("etc/kubernetes/pki/{name}"));
                (base.with_extension("crt"), base.with_extension("key"))
            }
            None => (PathBuf::new(), subject_key.clone()),
        };
        sign(&Signing {
            work: work.path(),
            pair: file.pair,
            key: &subject_key,
            ca: (&ca_certificate, &ca_key),
            from,
            until,
        })?;
        Ok(fs::copy(at("made.crt"), to).map(drop)?)
    }

    /// The key in a kubeconfig, in a file of its own.
    fn config_key(&self, file: &File, work: &Path) -> Result<PathBuf> {
        let to = work.join("config.key");
        fs::write(&to, Config::read(&self.root().join(&file.path))?.key)?;
        Ok(to)
    }

    /// Insists that a leaf says what the healthy tree's says, that openssl verifies it, and that
    /// its key is its own.
    pub fn same_identity(&self, root: &Path, leaf: &Pair) -> Result<()> {
        self.same_identity_at(root, leaf, self.now)
    }

    /// The same at another time.
    pub fn same_identity_at(&self, root: &Path, leaf: &Pair, at: OffsetDateTime) -> Result<()> {
        let file = |root: &Path, extension: &str| root.join(format!("{}.{extension}", leaf.path()));
        let read = |root: &Path, extension: &str| fs::read_to_string(file(root, extension));
        let (old, new) = (read(self.root(), "crt")?, read(root, "crt")?);
        let ca = format!("etc/kubernetes/pki/{}.crt", leaf.ca.context("a leaf")?);
        // Byte for byte what the healthy tree has was judged there, by
        // `the_healthy_tree_is_left_alone`.
        let key = read(root, "key")?;
        let same = old == new && read(self.root(), "key")? == key;
        if same
            && at == self.now
            && root != self.root()
            && fs::read(self.root().join(&ca))? == fs::read(root.join(&ca))?
        {
            return Ok(());
        }
        judge(leaf.name, &root.join(ca), (&old, &new), &key, at)
    }

    /// The same of a kubeconfig's client: also that it leads to the same server, trusts the same
    /// CA, and calls all things as before.
    pub fn same_client(&self, root: &Path, config: &Pair) -> Result<()> {
        let path = config_path(config.name);
        if fs::read(self.root().join(&path))? == fs::read(root.join(&path))? && root != self.root()
        {
            return Ok(());
        }
        let (old, new) = (
            Config::read(&self.root().join(&path))?,
            Config::read(&root.join(&path))?,
        );
        ensure!(
            old.server == new.server && old.user == new.user,
            "{path}: {} {}",
            new.server,
            new.user
        );
        ensure!(old.authority == new.authority, "{path}: another CA");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.join(&path))?.permissions())
                & 0o7777;
        let was = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(self.root().join(&path))?.permissions(),
        ) & 0o7777;
        ensure!(mode == 0o600 || mode == was, "{path}: mode {mode:o}");
        let ca = root.join(format!(
            "etc/kubernetes/pki/{}.crt",
            config.ca.context("a client")?
        ));
        judge(
            config.name,
            &ca,
            (&old.certificate, &new.certificate),
            &new.key,
            self.now,
        )
    }
}

/// What counts in a kubeconfig of kubeadm's form.
struct Config {
    server: String,
    user: String,
    authority: String,
    certificate: String,
    key: String,
}

impl Config {
    /// Read line by line, by no code of the program's; a file that it leads to is taken for what is
    /// in it.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let value = |key: &str| {
            let mut values = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
            values.next_back().map(|value| value.trim().to_owned())
        };
        let root = path.ancestors().nth(3).context("a guest's root")?;
        let material = |key: &str| -> Result<String> {
            if let Some(data) = value(&format!("{key}-data")) {
                return Ok(String::from_utf8(
                    base64::engine::general_purpose::STANDARD.decode(data)?,
                )?);
            }
            let file = value(key).with_context(|| format!("{} has no {key}", path.display()))?;
            let link = root.join(file.trim_start_matches('/'));
            let target =
                fs::read_link(&link).with_context(|| format!("{} is no link", link.display()))?;
            Ok(fs::read_to_string(root.join(target.strip_prefix("/")?))?)
        };
        let plain =
            |key: &str| value(key).with_context(|| format!("{} has no {key}", path.display()));
        Ok(Self {
            server: plain("server")?,
            user: plain("- name")?,
            authority: plain("certificate-authority-data")?,
            certificate: material("client-certificate")?,
            key: material("client-key")?,
        })
    }
}

/// openssl's word on a certificate with its key, and that it says what the old one said.
fn judge(
    name: &str,
    ca: &Path,
    (old, new): (&str, &str),
    key: &str,
    at: OffsetDateTime,
) -> Result<()> {
    Cmd::new("openssl")
        .args([
            "verify",
            "-attime",
            &at.unix_timestamp().to_string(),
            "-CAfile",
        ])
        .arg(ca)
        .stdin(new)
        .ok()
        .with_context(|| name.to_owned())?;
    let public = Cmd::new("openssl")
        .args(["pkey", "-pubout"])
        .stdin(key)
        .ok()?
        .stdout;
    ensure!(
        openssl_x509(new, &["-pubkey"])? == public,
        "{name}: the key is another's"
    );
    if old != new {
        ensure!(
            said(old)? == said(new)?,
            "{name}: {:?} is not {:?}",
            said(new)?,
            said(old)?
        );
    }
    Ok(())
}

/// Subject, extended key usages and names, the names sorted.
fn said(pem: &str) -> Result<Vec<String>> {
    let text = openssl_x509(
        pem,
        &[
            "-subject",
            "-nameopt",
            "RFC2253",
            "-ext",
            "subjectAltName,extendedKeyUsage",
        ],
    )?;
    let mut parts: Vec<String> = text
        .split(['\n', ','])
        .map(|part| part.trim().to_owned())
        .collect();
    parts.sort();
    Ok(parts)
}

struct Signing<'a> {
    work: &'a Path,
    pair: &'a Pair,
    key: &'a Path,
    ca: (&'a Path, &'a Path),
    from: i64,
    until: i64,
}

/// `openssl ca`, the one way to date a certificate freely in every version; the result is
/// `made.crt`.
fn sign(signing: &Signing<'_>) -> Result<()> {
    let at = |name: &str| signing.work.join(name);
    let shown = |path: &Path| path.display().to_string();
    fs::write(at("index"), "")?;
    fs::write(at("ext"), signing.pair.extensions)?;
    let config = format!(
        "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nnew_certs_dir={}\nrand_serial=yes\n\
         default_md=sha256\npolicy=p\nunique_subject=no\n[p]\norganizationName=optional\n\
         commonName=supplied\n[req]\ndistinguished_name=dn\n[dn]\n",
        shown(&at("index")),
        shown(signing.work)
    );
    fs::write(at("cnf"), config)?;
    Cmd::new("openssl")
        .args([
            "req",
            "-new",
            "-utf8",
            "-subj",
            signing.pair.subject,
            "-config",
        ])
        .arg(at("cnf"))
        .arg("-key")
        .arg(signing.key)
        .arg("-out")
        .arg(at("csr"))
        .ok()?;
    let moment = |days: i64| -> Result<String> {
        let time = OffsetDateTime::now_utc() + Duration::days(days);
        Ok(time.format(format_description!(
            "[year][month][day][hour][minute][second]Z"
        ))?)
    };
    let mut made = Cmd::new("openssl")
        .args(["ca", "-batch", "-notext", "-preserveDN", "-config"])
        .arg(at("cnf"));
    made = made.args([
        "-startdate",
        &moment(signing.from)?,
        "-enddate",
        &moment(signing.until)?,
    ]);
    made = made
        .arg("-in")
        .arg(at("csr"))
        .arg("-out")
        .arg(at("made.crt"))
        .arg("-extfile")
        .arg(at("ext"));
    made = made.arg("-keyfile").arg(signing.ca.1);
    made = if signing.pair.is_leaf() {
        made.arg("-cert").arg(signing.ca.0)
    } else {
        made.arg("-selfsign")
    };
    made.ok()?;
    Ok(())
}

fn client(cluster: &Cluster, subject: &str) -> Result<(String, String)> {
    let base = cluster.root().join("tmp/client");
    let wanted = Wanted {
        base: &base,
        key: P256,
        subject,
        extensions: CLIENT,
        days: LEAF_DAYS,
    };
    certificate(&wanted, Some(&cluster.pki("ca")), None)?;
    Ok((
        fs::read_to_string(base.with_extension("crt"))?,
        fs::read_to_string(base.with_extension("key"))?,
    ))
}

fn manifests(cluster: &Cluster) -> Result<()> {
    let pki = "/etc/kubernetes/pki";
    let flags = |lines: &[(&str, &str)]| -> Vec<String> {
        lines
            .iter()
            .map(|(flag, value)| format!("--{flag}={}", value.replace("PKI", pki)))
            .collect()
    };
    let write = |name: &str, lines: &[(&str, &str)]| -> Result<()> {
        let flags = flags(lines);
        cluster.manifest(name, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    write(
        "kube-apiserver",
        &[
            ("advertise-address", "10.0.0.5"),
            ("client-ca-file", "PKI/ca.crt"),
            ("etcd-cafile", "PKI/etcd/ca.crt"),
            ("etcd-certfile", "PKI/apiserver-etcd-client.crt"),
            ("etcd-keyfile", "PKI/apiserver-etcd-client.key"),
            ("etcd-servers", "https://127.0.0.1:2379"),
            (
                "kubelet-client-certificate",
                "PKI/apiserver-kubelet-client.crt",
            ),
            ("kubelet-client-key", "PKI/apiserver-kubelet-client.key"),
            ("proxy-client-cert-file", "PKI/front-proxy-client.crt"),
            ("proxy-client-key-file", "PKI/front-proxy-client.key"),
            ("requestheader-allowed-names", "front-proxy-client"),
            ("requestheader-client-ca-file", "PKI/front-proxy-ca.crt"),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc.cluster.local",
            ),
            ("service-cluster-ip-range", "10.96.0.0/12"),
            ("tls-cert-file", "PKI/apiserver.crt"),
            ("tls-private-key-file", "PKI/apiserver.key"),
        ],
    )?;
    write(
        "etcd",
        &[
            ("advertise-client-urls", "https://10.0.0.5:2379"),
            ("cert-file", "PKI/etcd/server.crt"),
            ("initial-advertise-peer-urls", "https://10.0.0.5:2380"),
            ("key-file", "PKI/etcd/server.key"),
            (
                "listen-client-urls",
                "https://127.0.0.1:2379,https://10.0.0.5:2379",
            ),
            ("listen-peer-urls", "https://10.0.0.5:2380"),
            ("name", "node1"),
            ("peer-cert-file", "PKI/etcd/peer.crt"),
            ("peer-key-file", "PKI/etcd/peer.key"),
            ("peer-trusted-ca-file", "PKI/etcd/ca.crt"),
            ("trusted-ca-file", "PKI/etcd/ca.crt"),
        ],
    )?;
    write(
        "kube-controller-manager",
        &[
            ("cluster-signing-cert-file", "PKI/ca.crt"),
            ("cluster-signing-key-file", "PKI/ca.key"),
            ("kubeconfig", "/etc/kubernetes/controller-manager.conf"),
        ],
    )?;
    write(
        "kube-scheduler",
        &[("kubeconfig", "/etc/kubernetes/scheduler.conf")],
    )?;
    cluster.write(
        "etc/systemd/system/kubelet.service",
        "[Service]\nExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml \
         --kubeconfig=/etc/kubernetes/kubelet.conf\n",
    )
}

/// Bytes of every file of a guest, the repair's own notes left out.
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Reads them.
    pub fn of(root: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let name = path.strip_prefix(root)?.display().to_string();
                if path.is_dir() && name != "var/lib/rescue" {
                    folders.push(path);
                } else if path.is_file() {
                    found.insert(name, fs::read(&path)?);
                }
            }
        }
        Ok(Self(found))
    }

    /// Paths that only one of the two has, or that differ.
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let all: std::collections::BTreeSet<&String> =
            self.0.keys().chain(other.0.keys()).collect();
        all.into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .cloned()
            .collect()
    }
}
