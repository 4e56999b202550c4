//! Nodes whose disk has no CA key: signed with another disk's in one run, by request and answer, or
//! from a bundle.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde_json::Value;
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::programs::rescue_faulty;
use tests::worker::{Authority, CURRENT, worker};

const NOW: &str = "2026-11-23T08:00:00Z";
/// The same, for openssl.
const NOW_SECONDS: &str = "1795420800";

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("rescue-workers-")
        .tempdir()?)
}

fn contains(ran: &Ran, wanted: &[&str]) -> Result<()> {
    for words in wanted {
        ensure!(
            ran.transcript().contains(words),
            "{words:?} is missing\n{}",
            ran.transcript()
        );
    }
    Ok(())
}

/// The kubelet of this disk has a certificate for this node that openssl verifies with the disk's
/// own CA, its key beside it, in a private file behind an absolute link, and nothing else in it.
fn is_mended(disk: &Disk, name: &str) -> Result<()> {
    disk.assert_clean()?;
    disk.mounted_read_only(|root| {
        let link = fs::read_link(root.join(CURRENT))?;
        ensure!(
            link.is_absolute(),
            "the kubelet wants an absolute link, not {}",
            link.display()
        );
        let pem = root.join(link.strip_prefix("/")?);
        ensure!(
            pem.metadata()?.permissions().mode() & 0o777 == 0o600,
            "the key is readable by others"
        );
        let verify = Cmd::new("openssl").args([
            "verify",
            "-purpose",
            "sslclient",
            "-attime",
            NOW_SECONDS,
            "-CAfile",
        ]);
        verify
            .arg(root.join("etc/kubernetes/pki/ca.crt"))
            .arg(&pem)
            .ok()?;
        let show =
            Cmd::new("openssl").args(["x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in"]);
        let subject = show.arg(&pem).ok()?.stdout;
        ensure!(
            subject.trim() == format!("subject=CN=system:node:{name},O=system:nodes"),
            "{subject}"
        );
        let of_certificate = Cmd::new("openssl")
            .args(["x509", "-noout", "-pubkey", "-in"])
            .arg(&pem)
            .ok()?
            .stdout;
        let of_key = Cmd::new("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&pem)
            .ok()?
            .stdout;
        ensure!(of_certificate == of_key, "the key is not the certificate's");
        let blocks = fs::read_to_string(&pem)?.matches("-----BEGIN").count();
        ensure!(blocks == 2, "{blocks} blocks");
        Ok(())
    })
}

fn current(disk: &Disk) -> Result<PathBuf> {
    disk.mounted_read_only(|root| Ok(fs::read_link(root.join(CURRENT))?))
}

#[test]
fn a_control_plane_and_its_workers_in_one_run() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let (one, two) = (
        worker(&at("w1.img"), "worker1", &authority)?,
        worker(&at("w2.img"), "worker2", &authority)?,
    );
    let old = current(&one)?;

    let alone = rescue(&["inspect", "--now", NOW, text(&one.path)])?;
    ensure!(alone.code == 1, "{}", alone.transcript());
    contains(
        &alone,
        &[
            "a worker has none",
            &format!("rescue repair {} --ca CONTROL-PLANE", text(&one.path)),
        ],
    )?;

    // A worker first: the order on the command line does not matter.
    let disks = [text(&one.path), text(&master.path), text(&two.path)];
    let repaired = rescue(&[&["repair", "--yes", "--now", NOW], &disks[..]].concat())?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    contains(
        &repaired,
        &[
            "signed with the CA key of k8s-master01",
            "3 nodes:",
            "Repaired worker1",
            "Repaired worker2",
        ],
    )?;
    ensure!(
        !repaired.transcript().contains("PRIVATE KEY"),
        "key material was printed"
    );
    let position = |words: &str| repaired.stdout.find(words).unwrap_or(usize::MAX);
    ensure!(
        position("Repaired k8s-master01") < position("Repaired worker1"),
        "the control plane comes first"
    );
    is_mended(&master, "k8s-master01")?;
    is_mended(&one, "worker1")?;
    is_mended(&two, "worker2")?;

    // As the receipt says it, word for word.
    let lines = repaired
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("To take it back: rescue "));
    let line = lines
        .into_iter()
        .find(|line| line.contains(text(&one.path)))
        .context("a line to type")?;
    ensure!(!line.contains(text(&two.path)), "{line}");
    let words: Vec<&str> = line.split(' ').chain(["--yes", "--now", NOW]).collect();
    let undone = rescue(&words)?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    ensure!(
        current(&one)? == old,
        "undo did not bring the old link back"
    );

    // With all disks, the run tells which node is meant.
    let receipt = repaired
        .stdout
        .split("Repaired worker2")
        .nth(1)
        .context("no receipt of worker2")?;
    let run = receipt
        .split("--run ")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .context("no run")?;
    let undone = rescue(&[&["undo", "--yes", "--now", NOW, "--run", run], &disks[..]].concat())?;
    ensure!(
        undone.code == 0 && undone.stdout.contains("is taken back"),
        "{}",
        undone.transcript()
    );
    is_mended(&master, "k8s-master01")?;
    Ok(())
}

