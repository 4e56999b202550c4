//! The table that the tests lay: a control plane's disk, an attacker's, and what must not cross
//! between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use tests::command::{Cmd, Ran};
use tests::fixtures::{control_plane_archive, unpack_small_control_plane};
use tests::programs::rescue_faulty;
use tests::worker::{self, Authority};

pub const NOW: &str = "2026-11-23T08:00:00Z";
/// Where kubeadm keeps keys and certificates.
pub const PKI: &str = "etc/kubernetes/pki";
/// The machine ID of the fixture's node.
const UUID: &str = "11111111-2222-4333-8444-555555555555";

/// A folder with a node's files.
pub struct Node {
    pub folder: tempfile::TempDir,
}

impl Node {
    /// The real control plane, without etcd's data.
    pub fn control_plane() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("rescue-trust-cp-")
            .tempdir()?;
        unpack_small_control_plane(folder.path())?;
        Ok(Self { folder })
    }

    /// A second control plane of the same cluster: the first one's files under another name, with
    /// leaves and a kubelet of its own.
    pub fn second_control_plane() -> Result<Self> {
        let node = Self::control_plane()?;
        node.write("etc/hostname", "k8s-master02\n")?;
        node.write("etc/machine-id", "22222222222222222222222222222222\n")?;
        let authority = Authority::of_the_control_plane()?;
        for (file, subject) in [
            ("apiserver", "/CN=kube-apiserver"),
            (
                "apiserver-kubelet-client",
                "/O=system:masters/CN=kube-apiserver-kubelet-client",
            ),
        ] {
            node.leaf(&authority, file, subject)?;
        }
        node.kubelet(&authority, "k8s-master02")?;
        let config = fs::read_to_string(node.at("etc/kubernetes/kubelet.conf"))?;
        node.write(
            "etc/kubernetes/kubelet.conf",
            config.replace("k8s-master01", "k8s-master02"),
        )?;
        Ok(node)
    }

    /// A worker of the same cluster whose kubelet's certificate expired, with its key.
    pub fn worker(name: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("rescue-trust-w-")
            .tempdir()?;
        worker::populate(
            folder.path(),
            name,
            UUID,
            &Authority::of_the_control_plane()?,
        )?;
        let node = Self { folder };
        node.write("etc/machine-id", format!("{}\n", machine_id(name)))?;
        Ok(node)
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let path = self.at(path);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }

    /// Takes the files that match from the real control plane's archive: what anybody who once had
    /// a look at it may hold.
    pub fn take(&self, patterns: &[&str]) -> Result<()> {
        let tar = Cmd::new("tar")
            .args(["--extract", "--zstd", "--wildcards", "--file"])
            .arg(control_plane_archive());
        tar.arg("--directory")
            .arg(self.root())
            .args(patterns)
            .ok()
            .map(drop)
    }

    /// A leaf in pki/ with this subject, signed by `authority`, and its key.
    pub fn leaf(&self, authority: &Authority, file: &str, subject: &str) -> Result<()> {
        let (key, request) = worker::request(subject)?;
        let certificate = authority.sign(
            &request,
            "20230223090000Z",
            "20240223090000Z",
            worker::CLIENT,
        )?;
        self.write(&format!("{PKI}/{file}.crt"), certificate)?;
        self.write(&format!("{PKI}/{file}.key"), key)
    }

    /// Service account keys of its own.
    pub fn service_account_keys(&self) -> Result<()> {
        let (key, public) = (
            self.at(&format!("{PKI}/sa.key")),
            self.at(&format!("{PKI}/sa.pub")),
        );
        Cmd::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .ok()?;
        Cmd::new("openssl")
            .args(["rsa", "-pubout", "-in"])
            .arg(&key)
            .arg("-out")
            .arg(public)
            .ok()
            .map(drop)
    }

    /// A certificate for the kubelet, in the file that its link leads to.
    pub fn kubelet(&self, authority: &Authority, name: &str) -> Result<()> {
        let (key, request) = worker::request(&format!("/O=system:nodes/CN=system:node:{name}"))?;
        let certificate = authority.sign(
            &request,
            "20230223090000Z",
            "20240223090000Z",
            worker::CLIENT,
        )?;
        self.kubelet_pem(&(certificate + &key))
    }

    /// What the kubelet's link leads to; what it had before is gone.
    pub fn kubelet_pem(&self, pem: &str) -> Result<()> {
        let folder = self.at("var/lib/kubelet/pki");
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("kubelet-client-2"))
            {
                fs::remove_file(&path)?;
            }
        }
        let link = fs::read_link(self.at(worker::CURRENT))?;
        self.write(&link.to_string_lossy()[1..], pem)
    }

    /// All files with their bytes.
    pub fn files(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut all = BTreeMap::new();
        collect(self.root(), &mut all)?;
        Ok(all)
    }
}

/// Always the same for a name.
pub fn machine_id(name: &str) -> String {
    name.bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>()
        .chars()
        .chain("0".repeat(32).chars())
        .take(32)
        .collect()
}

