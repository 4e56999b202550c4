//! A control plane's disk and a worker's that says it is one, in a machine that boots from the ISO
//! with nobody there: both are repaired as what they are, and no key crosses.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use base64::Engine as _;
use tests::Cmd;
use tests::disk::{MIB, control_plane};
use tests::fixtures::unpack_small_control_plane;
use tests::qemu::{BOOT, Controller, Firmware, Medium, Vm, iso};
use tests::worker::{Authority, CURRENT, worker};

/// How long one command may take in an emulated machine.
const ANSWER: Duration = Duration::from_secs(400);

/// A line of each key of the control plane as PEM has it, but for the kubelet's serving key, which
/// the worker was made with, too.
fn key_lines() -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    unpack_small_control_plane(folder.path())?;
    let mut lines = Vec::new();
    for key in [
        "ca",
        "front-proxy-ca",
        "etcd/ca",
        "sa",
        "apiserver",
        "apiserver-kubelet-client",
    ] {
        let pem = fs::read_to_string(folder.path().join(format!("etc/kubernetes/pki/{key}.key")))?;
        lines.extend(pem.lines().nth(3).map(str::to_owned));
    }
    let within: Vec<String> = lines
        .iter()
        .map(|line| base64::engine::general_purpose::STANDARD.encode(&line.as_bytes()[..48]))
        .collect();
    lines.extend(within);
    Ok(lines)
}

#[test]
fn in_the_all_nodes_mode_a_worker_stays_a_worker() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-iso-trust-")
        .tempdir()?;
    let master = control_plane(&folder.path().join("cp.img"), 700 * MIB)?;
    let attacker = worker(
        &folder.path().join("w.img"),
        "worker1",
        &Authority::of_the_control_plane()?,
    )?;
    attacker.mounted(|root| {
        fs::create_dir_all(root.join("etc/kubernetes/manifests"))?;
        Ok(fs::write(
            root.join("etc/kubernetes/manifests/kube-apiserver.yaml"),
            "",
        )?)
    })?;
    // What was deleted while the image was made is not what crosses.
    attacker.mounted(|root| {
        let zeros = Cmd::new("sh")
            .arg("-c")
            .arg("dd if=/dev/zero of=zeros bs=1M 2>/dev/null; sync; rm zeros; sync");
        zeros.dir(root).ok().map(drop)
    })?;
    let patterns = folder.path().join("patterns");
    fs::write(&patterns, key_lines()?.join("\n") + "\n")?;
    let is_found = |disk: &std::path::Path| -> Result<bool> {
        Ok(Cmd::new("grep")
            .args(["-a", "-c", "-F", "-f"])
            .arg(&patterns)
            .arg(disk)
            .run()?
            .code
            == 0)
    };
    ensure!(
        is_found(&master.path)? && !is_found(&attacker.path)?,
        "the search does not tell the disks apart"
    );

    let iso = iso(&["rescue.auto=repair", "rescue.all-nodes"])?;
    // The worker first: the order of the disks does not matter.
    let vm = Vm::new(Firmware::Bios, Medium::Cd, &iso, 512);
    let vm = vm
        .disk(Controller::VirtioBlk, &attacker.path)
        .disk(Controller::VirtioBlk, &master.path);
    let mut machine = vm.start()?;
    machine.expect("=== rescue receipt", BOOT)?;
    let said = machine.expect("rescue: exit ", ANSWER)?;
    machine.wait_off(ANSWER)?;
    for words in [
        "worker1 says that it is a control plane",
        "for node worker1",
        "Repaired k8s-master01",
        "--trust",
    ] {
        ensure!(said.contains(words), "{words:?} is missing\n{said}");
    }
    ensure!(!said.contains("copy /etc/kubernetes"), "{said}");
    ensure!(
        !is_found(&attacker.path)?,
        "a key of the control plane is on the worker's disk"
    );
    attacker.assert_clean()?;
    attacker.mounted_read_only(|root| {
        let pem = root.join(fs::read_link(root.join(CURRENT))?.strip_prefix("/")?);
        let shown = Cmd::new("openssl")
            .args(["x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in"])
            .arg(&pem)
            .ok()?;
        ensure!(
            shown.stdout.trim() == "subject=CN=system:node:worker1,O=system:nodes",
            "{}",
            shown.stdout
        );
        ensure!(
            Cmd::new("openssl")
                .args(["x509", "-noout", "-checkend", "0", "-in"])
                .arg(&pem)
                .run()?
                .code
                == 0,
            "not renewed"
        );
        ensure!(
            !root.join("etc/kubernetes/pki/ca.key").exists(),
            "the worker holds the CA's key"
        );
        Ok(())
    })
}