#[test]
fn a_disk_that_only_lends_its_ca_is_not_written_to() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let one = worker(&at("w1.img"), "worker1", &authority)?;
    let stranger = worker(&at("w2.img"), "worker2", &Authority::of_another_cluster()?)?;
    let hash = master.sha256()?;

    let seen = rescue(&[
        "inspect",
        "--json",
        "--now",
        NOW,
        text(&one.path),
        "--ca",
        text(&master.path),
    ])?;
    let report = seen.json()?;
    ensure!(
        report["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 1),
        "{report}"
    );

    let both = [
        "repair",
        "--yes",
        "--json",
        "--now",
        NOW,
        "--ca",
        text(&master.path),
        text(&one.path),
        text(&stranger.path),
    ];
    let repaired = rescue(&both)?;
    ensure!(repaired.code == 1, "{}", repaired.transcript());
    let report = repaired.json()?;
    // The stranger's own serving pair is over too; that takes no CA, so it may be mended. Nothing
    // is signed for it.
    let runs = report["receipt"]["runs"].as_array().context("runs")?;
    let signed = runs
        .iter()
        .filter(|run| run["done"].to_string().contains("client certificate"));
    let signed: Vec<&Value> = signed.map(|run| &run["node"]).collect();
    ensure!(signed == ["worker1"], "{report}");
    is_mended(&one, "worker1")?;
    ensure!(
        master.sha256()? == hash,
        "the disk that lent its CA was written to"
    );

    let stranger = rescue(&[
        "inspect",
        "--now",
        NOW,
        text(&stranger.path),
        "--ca",
        text(&master.path),
    ])?;
    ensure!(stranger.code == 1, "{}", stranger.transcript());
    contains(
        &stranger,
        &["another cluster", "CN=kubernetes (sha256:", "k8s-master01"],
    )?;

    for wrong in [text(&one.path), text(&master.path)] {
        let ran = rescue(&[
            "repair",
            "--yes",
            "--now",
            NOW,
            text(&one.path),
            "--ca",
            wrong,
        ])?;
        let expected = if wrong == text(&one.path) { 3 } else { 0 };
        ensure!(ran.code == expected, "{}", ran.transcript());
    }
    let keyless = rescue(&[
        "repair",
        "--yes",
        "--now",
        NOW,
        text(&master.path),
        "--ca",
        text(&one.path),
    ])?;
    ensure!(keyless.code == 3, "{}", keyless.transcript());
    contains(&keyless, &["there is no CA key"])?;
    ensure!(
        master.sha256()? == hash,
        "a refused repair wrote to the disk"
    );
    Ok(())
}

