//! `rescue certs schedule`: the timer judged by systemd and by running what it runs, the log
//! rotation judged by logrotate.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{MIB, control_plane};
use tests::fill;
use tests::fixtures::unpack_control_plane;
use tests::programs::rescue_faulty;

const NOW: &str = "2026-11-23T08:00:00Z";
const SCRIPT: &str = "usr/local/sbin/kubeadm-certs-renew";
const TIMER: &str = "etc/systemd/system/kubeadm-certs-renew.timer";
const ENABLED: &str = "etc/systemd/system/timers.target.wants/kubeadm-certs-renew.timer";

fn schedule(root: &Path, more: &[&str]) -> Result<Ran> {
    let words = [
        "certs",
        "schedule",
        "--yes",
        "--now",
        NOW,
        "--root",
        text(root),
    ];
    rescue_faulty(0, words.iter().chain(more)).run()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn program(root: &Path, path: &str, content: &str) -> Result<()> {
    let path = root.join(path);
    fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(
        &path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A kubeadm of that version as its Debian package installs it. It writes down how it is called.
fn install_kubeadm(root: &Path, version: &str) -> Result<()> {
    let package = format!("\nPackage: kubeadm\nStatus: hold ok installed\nVersion: {version}-00\n");
    fs::OpenOptions::new()
        .append(true)
        .open(root.join("var/lib/dpkg/status"))?
        .write_all(package.as_bytes())?;
    let called = format!(
        "#!/bin/sh\nif [ \"$1\" = version ]; then echo v{version}; exit; fi\n\
         echo \"kubeadm $*\" >>/calls\n\
         case \"$*\" in *renew*) echo renewed >>/etc/kubernetes/admin.conf ;; esac\n"
    );
    program(root, "usr/bin/kubeadm", &called)
}

/// A crictl that knows one container of each static pod, and starts it anew when it is stopped, as
/// the kubelet would.
const CRICTL: &str = r#"#!/bin/sh
case "$*" in
*" ps "*)
    for word; do name=${word##*container.name=}; done
    cat "/container-$name" 2>/dev/null || true ;;
*" stop "*)
    for word; do id=$word; done
    echo "stop $id" >>/calls
    echo "$id+" >"/container-${id%%-[0-9]*}" ;;
esac
"#;

/// A node with a kubeadm, and with what its script needs to be run in a chroot.
fn node(version: &str) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-schedule-")
        .tempdir()?;
    let root = folder.path();
    unpack_control_plane(root)?;
    install_kubeadm(root, version)?;
    program(root, "usr/bin/crictl", CRICTL)?;
    fs::copy("/bin/busybox", root.join("usr/bin/busybox"))?;
    if !root.join("bin").exists() {
        symlink("usr/bin", root.join("bin"))?;
    }
    for applet in ["sh", "cat", "cp", "mv", "cmp", "sleep"] {
        let path = root.join("bin").join(applet);
        if !path.exists() {
            symlink("/usr/bin/busybox", path)?;
        }
    }
    for name in [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
    ] {
        fs::write(
            root.join(format!("container-{name}")),
            format!("{name}-1\n"),
        )?;
    }
    Ok(folder)
}

/// Runs the script as systemd would, and returns the calls that it made.
fn run_script(root: &Path) -> Result<Vec<String>> {
    let _ = fs::remove_file(root.join("calls"));
    Cmd::new("chroot")
        .arg(root)
        .arg(format!("/{SCRIPT}"))
        .ok()?;
    Ok(fs::read_to_string(root.join("calls"))?
        .lines()
        .map(str::to_owned)
        .collect())
}

fn systemd_accepts(root: &Path) -> Result<()> {
    // A guest has systemd's own units; the fixture was stripped of them.
    let units = root.join("usr/lib/systemd/system");
    fs::create_dir_all(&units)?;
    for entry in fs::read_dir("/lib/systemd/system")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".target") && !entry.file_type()?.is_dir()
        {
            fs::write(
                units.join(entry.file_name()),
                fs::read(entry.path()).unwrap_or_default(),
            )?;
        }
    }
    let ran = Cmd::new("systemd-analyze")
        .arg(format!("--root={}", text(root)))
        .args([
            "--man=no",
            "verify",
            "kubeadm-certs-renew.service",
            "kubeadm-certs-renew.timer",
        ])
        .run()?;
    let about_ours = ran
        .transcript()
        .lines()
        .filter(|line| line.contains("kubeadm-certs-renew"))
        .count();
    ensure!(ran.code == 0 && about_ours == 0, "{}", ran.transcript());
    let timer = fs::read_to_string(root.join(TIMER))?;
    let calendar = timer
        .lines()
        .find_map(|line| line.strip_prefix("OnCalendar="))
        .context("no OnCalendar=")?;
    let ran = Cmd::new("systemd-analyze")
        .args(["calendar", "--iterations=14", calendar])
        .ok()?;
    // Fourteen monthly runs: every certificate of a year is renewed long before it ends.
    ensure!(
        ran.stdout.contains("Next elapse") && ran.stdout.contains("Iter. #14"),
        "{}",
        ran.transcript()
    );
    Ok(())
}

