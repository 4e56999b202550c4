//! Real consumers judge a repaired node: etcd 3.4 and kube-apiserver 1.20.2 start with the flags of
//! the node's own static pods on its own data, and kubectl 1.20.2 asks with each kubeconfig.
//!
//! Runs only where `RESCUE_KUBERNETES` names a folder with `kube-apiserver` and `kubectl`
//! (`scripts/test --with-kubernetes`); they take minutes to build.

mod outage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::fixtures::{MARKER_WORD, NODE_NAME};
use tests::{Cmd, fixtures, programs};

/// Exit code and output of each question, by its name.
type Answers = BTreeMap<String, (i32, String)>;

const CONFIGS: [&str; 3] = ["admin.conf", "controller-manager.conf", "scheduler.conf"];
const LEAVES: [&str; 7] = [
    "apiserver",
    "apiserver-kubelet-client",
    "front-proxy-client",
    "apiserver-etcd-client",
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
];

/// The folder of the real programs; none: says so.
fn real_programs() -> Option<PathBuf> {
    let folder = std::env::var_os("RESCUE_KUBERNETES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!(
            "NOTE: not judged by a real API server: set RESCUE_KUBERNETES (scripts/test \
             --with-kubernetes)"
        );
    }
    folder
}

/// The expired node; its admin.conf of before lies ready for the question that must be refused.
fn node() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_control_plane(folder.path())
        .context("unpacking the real node (are you root?)")?;
    fs::copy(
        folder.path().join("etc/kubernetes/admin.conf"),
        folder.path().join("tmp/expired.conf"),
    )?;
    Ok(folder)
}

fn repair(root: &Path, more: &[&str]) -> Result<()> {
    let arguments = [
        "--only",
        "authorities",
        "--only",
        "certificates",
        "--only",
        "admin-kubeconfig",
        "--root",
    ];
    programs::rescue(["repair", "--yes"])
        .args(arguments)
        .arg(root)
        .args(more)
        .ok()?;
    Ok(())
}

fn ask(root: &Path, programs: &Path) -> Result<Answers> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api_server/serve.sh");
    let ran = Cmd::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
        ])
        .arg(script)
        .arg(root)
        .arg(fs::canonicalize(programs)?)
        .timeout(Duration::from_secs(300))
        .ok()?;
    let mut answers = Answers::new();
    for part in ran.stdout.split("\n== ") {
        let (head, answer) = part.split_once('\n').unwrap_or((part, ""));
        let (name, code) = head
            .trim_start_matches("== ")
            .rsplit_once(' ')
            .context("a question without a code")?;
        // OpenSSL before 3.2 puts spaces around the `=` of names.
        answers.insert(
            name.to_owned(),
            (code.parse()?, answer.trim().replace(" = ", "=")),
        );
    }
    Ok(answers)
}

/// Insists that a question was answered, and that its answer holds this.
fn granted(answers: &Answers, name: &str, holds: &str) -> Result<()> {
    let (code, answer) = answers
        .get(name)
        .with_context(|| format!("{name} was not asked: {answers:#?}"))?;
    ensure!(
        *code == 0 && answer.contains(holds),
        "{name}: {code} {answer}, without {holds:?}\n{answers:#?}"
    );
    Ok(())
}

/// Insists that a question was refused in these words.
fn refused(answers: &Answers, name: &str, words: &str) -> Result<()> {
    let (code, answer) = answers
        .get(name)
        .with_context(|| format!("{name} was not asked: {answers:#?}"))?;
    ensure!(
        *code != 0 && answer.contains(words),
        "{name}: {code} {answer}, without {words:?}"
    );
    Ok(())
}