#[test]
fn one_node_that_fails_does_not_stop_the_others() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let (one, two) = (
        worker(&at("w1.img"), "worker1", &authority)?,
        worker(&at("w2.img"), "worker2", &authority)?,
    );
    // Somebody still has the first worker's disk mounted.
    let ran = one.mounted(|_| {
        let disks = [text(&one.path), text(&two.path), "--ca", text(&master.path)];
        rescue(&[&["repair", "--yes", "--json", "--now", NOW], &disks[..]].concat())
    })?;
    ensure!(ran.code == 4, "{}", ran.transcript());
    let report = ran.json()?;
    ensure!(
        report["failed"][0]["name"] == "worker1" && report["failed"][0]["kind"] == "refused",
        "{report}"
    );
    ensure!(
        report["receipt"]["runs"][0]["node"] == "worker2",
        "{report}"
    );
    is_mended(&two, "worker2").context("the other worker")
}

/// A worker's files in a folder: quicker than a disk where the disk is not the point.
fn worker_folder(name: &str, authority: &Authority) -> Result<tempfile::TempDir> {
    let folder = folder()?;
    tests::worker::populate(
        folder.path(),
        name,
        "11111111-2222-4333-8444-555555555555",
        authority,
    )?;
    Ok(folder)
}

/// The control plane's files, as far as signing needs them.
fn control_plane_folder() -> Result<tempfile::TempDir> {
    let folder = folder()?;
    tests::fixtures::unpack_control_plane(folder.path())?;
    Ok(folder)
}

fn read_json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// `sha256:` of a request's public key, by openssl.
fn public_key_hash(request: &str) -> Result<String> {
    use sha2::Digest as _;
    let pem = Cmd::new("openssl")
        .args(["req", "-noout", "-pubkey"])
        .stdin(request)
        .ok()?
        .stdout;
    let body: String = pem
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body)?;
    Ok(format!(
        "sha256:{}",
        sha2::Sha256::digest(der)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    ))
}

#[test]
fn the_ferry_brings_a_certificate_and_no_key_travels() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let one = worker(&at("w1.img"), "worker1", &authority)?;
    let (hash, old) = (one.sha256()?, current(&one)?);
    let (request, signed) = (at("req.json"), at("signed.json"));

    let asked = rescue(&[
        "certs",
        "request",
        "--now",
        NOW,
        text(&one.path),
        "-o",
        text(&request),
    ])?;
    ensure!(asked.code == 0, "{}", asked.transcript());
    contains(
        &asked,
        &[
            "rescue certs sign --ca CONTROL-PLANE",
            "rescue certs install",
        ],
    )?;
    ensure!(one.sha256()? == hash, "a request wrote to the disk");
    let csr = read_json(&request)?["csr"]
        .as_str()
        .context("a request")?
        .to_owned();
    let verified = Cmd::new("openssl")
        .args(["req", "-verify", "-noout", "-subject"])
        .stdin(csr.as_str())
        .ok()?;
    ensure!(
        verified.transcript().contains("self-signature verify OK"),
        "{}",
        verified.transcript()
    );
    let again = rescue(&[
        "certs",
        "request",
        "--now",
        NOW,
        text(&one.path),
        "-o",
        text(&request),
    ])?;
    ensure!(
        again.code == 3 && again.stderr.contains("--force"),
        "{}",
        again.transcript()
    );

    let before = master.sha256()?;
    let sign = [
        "certs",
        "sign",
        "--now",
        NOW,
        "--ca",
        text(&master.path),
        text(&request),
        "-o",
        text(&signed),
    ];
    let ran = rescue(&sign)?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    contains(&ran, &["rescue certs install WORKER"])?;
    ensure!(
        master.sha256()? == before,
        "signing wrote to the control plane's disk"
    );
    for file in [&request, &signed] {
        ensure!(
            !fs::read_to_string(file)?.contains("PRIVATE KEY"),
            "a key travels in {}",
            file.display()
        );
    }

    let dry = rescue(&[
        "certs",
        "install",
        "--dry-run",
        "--now",
        NOW,
        text(&one.path),
        text(&signed),
    ])?;
    ensure!(
        dry.code == 0 && one.sha256()? == hash,
        "{}",
        dry.transcript()
    );
    let installed = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        text(&one.path),
        text(&signed),
    ])?;
    ensure!(installed.code == 0, "{}", installed.transcript());
    ensure!(
        !installed.transcript().contains("PRIVATE KEY"),
        "key material was printed"
    );
    is_mended(&one, "worker1")?;

    let undone = rescue(&["undo", "--yes", "--now", NOW, text(&one.path)])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    ensure!(
        current(&one)? == old,
        "undo did not bring the old link back"
    );

    // Any holder of the CA's key can sign it without rescue.
    let certificate = authority.sign(
        &csr,
        "20261120000000Z",
        "20270101000000Z",
        tests::worker::CLIENT,
    )?;
    fs::write(at("plain.pem"), certificate)?;
    let plain = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        text(&one.path),
        text(&at("plain.pem")),
    ])?;
    ensure!(plain.code == 0, "{}", plain.transcript());
    is_mended(&one, "worker1")
}