fn collect(folder: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() {
            collect(&path, all)?;
        } else if kind.is_file() {
            all.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(())
}

/// The bytes of every private key in some files: the DER within the PEM, so that no other encoding
/// of the PEM hides it.
pub fn private_keys(files: &BTreeMap<PathBuf, Vec<u8>>) -> BTreeSet<Vec<u8>> {
    files
        .values()
        .flat_map(|bytes| blocks(bytes, "PRIVATE KEY"))
        .collect()
}

/// The DER of the PEM blocks with this end of their label; those that a kubeconfig carries as well.
fn blocks(bytes: &[u8], label: &str) -> Vec<Vec<u8>> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
    let text = String::from_utf8_lossy(bytes);
    let mut all = Vec::new();
    for block in text.split("-----BEGIN ").skip(1) {
        let Some((name, rest)) = block.split_once("-----") else {
            continue;
        };
        let body: String = rest
            .split("-----END")
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        all.extend(decode(&body).filter(|der| name.ends_with(label) && !der.is_empty()));
    }
    for line in text.lines() {
        let Some((_, value)) = line.trim().split_once("-data: ") else {
            continue;
        };
        if let Some(pem) = decode(value.trim()) {
            all.extend(blocks(&pem, label));
        }
    }
    all
}

/// A character for each byte: text is searched much faster than bytes are.
fn characters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// How a key may stand in a file: as it is, or in base64 at any alignment.
fn forms(key: &[u8]) -> Vec<String> {
    let middle = &key[key.len() / 4..key.len() / 4 * 3];
    let encoded =
        (0..3).map(|skip| base64::engine::general_purpose::STANDARD_NO_PAD.encode(&middle[skip..]));
    // The last characters depend on what follows.
    encoded
        .map(|text| text[..text.len() - 2].to_owned())
        .chain([characters(middle)])
        .collect()
}

/// That no key of `secrets` is in what was written to the disk since `before`.
pub fn no_key_crossed(
    node: &Node,
    before: &BTreeMap<PathBuf, Vec<u8>>,
    secrets: &BTreeSet<Vec<u8>>,
) -> Result<()> {
    // The fixture's own kubelet's serving key is on both.
    let had = private_keys(before);
    let secrets: Vec<String> = secrets
        .difference(&had)
        .flat_map(|key| forms(key))
        .collect();
    ensure!(!secrets.is_empty(), "there is no secret to look for");
    for (path, bytes) in node
        .files()?
        .iter()
        .filter(|(path, bytes)| before.get(*path) != Some(bytes))
    {
        let text = characters(bytes);
        let joined: String = text.split_ascii_whitespace().collect();
        let found = secrets
            .iter()
            .any(|form| text.contains(form) || joined.contains(form));
        ensure!(
            !found,
            "{} holds a key of the control plane",
            path.display()
        );
    }
    Ok(())
}

/// That no key of `secrets` is on the disk, and that nothing which was written since `before` holds
/// a certificate for anybody but the kubelet of one of `names`.
pub fn nothing_crossed(
    node: &Node,
    before: &BTreeMap<PathBuf, Vec<u8>>,
    secrets: &BTreeSet<Vec<u8>>,
    names: &[&str],
) -> Result<()> {
    no_key_crossed(node, before, secrets)?;
    let old: BTreeSet<Vec<u8>> = before
        .values()
        .flat_map(|bytes| blocks(bytes, "CERTIFICATE"))
        .collect();
    for (path, bytes) in node
        .files()?
        .iter()
        .filter(|(path, bytes)| before.get(*path) != Some(bytes))
    {
        for der in blocks(bytes, "CERTIFICATE")
            .into_iter()
            .filter(|der| !old.contains(der))
        {
            let show = Cmd::new("openssl")
                .args(["x509", "-inform", "DER", "-noout", "-subject", "-issuer"]);
            let shown = show.args(["-nameopt", "RFC2253"]).stdin(der).ok()?.stdout;
            let mut lines = shown.lines();
            let subject = lines.next().unwrap_or_default();
            let is_own = names
                .iter()
                .any(|name| subject == format!("subject=CN=system:node:{name},O=system:nodes"));
            // The kubelet's own serving certificate takes no CA of the cluster's.
            let is_serving = lines.next().is_some_and(|issuer| issuer.contains("-ca@"));
            ensure!(
                is_own || is_serving,
                "{} holds a new certificate: {shown}",
                path.display()
            );
        }
    }
    Ok(())
}

/// Runs the program on folders.
pub fn run(words: &[&str], roots: &[&Node], ca: &[&Node]) -> Result<Ran> {
    let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    all.extend(["--now".to_owned(), NOW.to_owned()]);
    for (flag, nodes) in [("--root", roots), ("--ca", ca)] {
        all.extend(
            nodes
                .iter()
                .flat_map(|node| [flag.to_owned(), node.root().display().to_string()]),
        );
    }
    rescue_faulty(0, all).run()
}

/// That all of these words were printed.
pub fn says(ran: &Ran, wanted: &[&str]) -> Result<()> {
    for words in wanted {
        ensure!(
            ran.transcript().contains(words),
            "{words:?} is missing\n{}",
            ran.transcript()
        );
    }
    Ok(())
}