/// The whole examination of a repaired node.
fn serves(root: &Path, programs: &Path) -> Result<()> {
    let answers = ask(root, programs)?;
    granted(&answers, "ready", "ok")?;
    let node = format!("node/{NODE_NAME}");
    for config in ["/etc/kubernetes/admin.conf", "/root/.kube/config"] {
        granted(&answers, &format!("{config} nodes"), &node)?;
        granted(&answers, &format!("{config} marker"), MARKER_WORD)?;
    }
    // What is forbidden names who asked: the API server's own word on whom the certificate made of
    // its bearer.
    granted(
        &answers,
        "controller-manager accounts",
        "serviceaccount/default",
    )?;
    refused(
        &answers,
        "controller-manager roles",
        "User \"system:kube-controller-manager\" cannot create",
    )?;
    granted(&answers, "scheduler pods", "pod/")?;
    refused(
        &answers,
        "scheduler secrets",
        "User \"system:kube-scheduler\" cannot list",
    )?;
    granted(&answers, "kubelet own node", &node)?;
    refused(
        &answers,
        "kubelet secrets",
        &format!("User \"system:node:{NODE_NAME}\" cannot list"),
    )?;
    granted(
        &answers,
        "api server to kubelet",
        "CN=kube-apiserver-kubelet-client",
    )?;
    granted(&answers, "nobody", "403 Forbidden")?;
    granted(&answers, "nobody", "system:anonymous")?;
    refused(&answers, "expired", "Unauthorized")?;
    Ok(())
}

#[test]
fn an_expired_node_does_not_serve() -> Result<()> {
    let Some(programs) = real_programs() else {
        return Ok(());
    };
    let node = node()?;
    let answers = ask(node.path(), &programs)?;
    let (code, _) = answers.get("ready").context("not asked")?;
    ensure!(
        *code != 0,
        "an expired node serves: this judge proves nothing\n{answers:#?}"
    );
    // For that reason, and no other.
    granted(&answers, "logs", "certificate has expired")
}

#[test]
fn renewed() -> Result<()> {
    let Some(programs) = real_programs() else {
        return Ok(());
    };
    let node = node()?;
    repair(node.path(), &[])?;
    serves(node.path(), &programs)
}

#[test]
fn leaves_deleted_and_rebuilt() -> Result<()> {
    let Some(programs) = real_programs() else {
        return Ok(());
    };
    let node = node()?;
    for (leaf, ending) in LEAVES
        .iter()
        .flat_map(|leaf| [(leaf, "crt"), (leaf, "key")])
    {
        fs::remove_file(
            node.path()
                .join(format!("etc/kubernetes/pki/{leaf}.{ending}")),
        )?;
    }
    // The one address is in no file but the lost certificate (kubeadm keeps it in the cluster).
    repair(
        node.path(),
        &["--san", "k8s-vip.example.internal", "--san", "172.20.5.10"],
    )?;
    serves(node.path(), &programs)
}

#[test]
fn kubeconfigs_emptied_and_rebuilt() -> Result<()> {
    let Some(programs) = real_programs() else {
        return Ok(());
    };
    let node = node()?;
    for config in CONFIGS {
        fs::write(node.path().join("etc/kubernetes").join(config), "")?;
    }
    repair(node.path(), &[])?;
    serves(node.path(), &programs)
}

#[test]
fn authorities_renewed() -> Result<()> {
    let Some(programs) = real_programs() else {
        return Ok(());
    };
    let node = node()?;
    shorten_authorities(node.path())?;
    repair(node.path(), &["--renew-ca"])?;
    serves(node.path(), &programs)
}

/// Signs each CA anew with its own key, name and key identifier, to end the day after tomorrow: as
/// after nearly ten years.
fn shorten_authorities(root: &Path) -> Result<()> {
    for name in ["ca", "front-proxy-ca", "etcd/ca"] {
        let base = root.join("etc/kubernetes/pki").join(name);
        let (certificate, key) = (base.with_extension("crt"), base.with_extension("key"));
        let extensions = root.join("tmp/ca.ext");
        fs::write(
            &extensions,
            "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\n\
             basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n",
        )?;
        let request = root.join("tmp/ca.csr");
        let convert = Cmd::new("openssl")
            .args(["x509", "-x509toreq", "-in"])
            .arg(&certificate)
            .arg("-signkey")
            .arg(&key);
        convert.arg("-out").arg(&request).ok()?;
        let sign = Cmd::new("openssl")
            .args(["x509", "-req", "-days", "2", "-set_serial", "0", "-in"])
            .arg(&request);
        sign.arg("-signkey")
            .arg(&key)
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(&certificate)
            .ok()?;
    }
    Ok(())
}