#[test]
fn a_lost_key_is_made_anew_on_the_disk() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let master = control_plane_folder()?;
    let one = worker(
        &at("w1.img"),
        "worker1",
        &Authority::of_the_control_plane()?,
    )?;
    // kubelet.conf's user is default-auth: only the host name says who this is.
    one.mounted(|root| {
        let pem = root.join(fs::read_link(root.join(CURRENT))?.strip_prefix("/")?);
        Ok(fs::write(pem, "")?)
    })?;
    let (request, signed) = (at("req.json"), at("signed.json"));
    let ask = [
        "certs",
        "request",
        "--now",
        NOW,
        text(&one.path),
        "-o",
        text(&request),
    ];
    let refused = rescue(&ask)?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("--new-key"),
        "{}",
        refused.transcript()
    );
    ensure!(!request.exists(), "a refused request was written");
    let declined = rescue(&[&ask[..], &["--new-key"]].concat())?;
    ensure!(
        declined.code == 3 && !request.exists(),
        "{}",
        declined.transcript()
    );
    let asked = rescue(&[&ask[..], &["--new-key", "--yes"]].concat())?;
    ensure!(asked.code == 0, "{}", asked.transcript());
    ensure!(
        !asked.transcript().contains("PRIVATE KEY"),
        "key material was printed"
    );
    let pending = "var/lib/kubelet/pki/kubelet-client-requested.key";
    one.mounted_read_only(|root| {
        ensure!(
            root.join(pending).metadata()?.permissions().mode() & 0o777 == 0o600,
            "the new key is readable by others"
        );
        Ok(())
    })?;

    // With a new key nothing in the request proves whose it is: who signs has to know.
    ensure!(
        asked.stdout.contains("--trust worker1"),
        "{}",
        asked.transcript()
    );
    let sign = [
        "certs",
        "sign",
        "--now",
        NOW,
        "--ca",
        text(master.path()),
        text(&request),
        "-o",
        text(&signed),
    ];
    let unproven = rescue(&sign)?;
    ensure!(
        unproven.code == 3 && unproven.stderr.contains("--trust worker1"),
        "{}",
        unproven.transcript()
    );
    ensure!(!signed.exists(), "a request without proof was signed");
    let ran = rescue(&[&sign[..], &["--trust", "worker1"]].concat())?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    let installed = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        text(&one.path),
        text(&signed),
    ])?;
    ensure!(installed.code == 0, "{}", installed.transcript());
    is_mended(&one, "worker1")?;
    one.mounted_read_only(|root| {
        ensure!(!root.join(pending).exists(), "the key still waits");
        Ok(())
    })
}