fn snapshot(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![root.join("etc"), root.join("usr/local"), root.join("root")];
    while let Some(path) = todo.pop() {
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        let content = if meta.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
            Vec::new()
        } else {
            fs::read(&path)?
        };
        files.insert(path, content);
    }
    Ok(files)
}

#[test]
fn the_timer_runs_the_right_kubeadm_and_is_undone() -> Result<()> {
    for (version, call) in [
        ("1.18.20", "kubeadm alpha certs renew all"),
        ("1.20.2", "kubeadm certs renew all"),
    ] {
        let folder = node(version)?;
        let root = folder.path();
        fs::copy(
            root.join("etc/kubernetes/admin.conf"),
            root.join("root/.kube/config"),
        )?;
        let before = snapshot(root)?;
        let ran = schedule(root, &[])?;
        ensure!(
            ran.code == 0 && ran.stdout.contains(&format!("`{call}`")),
            "{}",
            ran.transcript()
        );
        ensure!(
            fs::read_link(root.join(ENABLED))? == Path::new("/").join(TIMER),
            "not enabled"
        );
        systemd_accepts(root)?;

        let calls = run_script(root)?;
        let expected = [
            call,
            "stop etcd-1",
            "stop kube-apiserver-1",
            "stop kube-controller-manager-1",
            "stop kube-scheduler-1",
        ];
        ensure!(calls == expected, "{version}: {calls:?}");
        let (admin, copy) = (
            fs::read(root.join("etc/kubernetes/admin.conf"))?,
            fs::read(root.join("root/.kube/config"))?,
        );
        ensure!(
            admin == copy && admin.ends_with(b"renewed\n"),
            "the copy of admin.conf is stale"
        );
        // What somebody changed is his.
        fs::write(root.join("root/.kube/config"), "mine")?;
        run_script(root)?;
        ensure!(
            fs::read(root.join("root/.kube/config"))? == b"mine",
            "a changed kubeconfig was overwritten"
        );
        for path in ["etc/kubernetes/admin.conf", "root/.kube/config"].map(|path| root.join(path)) {
            fs::write(&path, &before[&path])?;
        }

        let again = schedule(root, &[])?;
        ensure!(
            again.code == 0 && again.stdout.contains("Nothing was changed"),
            "{}",
            again.transcript()
        );
        let undone =
            rescue_faulty(0, ["undo", "--yes", "--now", NOW, "--root", text(root)]).ok()?;
        ensure!(undone.stdout.contains(SCRIPT), "{}", undone.transcript());
        ensure!(snapshot(root)? == before, "undo left something behind");
    }
    Ok(())
}

#[test]
fn an_upgraded_kubeadm_is_asked_for_its_version() -> Result<()> {
    let folder = node("1.18.20")?;
    schedule(folder.path(), &[])?;
    install_kubeadm(folder.path(), "1.22.3")?;
    let calls = run_script(folder.path())?;
    ensure!(
        calls
            .first()
            .is_some_and(|call| call == "kubeadm certs renew all"),
        "{calls:?}"
    );
    Ok(())
}

#[test]
fn what_would_not_work_is_refused() -> Result<()> {
    let folder = node("1.20.2")?;
    let root = folder.path();
    let before = snapshot(root)?;
    let refused = |words: &str| {
        let ran = schedule(root, &["--json"])?;
        ensure!(
            ran.code == 3 && ran.stderr.contains(words),
            "{words:?}: {}",
            ran.transcript()
        );
        ensure!(
            ran.json()?["error"]["kind"] == "refused",
            "{}",
            ran.transcript()
        );
        Ok(())
    };
    let away = |path: &str| fs::rename(root.join(path), root.join("away"));
    let back = |path: &str| fs::rename(root.join("away"), root.join(path));

    away("usr/bin/kubeadm")?;
    refused("there is no kubeadm on this node")?;
    back("usr/bin/kubeadm")?;

    away("usr/bin/crictl")?;
    refused("there is no crictl on this node, and its container runtime is containerd")?;
    back("usr/bin/crictl")?;

    fs::write(root.join(TIMER), "[Timer]\nOnCalendar=daily\n")?;
    refused("was not made by rescue")?;
    fs::remove_file(root.join(TIMER))?;

    away("etc/kubernetes/manifests/kube-apiserver.yaml")?;
    fs::rename(
        root.join("etc/kubernetes/pki/apiserver.key"),
        root.join("key"),
    )?;
    refused("this node is a worker")?;
    fs::rename(
        root.join("key"),
        root.join("etc/kubernetes/pki/apiserver.key"),
    )?;
    back("etc/kubernetes/manifests/kube-apiserver.yaml")?;
    ensure!(snapshot(root)? == before, "a refusal changed something");
    Ok(())
}

