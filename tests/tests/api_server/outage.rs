//! The outage's case: three masters, a member of etcd broken, its API server down. One command with
//! the three disks; then all members serve, and an API server on each lists the same objects as
//! before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::etcd::{Cluster, Version, files, guest};
use tests::{Cmd, endpoint, programs};

use crate::real_programs;

/// An API server on one member of etcd; ends with the value.
struct ApiServer {
    process: Child,
    port: u16,
    programs: PathBuf,
    folder: tempfile::TempDir,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const TOKEN: &str = "only-for-this-test";

impl ApiServer {
    /// Starts it; `None` where it does not become ready.
    fn start(programs: &Path, etcd: &str) -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        fs::write(
            at("tokens"),
            format!("{TOKEN},admin,admin,system:masters\n"),
        )?;
        Cmd::new("openssl")
            .args(["genrsa", "-out"])
            .arg(at("sa.key"))
            .arg("2048")
            .ok()?;
        let port = endpoint::next_port()?;
        let log = fs::File::create(at("log"))?;
        let process = Command::new(programs.join("kube-apiserver"))
            .arg(format!("--etcd-servers={etcd}"))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.path().display()))
            .arg(format!("--token-auth-file={}", at("tokens").display()))
            .arg(format!(
                "--service-account-key-file={}",
                at("sa.key").display()
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                at("sa.key").display()
            ))
            .arg(format!("--bind-address={}", endpoint::address()))
            .args([
                "--advertise-address=192.0.2.1",
                "--endpoint-reconciler-type=none",
            ])
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/24",
            ])
            .args([
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting kube-apiserver")?;
        let mut server = Self {
            process,
            port,
            programs: programs.to_owned(),
            folder,
        };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(90) {
            if server.process.try_wait()?.is_some() {
                break;
            }
            if server
                .kubectl()
                .args(["get", "--raw", "/readyz"])
                .run()?
                .code
                == 0
            {
                return Ok(Some(server));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let said = fs::read_to_string(server.folder.path().join("log")).unwrap_or_default();
        eprintln!(
            "kube-apiserver on {etcd}: {}",
            said.lines().rev().take(5).collect::<Vec<_>>().join("\n")
        );
        Ok(None)
    }

    fn kubectl(&self) -> Cmd {
        let server = format!("--server=https://{}:{}", endpoint::address(), self.port);
        Cmd::new(self.programs.join("kubectl"))
            .args([
                server.as_str(),
                "--insecure-skip-tls-verify",
                "--token",
                TOKEN,
                "--request-timeout=10s",
            ])
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", "/dev/null")
    }

    /// Every object of the kinds that are made here: kind, namespace and name, UID, resource
    /// version, contents.
    fn objects(&self) -> Result<Vec<String>> {
        let kinds = "namespaces,configmaps,secrets,deployments,clusterroles";
        let list = self
            .kubectl()
            .args(["get", kinds, "--all-namespaces", "-o", "json"])
            .ok()?
            .json()?;
        let object = |item: &Value| {
            format!(
                "{} {} {} {}",
                item["kind"], item["metadata"], item["data"], item["spec"]
            )
        };
        Ok(list["items"]
            .as_array()
            .context("a list")?
            .iter()
            .map(object)
            .collect())
    }
}

/// Puts in what a cluster in use has.
fn fill(server: &ApiServer) -> Result<()> {
    for number in 0..20 {
        let text = format!("--from-literal=text={}", "x".repeat(number * 50));
        server
            .kubectl()
            .args(["create", "configmap", &format!("config{number}"), &text])
            .ok()?;
    }
    server
        .kubectl()
        .args(["create", "namespace", "shop"])
        .ok()?;
    server
        .kubectl()
        .args([
            "create",
            "secret",
            "generic",
            "password",
            "-n",
            "shop",
            "--from-literal=p=secret",
        ])
        .ok()?;
    server
        .kubectl()
        .args([
            "create",
            "deployment",
            "web",
            "-n",
            "shop",
            "--image=example.invalid/web:1",
        ])
        .ok()?;
    server
        .kubectl()
        .args(["delete", "configmap", "config3"])
        .ok()
        .map(|_| ())
}

/// The outage: the power fails while objects are written, and the second master's disk comes back
/// without its database's last pages and with a hole in its log.
fn break_member(data_dir: &Path) -> Result<()> {
    let db = files::database(data_dir);
    files::cut(&db, fs::metadata(&db)?.len() / 3)?;
    files::write_at(&files::newest_log(data_dir)?, &[0x55; 6000 - 4096], 4096)
}

/// `flags`: what the repair needs besides `--yes`; without them it must be refused.
fn outage(broken: &[usize], flags: &[&str]) -> Result<()> {
    let Some(programs) = real_programs() else {
        return Ok(());
    };
    let programs = fs::canonicalize(programs)?;
    let mut cluster = Cluster::prepare(&Version::debian(), 3, 10_000, guest::place)?;
    let masters = guest::make_all(&cluster, &[])?;
    cluster.run()?;
    let server = ApiServer::start(&programs, &cluster.members[0].client_url())?
        .context("a new API server")?;
    fill(&server)?;
    let before = server.objects()?;
    ensure!(before.len() > 40, "{before:#?}");
    drop(server);
    cluster.kill()?;
    for number in broken {
        break_member(&cluster.members[*number].data_dir)?;
    }
    ensure!(
        cluster.run().is_err(),
        "a broken member starts: this proves nothing"
    );
    cluster.kill()?;

    let repair = |flags: &[&str]| {
        let repair = programs::rescue(["repair", "--yes", "--only", "etcd"]).args(flags);
        masters
            .iter()
            .fold(repair, |repair, root| repair.arg("--root").arg(root))
            .run()
    };
    if !flags.is_empty() {
        let refused = repair(&[])?;
        ensure!(
            refused.code != 0 && refused.stderr.contains(flags[0]),
            "{}",
            refused.transcript()
        );
    }
    let repair = repair(flags)?;
    ensure!(repair.code == 0, "{}", repair.transcript());
    cluster.run().with_context(|| repair.transcript())?;
    let healthy = cluster
        .ctl(0)
        .args(["endpoint", "health", "--cluster"])
        .ok()?;
    ensure!(
        (healthy.stdout + &healthy.stderr)
            .matches("is healthy")
            .count()
            == 3,
        "not all members are healthy"
    );
    for number in 0..3 {
        let server = ApiServer::start(&programs, &cluster.members[number].client_url())?;
        let now = server
            .with_context(|| format!("an API server on m{}", number + 1))?
            .objects()?;
        ensure!(
            now == before,
            "m{} lists {} objects instead of {}",
            number + 1,
            now.len(),
            before.len()
        );
    }
    Ok(())
}

#[test]
fn one_of_three_masters_is_broken() -> Result<()> {
    outage(&[1], &[])
}

/// What the two had acknowledged without the third cannot be known: somebody has to agree to that.
#[test]
fn two_of_three_masters_are_broken() -> Result<()> {
    outage(&[1, 2], &["--accept-loss"])
}