#[test]
fn nothing_but_nodes_of_the_own_cluster_is_signed() -> Result<()> {
    let master = control_plane_folder()?;
    let one = worker_folder("worker1", &Authority::of_the_control_plane()?)?;
    let stranger = worker_folder("worker2", &Authority::of_another_cluster()?)?;
    let out = folder()?;
    let at = |name: &str| out.path().join(name);
    for (node, file) in [(&one, "good.json"), (&stranger, "stranger.json")] {
        let ran = rescue(&[
            "certs",
            "request",
            "--now",
            NOW,
            text(node.path()),
            "-o",
            text(&at(file)),
        ])?;
        ensure!(ran.code == 0, "{}", ran.transcript());
    }
    let good = read_json(&at("good.json"))?;
    let sign = |request: &Value| -> Result<Ran> {
        fs::write(at("req.json"), request.to_string())?;
        let ca = ["--ca", text(master.path())];
        rescue(
            &[
                &["certs", "sign", "--now", NOW][..],
                &ca,
                &[text(&at("req.json")), "-o", text(&at("signed.json"))],
            ]
            .concat(),
        )
    };
    let refused = |request: &Value, words: &str| -> Result<()> {
        let ran = sign(request)?;
        ensure!(
            ran.code == 3 && ran.stderr.contains(words),
            "wanted {words:?}\n{}",
            ran.transcript()
        );
        ensure!(!at("signed.json").exists(), "something was signed");
        Ok(())
    };
    let with_subject = |subject: &str| -> Result<Value> {
        let csr = tests::worker::request(subject)?.1;
        let mut request = good.clone();
        request["public_key"] = public_key_hash(&csr)?.into();
        request["csr"] = csr.into();
        Ok(request)
    };
    for subject in [
        "/O=system:masters/CN=system:node:worker1",
        "/O=system:nodes/O=system:masters/CN=system:node:worker1",
        "/O=system:nodes/OU=x/CN=system:node:worker1",
        "/CN=system:node:worker1",
        "/O=system:nodes/CN=kubernetes-admin",
        "/O=system:nodes/CN=system:node:",
        "/O=system:nodes/CN=system:node:Worker 1",
    ] {
        refused(&with_subject(subject)?, "asks for").with_context(|| subject.to_owned())?;
    }
    refused(
        &with_subject("/O=system:nodes/CN=system:node:worker9")?,
        "the request in it is for",
    )?;

    // A signature that does not hold: one letter of the request changed.
    let mut tampered = good.clone();
    let csr = good["csr"].as_str().context("a request")?;
    let body: String = csr
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let mut der = base64::engine::general_purpose::STANDARD.decode(body)?;
    let name = der
        .windows(7)
        .position(|bytes| bytes == b"worker1")
        .context("the name")?;
    der[name + 6] = b'9';
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    tampered["csr"] =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
            .into();
    tampered["node"] = "worker9".into();
    refused(&tampered, "signature does not hold")?;

    let mut other_key = good.clone();
    other_key["public_key"] = format!("sha256:{}", "0".repeat(64)).into();
    refused(&other_key, "another key")?;
    refused(&read_json(&at("stranger.json"))?, "another cluster")?;
    refused(
        &serde_json::json!({"schema": "rescue/v1"}),
        "not a file that rescue wrote",
    )?;

    // One bad request among good ones: nothing is signed, and it is named.
    let signed = at("signed.json");
    let all = [
        text(&at("good.json")).to_owned(),
        text(&at("stranger.json")).to_owned(),
    ];
    let both = [
        "certs",
        "sign",
        "--now",
        NOW,
        "--ca",
        text(master.path()),
        &all[0],
        &all[1],
        "-o",
        text(&signed),
    ];
    let ran = rescue(&both)?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("leave these out"),
        "{}",
        ran.transcript()
    );
    let ran = sign(&good)?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    Ok(())
}