#[test]
fn what_renews_already_is_left_to_do_it() -> Result<()> {
    let folder = node("1.20.2")?;
    let root = folder.path();
    let timer = root.join("etc/systemd/system/k8s-certs-renew.timer");
    fs::write(
        &timer,
        "[Timer]\nOnCalendar=Mon *-*-1,2,3,4,5,6,7 03:00:00\n",
    )?;
    let ran = schedule(root, &[])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("kubespray's own timer"),
        "{}",
        ran.transcript()
    );
    ensure!(!root.join(TIMER).exists(), "a second timer was added");
    fs::remove_file(timer)?;
    fs::create_dir_all(root.join("etc/cron.d"))?;
    fs::write(
        root.join("etc/cron.d/certs"),
        "0 3 1 * * root kubeadm certs renew all\n",
    )?;
    let ran = schedule(root, &[])?;
    ensure!(
        ran.stdout
            .contains("/etc/cron.d/certs runs `kubeadm certs renew` already"),
        "{}",
        ran.transcript()
    );
    fs::remove_file(root.join("etc/cron.d/certs"))?;

    schedule(root, &[])?;
    ensure!(root.join(TIMER).exists(), "no timer");
    let removed = schedule(root, &["--remove"])?;
    ensure!(removed.code == 0, "{}", removed.transcript());
    for path in [TIMER, ENABLED, SCRIPT] {
        ensure!(
            root.join(path).symlink_metadata().is_err(),
            "{path} is still there"
        );
    }
    Ok(())
}

#[test]
fn the_log_that_filled_the_disk_is_rotated_from_now_on() -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-schedule-")
        .tempdir()?;
    let disk = control_plane(&folder.path().join("disk.img"), 700 * MIB)?;
    disk.mounted(|root| {
        install_kubeadm(root, "1.20.2")?;
        program(root, "usr/sbin/logrotate", "")?;
        fill::to_enospc(root)
    })?;
    let image = text(&disk.path);
    let run =
        |words: &[&str]| rescue_faulty(0, words.iter().chain(&["--yes", "--now", NOW, image])).ok();
    run(&["repair", "--only", "disk-full"])?;
    let ran = run(&["certs", "schedule"])?;
    ensure!(
        ran.stdout
            .contains("add a rule for logrotate: /var/log/vmware-*[!0-9].log took"),
        "{}",
        ran.transcript()
    );
    disk.assert_clean()?;

    disk.mounted(|root| {
        let log = root.join("var/log");
        fs::write(log.join("vmware-vmsvc-root.log"), vec![b'x'; 21 << 20])?;
        fs::write(log.join("vmware-vmsvc-root.1.log"), vec![b'x'; 21 << 20])?;
        // logrotate of this machine, with the guest's own configuration and state, in the guest's
        // place.
        let rotate = "mount --rbind /usr \"$1/usr\"; for f in bin lib lib64 sbin; do [ -e \
            \"$1/$f\" ] || ln -s usr/$f \"$1/$f\"; done; mount -t tmpfs t \"$1/var/lib\"; chown -R \
            0:0 \"$1/etc/logrotate.d\"; chroot \"$1\" /usr/sbin/logrotate -d /etc/logrotate.conf \
            2>&1; umount \"$1/var/lib\"; umount -l \"$1/usr\"";
        let ran = Cmd::new("sh")
            .args(["-c", rotate, "rotate", text(root)])
            .ok()?;
        ensure!(
            !ran.stdout.contains("duplicate log entry") && !ran.stdout.contains("error:"),
            "{}",
            ran.transcript()
        );
        ensure!(
            ran.stdout
                .contains("considering log /var/log/vmware-vmsvc-root.log"),
            "{}",
            ran.transcript()
        );
        ensure!(
            !ran.stdout
                .contains("considering log /var/log/vmware-vmsvc-root.1.log"),
            "{}",
            ran.transcript()
        );
        let ours = ran
            .stdout
            .split("considering log /var/log/vmware-vmsvc-root.log")
            .nth(1)
            .unwrap_or_default();
        ensure!(ours.contains("log needs rotating"), "{}", ran.transcript());
        Ok(())
    })?;

    let again = run(&["certs", "schedule"])?;
    ensure!(
        again.stdout.contains("Nothing was changed"),
        "{}",
        again.transcript()
    );
    run(&["undo"])?;
    disk.mounted(|root| {
        ensure!(
            !root.join("etc/logrotate.d/rescue-vmware").exists(),
            "undo left the rule"
        );
        // A rule of somebody else for the same file is not doubled.
        fs::write(
            root.join("etc/logrotate.d/open-vm-tools"),
            "/var/log/vmware-*.log {\n  weekly\n}\n",
        )?;
        Ok(())
    })?;
    let ran = run(&["certs", "schedule", "--logs-only"])?;
    ensure!(
        ran.stdout
            .contains("/etc/logrotate.d/open-vm-tools:1 rotates /var/log/vmware-"),
        "{}",
        ran.transcript()
    );
    ensure!(
        ran.stdout.contains("Nothing was changed"),
        "{}",
        ran.transcript()
    );
    Ok(())
}
