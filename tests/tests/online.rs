//! `--root /` on a running node: the fixture is "/" of a process namespace of its own, with a
//! program that has a log open.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::fill;
use tests::programs::faulty_binary;

const NOW: &str = "2026-11-23T08:00:00Z";

/// Becomes process 1 of a system whose root is the folder given, with /proc, /dev and /run as a
/// running system has them.
const BECOME_ROOT: &str = r#"
set -e
cd "$1"
mount -t proc proc proc
mount -t devtmpfs dev dev
mkdir -p mnt
pivot_root . mnt
exec 3</dev/null
/run/bin/busybox umount -l /mnt
cd /
exec /run/bin/busybox sh -c "$2"
"#;

/// Runs `script` (busybox's sh) with the guest mounted at `root` as its `/`, and `rescue` in its
/// path.
fn inside(root: &Path, script: &str) -> Result<Ran> {
    let bin = root.join("run/bin");
    Cmd::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(root.join("run"))
        .ok()?;
    fs::create_dir_all(&bin)?;
    for (from, name) in [
        (Path::new("/bin/busybox"), "busybox"),
        (&faulty_binary(), "rescue"),
    ] {
        fs::copy(from, bin.join(name)).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let script = format!("export PATH=/run/bin; busybox --install -s /run/bin; {script}");
    let ran = Cmd::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            BECOME_ROOT,
            "become-root",
        ])
        .arg(root)
        .arg(&script)
        .env("RESCUE_ABORT_AT", "0")
        .run();
    Cmd::new("umount").arg(root.join("run")).ok()?;
    ran
}

fn full_disk(folder: &Path) -> Result<Disk> {
    let disk = control_plane(&folder.join("disk.img"), 1024 * MIB)?;
    disk.mounted(fill::to_enospc)?;
    Ok(disk)
}

#[test]
fn a_running_node_is_repaired_around_what_its_processes_have_open() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-online-")
        .tempdir()?;
    let disk = full_disk(folder.path())?;
    disk.mounted(|root| {
        let held = "/var/log/vmware-vmsvc-root.1.log";
        ensure!(
            root.join(held.trim_start_matches('/')).exists(),
            "the fixture has no {held}"
        );
        let size = fs::metadata(root.join(held.trim_start_matches('/')))?.len();
        let old = fs::read(root.join("etc/kubernetes/pki/apiserver.crt"))?;

        let script = format!(
            "sleep 60 <{held} & sleep 61 <>/var/lib/etcd/member/snap/db & rescue repair --yes \
             --now {NOW} --root /; echo code $?"
        );
        let ran = inside(root, &script)?;
        let out = &ran.stdout;
        ensure!(out.contains("code 0"), "{}", ran.transcript());
        ensure!(
            fs::metadata(root.join(held.trim_start_matches('/')))?.len() == size,
            "{held} was touched"
        );
        ensure!(
            !root.join("var/log/vmware-vmsvc-root.2.log").exists(),
            "nothing was freed\n{}",
            ran.transcript()
        );
        ensure!(
            fs::read(root.join("etc/kubernetes/pki/apiserver.crt"))? != old,
            "nothing was renewed"
        );
        for words in [
            "Now restart (rescue restarts nothing by itself)",
            "mv /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/etcd.yaml.restarting && sleep \
             25; mv",
            "systemctl restart kubelet",
            "etcd is running: sleep (process",
        ] {
            ensure!(
                out.contains(words),
                "{words:?} is missing\n{}",
                ran.transcript()
            );
        }
        ensure!(!out.contains("can be booted"), "{}", ran.transcript());
        ensure!(
            !root.join("proc/.rescue").exists() && !root.join("run/.rescue").exists(),
            "wrote to the kernel's folders"
        );

        let undone = inside(
            root,
            &format!("rescue undo --yes --now {NOW} --root /; echo code $?"),
        )?;
        ensure!(undone.stdout.contains("code 0"), "{}", undone.transcript());
        ensure!(
            fs::read(root.join("etc/kubernetes/pki/apiserver.crt"))? == old,
            "undo did not restore"
        );
        Ok(())
    })?;
    disk.assert_clean()
}