#[test]
fn only_the_own_certificate_is_installed() -> Result<()> {
    let authority = Authority::of_the_control_plane()?;
    let other = Authority::of_another_cluster()?;
    let master = control_plane_folder()?;
    let (one, two) = (
        worker_folder("worker1", &authority)?,
        worker_folder("worker2", &authority)?,
    );
    let out = folder()?;
    let at = |name: &str| out.path().join(name);
    let mut requests = Vec::new();
    for (node, file) in [(&one, "one.json"), (&two, "two.json")] {
        let ran = rescue(&[
            "certs",
            "request",
            "--now",
            NOW,
            text(node.path()),
            "-o",
            text(&at(file)),
        ])?;
        ensure!(ran.code == 0, "{}", ran.transcript());
        requests.push(text(&at(file)).to_owned());
    }
    let ca = text(master.path());
    let ran = rescue(&[
        "certs",
        "sign",
        "--now",
        NOW,
        "--ca",
        ca,
        &requests[0],
        &requests[1],
        "-o",
        text(&at("both.json")),
    ])?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    let install = |node: &tempfile::TempDir, file: &str, now: &str| {
        rescue(&[
            "certs",
            "install",
            "--yes",
            "--now",
            now,
            text(node.path()),
            text(&at(file)),
        ])
    };
    let link = |node: &tempfile::TempDir| {
        Ok::<_, anyhow::Error>(fs::read_link(node.path().join(CURRENT))?)
    };
    let old = link(&one)?;
    let refused = |file: &str, now: &str, words: &str| -> Result<()> {
        let ran = install(&one, file, now)?;
        ensure!(
            ran.code == 3 && ran.stderr.contains(words),
            "{file}: wanted {words:?}\n{}",
            ran.transcript()
        );
        ensure!(link(&one)? == old, "{file}: something was installed");
        Ok(())
    };
    let edited = |file: &str, edit: &dyn Fn(&mut Value)| -> Result<()> {
        let mut all = read_json(&at("both.json"))?;
        edit(&mut all);
        Ok(fs::write(at(file), all.to_string())?)
    };
    let entries = |all: &mut Value| {
        all["certificates"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    };
    edited("only-two.json", &|all| {
        let two = entries(all)
            .into_iter()
            .filter(|entry| entry["node"] == "worker2")
            .collect();
        all["certificates"] = Value::Array(two);
    })?;
    refused("only-two.json", NOW, "it is for: worker2")?;
    edited("renamed.json", &|all| {
        let mut two: Vec<Value> = entries(all)
            .into_iter()
            .filter(|entry| entry["node"] == "worker2")
            .collect();
        two[0]["node"] = "worker1".into();
        all["certificates"] = Value::Array(two);
    })?;
    refused("renamed.json", NOW, "in another's name")?;
    edited("twice.json", &|all| {
        let mut twice = entries(all);
        twice[1]["node"] = "worker1".into();
        all["certificates"] = Value::Array(twice);
    })?;
    refused("twice.json", NOW, "two certificates for worker1")?;
    refused("both.json", "2028-01-01T00:00:00Z", "expired")?;
    refused("one.json", NOW, "not a signed-certificates")?;

    let csr = read_json(&at("one.json"))?["csr"]
        .as_str()
        .context("a request")?
        .to_owned();
    let foreign = other.sign(
        &csr,
        "20261120000000Z",
        "20270101000000Z",
        tests::worker::CLIENT,
    )?;
    fs::write(at("foreign.pem"), foreign)?;
    refused("foreign.pem", NOW, "another cluster")?;
    let server = "extendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n";
    fs::write(
        at("server.pem"),
        authority.sign(&csr, "20261120000000Z", "20270101000000Z", server)?,
    )?;
    refused("server.pem", NOW, "clientAuth")?;
    let (_, stranger) = tests::worker::request("/O=system:nodes/CN=system:node:worker1")?;
    let certificate = authority.sign(
        &stranger,
        "20261120000000Z",
        "20270101000000Z",
        tests::worker::CLIENT,
    )?;
    fs::write(at("other-key.pem"), certificate)?;
    refused("other-key.pem", NOW, "a key that is not on this disk")?;

    for node in [&one, &two] {
        let ran = install(node, "both.json", NOW)?;
        // 1: a folder has its helper machine's free space, which may be little.
        ensure!(
            ran.code <= 1 && ran.stdout.contains("Repaired worker"),
            "{}",
            ran.transcript()
        );
    }
    ensure!(link(&one)? != old, "nothing was installed");
    Ok(())
}

const PASSPHRASE: &str = "correct horse battery staple";

/// `rescue` with this passphrase in a file.
fn with_passphrase(folder: &Path, passphrase: &str, words: &[&str]) -> Result<Ran> {
    let file = folder.join("passphrase");
    fs::write(&file, format!("{passphrase}\n"))?;
    let ran = rescue(&[words, &["--now", NOW, "--passphrase-file", text(&file)]].concat())?;
    for secret in ["PRIVATE KEY", passphrase] {
        ensure!(!ran.transcript().contains(secret), "a secret was printed");
    }
    Ok(ran)
}

#[test]
fn a_bundle_brings_many_workers_back() -> Result<()> {
    let folder = folder()?;
    let at = |name: &str| folder.path().join(name);
    let authority = Authority::of_the_control_plane()?;
    let master = control_plane(&at("cp.img"), 700 * MIB)?;
    let one = worker(&at("w1.img"), "worker1", &authority)?;
    let (hash, old, before) = (one.sha256()?, current(&one)?, master.sha256()?);
    let (list, bundle) = (at("list.txt"), at("bundle.age"));
    fs::write(&list, "# rack 1\nworker1\n\nworker2 # new\n")?;

    let make = [
        "certs",
        "bundle",
        "--json",
        "--ca",
        text(&master.path),
        "--workers",
        text(&list),
        "-o",
        text(&bundle),
    ];
    let made = with_passphrase(folder.path(), PASSPHRASE, &make)?;
    ensure!(made.code == 0, "{}", made.transcript());
    let certificates = made.json()?["certificates"].clone();
    ensure!(
        certificates[0]["node"] == "worker1" && certificates[1]["node"] == "worker2",
        "{certificates}"
    );
    ensure!(certificates[0].get("key").is_none(), "{certificates}");
    ensure!(
        master.sha256()? == before,
        "making a bundle wrote to the control plane's disk"
    );
    ensure!(
        bundle.metadata()?.permissions().mode() & 0o777 == 0o600,
        "others can read the bundle"
    );
    let sealed = fs::read(&bundle)?;
    ensure!(
        sealed.starts_with(b"age-encryption.org/v1\n-> scrypt "),
        "no age file"
    );
    for clear in [
        "worker1",
        "PRIVATE KEY",
        "CERTIFICATE",
        "certificate-bundle",
        "rescue",
    ] {
        ensure!(
            !sealed
                .windows(clear.len())
                .any(|bytes| bytes == clear.as_bytes()),
            "{clear:?} is there in clear"
        );
    }
    let again = with_passphrase(folder.path(), PASSPHRASE, &make)?;
    ensure!(
        again.code == 3 && fs::read(&bundle)? == sealed,
        "a bundle was overwritten: {}",
        again.transcript()
    );
    ensure!(
        again.transcript().contains("--force"),
        "{}",
        again.transcript()
    );

    let install = ["certs", "install", "--yes", text(&one.path), text(&bundle)];
    let wrong = with_passphrase(folder.path(), "correct horse battery stable", &install)?;
    ensure!(wrong.code == 3, "{}", wrong.transcript());
    contains(&wrong, &["the passphrase is wrong"])?;
    ensure!(one.sha256()? == hash, "a wrong passphrase changed the disk");

    let installed = with_passphrase(folder.path(), PASSPHRASE, &install)?;
    ensure!(installed.code == 0, "{}", installed.transcript());
    is_mended(&one, "worker1")?;
    let undone = rescue(&["undo", "--yes", "--now", NOW, text(&one.path)])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    ensure!(
        current(&one)? == old,
        "undo did not bring the old link back"
    );
    Ok(())
}

#[test]
fn a_bundle_is_refused_by_nodes_that_it_is_not_for() -> Result<()> {
    let master = control_plane_folder()?;
    let out = folder()?;
    let bundle = out.path().join("bundle.age");
    let make = [
        "certs",
        "bundle",
        "--ca",
        text(master.path()),
        "--workers",
        "worker1,worker2",
        "-o",
        text(&bundle),
    ];
    let made = with_passphrase(out.path(), PASSPHRASE, &make)?;
    ensure!(made.code == 0, "{}", made.transcript());
    contains(&made, &["worker1, valid to", "rescue certs install WORKER"])?;

    let refused = |node: &tempfile::TempDir, file: &Path, words: &str| -> Result<()> {
        let old = fs::read_link(node.path().join(CURRENT))?;
        let install = ["certs", "install", "--yes", text(node.path()), text(file)];
        let ran = with_passphrase(out.path(), PASSPHRASE, &install)?;
        ensure!(
            ran.code == 3 && ran.stderr.contains(words),
            "wanted {words:?}\n{}",
            ran.transcript()
        );
        ensure!(
            fs::read_link(node.path().join(CURRENT))? == old,
            "something was installed"
        );
        Ok(())
    };
    let authority = Authority::of_the_control_plane()?;
    refused(
        &worker_folder("worker3", &authority)?,
        &bundle,
        "it is for: worker1, worker2",
    )?;
    refused(
        &worker_folder("worker1", &Authority::of_another_cluster()?)?,
        &bundle,
        "another cluster",
    )?;
    let cut = out.path().join("cut.age");
    let sealed = fs::read(&bundle)?;
    fs::write(&cut, &sealed[..sealed.len() - 1])?;
    let one = worker_folder("worker1", &authority)?;
    refused(&one, &cut, "damaged or was cut off")?;
    // Without a passphrase and without a terminal.
    let ran = rescue(&[
        "certs",
        "install",
        "--yes",
        "--now",
        NOW,
        text(one.path()),
        text(&bundle),
    ])?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("RESCUE_PASSPHRASE"),
        "{}",
        ran.transcript()
    );
    Ok(())
}

#[test]
fn no_bundle_is_made_from_doubtful_words() -> Result<()> {
    let master = control_plane_folder()?;
    let keyless = worker_folder("worker1", &Authority::of_the_control_plane()?)?;
    let out = folder()?;
    let bundle = out.path().join("bundle.age");
    for (ca, workers, passphrase, words) in [
        (
            &master,
            "worker1,Worker2",
            PASSPHRASE,
            "is not the name of a node",
        ),
        (&master, "worker1,worker1", PASSPHRASE, "is there twice"),
        (&master, "list.txt", PASSPHRASE, "there is no such file"),
        (&master, "worker1", "kq7zv4x", "at least 8 characters"),
        (&keyless, "worker1", PASSPHRASE, "there is no CA key"),
    ] {
        let make = [
            "certs",
            "bundle",
            "--ca",
            text(ca.path()),
            "--workers",
            workers,
            "-o",
            text(&bundle),
        ];
        let ran = with_passphrase(out.path(), passphrase, &make)?;
        ensure!(
            ran.code == 3 && ran.stderr.contains(words),
            "wanted {words:?}\n{}",
            ran.transcript()
        );
        ensure!(!bundle.exists(), "a bundle was made: {workers}");
    }
    Ok(())
}