#[test]
fn what_is_held_open_is_named_and_the_receipt_is_for_programs_too() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-online-")
        .tempdir()?;
    let disk = full_disk(folder.path())?;
    disk.mounted(|root| {
        // All of the logs at once: nothing may go.
        let script = format!(
            "sleep 60 & for f in $(find /var/log /var/cache /var/crash /var/lib/systemd -type f \
             -size +100k 2>/dev/null); do sleep 60 <$f & done; rescue inspect --now {NOW} \
             --details --root /; rescue repair --dry-run --json --now {NOW} --root / >/run/plan; \
             cat /run/plan"
        );
        let ran = inside(root, &script)?;
        ensure!(
            ran.stdout.contains(") holds it open"),
            "{}",
            ran.transcript()
        );
        let json = ran.stdout.lines().last().context("no output")?;
        let json: serde_json::Value =
            serde_json::from_str(json).with_context(|| ran.transcript())?;
        let plan = json["nodes"][0]["plan"]["steps"]
            .as_array()
            .context("no plan")?;
        let freed: Vec<_> = plan
            .iter()
            .filter(|step| step["kind"] == "free-space")
            .collect();
        for step in &freed {
            for file in step["candidates"].as_array().into_iter().flatten() {
                ensure!(file["size"].as_u64() < Some(110_000), "{file} is held open");
            }
        }
        Ok(())
    })
}

#[test]
fn a_second_run_is_refused_while_the_first_has_the_lock() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-online-")
        .tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 700 * MIB)?;
    disk.mounted(|root| {
        // The lock that a repair takes is on the root folder itself.
        let first = fs::File::open(root)?;
        rustix::fs::flock(&first, rustix::fs::FlockOperation::LockExclusive)?;
        let ran = inside(
            root,
            &format!("rescue repair --yes --now {NOW} --root /; echo code $?"),
        )?;
        drop(first);
        ensure!(ran.stdout.contains("code 3"), "{}", ran.transcript());
        ensure!(
            ran.stderr.contains("another rescue is working on /"),
            "{}",
            ran.transcript()
        );
        // The same root under another name is the same system.
        let script = format!(
            "mount --bind / /mnt; rescue inspect --json --now {NOW} --root /mnt >/run/seen; grep \
             -c '\"source\":\"/\"' /run/seen; umount /mnt"
        );
        let ran = inside(root, &script)?;
        ensure!(ran.stdout.trim() == "1", "{}", ran.transcript());
        Ok(())
    })
}

#[test]
fn chroots_containers_and_strangers_are_refused() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-online-")
        .tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 700 * MIB)?;
    disk.mounted(|root| {
        let refused = |script: &str, words: &str| {
            let ran = inside(root, &format!("{script}; echo code $?"))?;
            ensure!(
                ran.stdout.contains("code 3") && ran.stderr.contains(words),
                "{words:?}\n{}",
                ran.transcript()
            );
            Ok(())
        };
        refused(
            "mkdir /srv/x; mount -t tmpfs t /srv/x; cd /srv/x; mkdir etc bin proc r; touch \
             etc/fstab; mount -t proc p proc; mount --bind /run/bin r; chroot /srv/x /r/rescue \
             inspect --root /",
            "this is a chroot",
        )?;
        refused(
            "mkdir -p /run/systemd; echo docker >/run/systemd/container; rescue inspect --root /",
            "root of a container",
        )?;
        refused(
            "mv /etc/kubernetes /etc/no; mv /var/lib/kubelet /var/lib/no; rescue inspect --root /; \
             c=$?; mv /etc/no /etc/kubernetes; mv /var/lib/no /var/lib/kubelet; (exit $c)",
            "no Kubernetes node",
        )?;
        refused("unshare -U rescue inspect --root /", "you are not root")?;
        Ok(())
    })
}
