//! Bad input, each kind: one clear line (or a finding that says what to do), the documented exit
//! code, and nothing changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, DiskBuilder, FileSystem, MIB, Partition, control_plane};
use tests::programs::rescue_faulty;

const NOW: &str = "2026-11-23T08:00:00Z";
const SIZE: u64 = 700 * MIB;

/// Not faulty at all when the abort point is 0: the same program, built with the tests.
fn rescue<const N: usize>(words: [&str; N]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("rescue-bad-").tempdir()?)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// The command was refused with one line that names `words`, and the file is what it was.
fn refused_and_unchanged<const N: usize>(
    image: &Path,
    command: [&str; N],
    words: &[&str],
) -> Result<()> {
    let before = sha256(image)?;
    let ran = rescue(command)?;
    ensure!(
        ran.code == 3,
        "exit code {} instead of 3: {}",
        ran.code,
        ran.transcript()
    );
    one_line_with(&ran.stderr, words)?;
    ensure!(sha256(image)? == before, "{} was changed", image.display());
    Ok(())
}

fn one_line_with(stderr: &str, words: &[&str]) -> Result<()> {
    ensure!(
        stderr.trim_end().lines().count() == 1,
        "not one line: {stderr}"
    );
    ensure!(!stderr.contains("panicked"), "a panic: {stderr}");
    for word in words {
        ensure!(stderr.contains(word), "'{word}' is not in: {stderr}");
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let sum = Cmd::new("sha256sum").arg(path).ok()?;
    Ok(sum.stdout.split(' ').next().unwrap_or_default().to_owned())
}

fn broken_control_plane(
    folder: &Path,
    name: &str,
    damage: impl FnOnce(&Path) -> Result<()> + Send,
) -> Result<Disk> {
    let disk = control_plane(&folder.join(name), SIZE)?;
    disk.mounted(damage)?;
    Ok(disk)
}

/// A repair with only this check leaves the image as it is and says why: exit 1 with the words in
/// its output.
fn left_unrepaired(disk: &Disk, check: &str, words: &[&str]) -> Result<()> {
    let before = disk.sha256()?;
    let ran = rescue([
        "repair",
        "--yes",
        "--now",
        NOW,
        "--only",
        check,
        text(&disk.path),
    ])?;
    ensure!(
        ran.code == 1,
        "exit code {} instead of 1: {}",
        ran.code,
        ran.transcript()
    );
    for word in words {
        ensure!(
            ran.stdout.contains(word),
            "'{word}' is not in: {}",
            ran.transcript()
        );
    }
    ensure!(disk.sha256()? == before, "the image was changed");
    Ok(())
}

#[test]
fn usage_errors_are_code_2() -> Result<()> {
    let nothing_to_check = vec!["inspect", "--only", "etcd", "--skip", "etcd", "x"];
    for words in [
        vec!["inspect"],
        vec![],
        vec!["inspect", "--nonsense", "x"],
        vec!["repair", "--json", "x"],
        nothing_to_check,
    ] {
        let ran = rescue_faulty(0, &words).run()?;
        ensure!(ran.code == 2, "{words:?}: {}", ran.transcript());
    }
    Ok(())
}

#[test]
fn help_is_no_error() -> Result<()> {
    for words in [
        vec!["-h"],
        vec!["--help"],
        vec!["inspect", "-h"],
        vec!["certs", "install", "-h"],
    ] {
        let ran = rescue_faulty(0, &words).run()?;
        ensure!(
            ran.code == 0 && ran.stdout.contains("Usage: rescue"),
            "{words:?}: {}",
            ran.transcript()
        );
    }
    Ok(())
}

#[test]
fn a_disk_that_only_others_may_read() -> Result<()> {
    let folder = folder()?;
    let image = folder.path().join("secret.img");
    fs::write(&image, [0; 4096])?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600))?;
    // The program itself may lie where only root goes.
    let program = folder.path().join("rescue");
    fs::copy(tests::programs::rescue_binary(), &program)?;
    let ran = Cmd::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([text(&program), "inspect", text(&image)])
        .run()?;
    ensure!(ran.code == 3, "{}", ran.transcript());
    one_line_with(
        &ran.stderr,
        &[
            "refused",
            "cannot be opened for reading",
            "Next: run the same command again as root",
        ],
    )
}

#[test]
fn nothing_to_take_back() -> Result<()> {
    let folder = folder()?;
    let disk = control_plane(&folder.path().join("new.img"), SIZE)?;
    let command = ["undo", "--yes", "--now", NOW, text(&disk.path)];
    refused_and_unchanged(
        &disk.path,
        command,
        &[
            "rescue has not repaired k8s-master01",
            "nothing to take back",
        ],
    )
}

#[test]
fn a_disk_that_is_not_there() -> Result<()> {
    let ran = rescue(["inspect", "/nonexistent/disk.img"])?;
    ensure!(ran.code == 3, "{}", ran.transcript());
    one_line_with(&ran.stderr, &["/nonexistent/disk.img", "does not exist"])
}

#[test]
fn a_folder_that_is_no_root() -> Result<()> {
    let folder = folder()?;
    fs::write(folder.path().join("holiday.jpg"), b"not a root")?;
    let ran = rescue(["inspect", "--root", text(folder.path())])?;
    ensure!(ran.code == 3, "{}", ran.transcript());
    one_line_with(&ran.stderr, &[text(folder.path())])
}

#[test]
fn a_truncated_image() -> Result<()> {
    let folder = folder()?;
    let disk = control_plane(&folder.path().join("disk.img"), SIZE)?;
    fs::OpenOptions::new()
        .write(true)
        .open(&disk.path)?
        .set_len(SIZE / 2)?;
    refused_and_unchanged(
        &disk.path,
        ["repair", "--yes", "--now", NOW, text(&disk.path)],
        &["disk.img"],
    )
}

#[test]
fn an_empty_file_and_random_bytes() -> Result<()> {
    let folder = folder()?;
    let empty = folder.path().join("empty.img");
    fs::write(&empty, b"")?;
    refused_and_unchanged(&empty, ["inspect", text(&empty)], &["empty.img"])?;
    let noise = folder.path().join("noise.img");
    let bytes: Vec<u8> = (0..1_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(&noise, bytes)?;
    refused_and_unchanged(&noise, ["inspect", text(&noise)], &["noise.img"])
}

#[test]
fn a_foreign_system() -> Result<()> {
    let folder = folder()?;
    let image = folder.path().join("windows.img");
    let mut bytes = vec![0_u8; 4 << 20];
    bytes[..11].copy_from_slice(b"\xeb\x52\x90NTFS    ");
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&image, bytes)?;
    refused_and_unchanged(&image, ["inspect", text(&image)], &["NTFS"])
}

#[test]
fn an_encrypted_disk() -> Result<()> {
    let folder = folder()?;
    let image = folder.path().join("luks.img");
    let mut bytes = vec![0_u8; 4 << 20];
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x02");
    fs::write(&image, bytes)?;
    refused_and_unchanged(&image, ["inspect", text(&image)], &["LUKS"])
}

#[test]
fn an_image_in_a_format_that_is_not_read() -> Result<()> {
    let folder = folder()?;
    let image = folder.path().join("disk.vdi");
    Cmd::new("qemu-img")
        .args(["create", "-q", "-f", "vdi"])
        .arg(&image)
        .arg("16M")
        .ok()?;
    refused_and_unchanged(
        &image,
        ["inspect", text(&image)],
        &["vdi", "qemu-img convert"],
    )
}

#[test]
fn a_disk_in_use() -> Result<()> {
    let folder = folder()?;
    let disk = control_plane(&folder.path().join("disk.img"), SIZE)?;
    let path = text(&disk.path).to_owned();
    disk.mounted(|_root| {
        let ran = rescue(["repair", "--yes", "--now", NOW, &path])?;
        ensure!(
            ran.code == 3,
            "exit code {} instead of 3: {}",
            ran.code,
            ran.transcript()
        );
        ensure!(
            ran.stderr.contains("rescue: refused (no file was changed)"),
            "{}",
            ran.transcript()
        );
        Ok(())
    })
}

#[test]
fn a_ca_key_that_does_not_match() -> Result<()> {
    let folder = folder()?;
    let disk = broken_control_plane(folder.path(), "disk.img", |root| {
        let pki = root.join("etc/kubernetes/pki");
        // A real key, but nobody's certificate.
        for ca in ["ca", "front-proxy-ca", "etcd/ca"] {
            fs::copy(pki.join("sa.key"), pki.join(format!("{ca}.key")))?;
        }
        Ok(())
    })?;
    left_unrepaired(&disk, "certificates", &["ca.key", "does not match"])
}

#[test]
fn an_unreadable_certificate_is_named_and_left_alone() -> Result<()> {
    let folder = folder()?;
    let disk = broken_control_plane(folder.path(), "disk.img", |root| {
        Ok(fs::write(
            root.join("etc/kubernetes/pki/apiserver.crt"),
            b"this was a certificate once\n",
        )?)
    })?;
    let ran = rescue([
        "repair",
        "--yes",
        "--now",
        NOW,
        "--only",
        "certificates",
        text(&disk.path),
    ])?;
    ensure!(ran.stdout.contains("apiserver.crt"), "{}", ran.transcript());
    disk.mounted_read_only(|root| {
        let apiserver = fs::read(root.join("etc/kubernetes/pki/apiserver.crt"))?;
        let rebuilt = apiserver.starts_with(b"-----BEGIN CERTIFICATE-----");
        ensure!(
            rebuilt || apiserver == b"this was a certificate once\n",
            "half a certificate was written"
        );
        ensure!(
            rebuilt || ran.code == 1,
            "left broken, but exit code {}",
            ran.code
        );
        Ok(())
    })
}

#[test]
fn a_kubeconfig_that_is_not_yaml() -> Result<()> {
    const GARBAGE: &[u8] = b"\x00\x00\x00{{{: not yaml";
    let folder = folder()?;
    let disk = broken_control_plane(folder.path(), "disk.img", |root| {
        fs::write(root.join("root/.kube/config"), GARBAGE)?;
        // kubeadm's own comes back; one with more in it than kubeadm wrote does not.
        fs::write(
            root.join("etc/kubernetes/controller-manager.conf"),
            [GARBAGE, b"\nserver: a\nserver: b\n"].concat(),
        )?;
        Ok(fs::write(
            root.join("etc/kubernetes/scheduler.conf"),
            GARBAGE,
        )?)
    })?;
    let ran = rescue(["repair", "--yes", "--now", NOW, text(&disk.path)])?;
    ensure!(
        ran.code == 1,
        "exit code {} instead of 1: {}",
        ran.code,
        ran.transcript()
    );
    ensure!(
        ran.stdout.contains("holds more than kubeadm wrote"),
        "{}",
        ran.transcript()
    );
    disk.mounted_read_only(|root| {
        for file in [
            "root/.kube/config",
            "etc/kubernetes/controller-manager.conf",
        ] {
            ensure!(
                fs::read(root.join(file))?.starts_with(GARBAGE),
                "{file} was changed"
            );
        }
        let rebuilt = fs::read_to_string(root.join("etc/kubernetes/scheduler.conf"))?;
        ensure!(
            rebuilt.contains("name: system:kube-scheduler@kubernetes"),
            "scheduler.conf was not rebuilt"
        );
        Ok(())
    })
}

#[test]
fn a_full_disk_where_nothing_may_be_freed() -> Result<()> {
    let folder = folder()?;
    let disk = broken_control_plane(folder.path(), "disk.img", |root| {
        let free = rustix::fs::statvfs(root)?;
        tests::fill::images(root, free.f_bfree * free.f_frsize / 100 * 98)?;
        // The last bytes hold a database, which nothing may delete either.
        let mut database = fs::File::create(root.join("var/lib/containerd/last.db"))?;
        while std::io::Write::write_all(&mut database, &[7; 4096]).is_ok() {}
        Ok(())
    })?;
    left_unrepaired(&disk, "disk-full", &["/var/lib/containerd"])
}

#[test]
fn a_worker_without_a_ca_key_is_told_what_it_needs() -> Result<()> {
    let folder = folder()?;
    let disk = broken_control_plane(folder.path(), "disk.img", |root| {
        let etc = root.join("etc/kubernetes");
        let ca = fs::read(etc.join("pki/ca.crt"))?;
        for gone in ["pki", "manifests"] {
            fs::remove_dir_all(etc.join(gone))?;
        }
        for gone in ["admin.conf", "controller-manager.conf", "scheduler.conf"] {
            fs::remove_file(etc.join(gone))?;
        }
        fs::create_dir(etc.join("pki"))?;
        fs::create_dir(etc.join("manifests"))?;
        fs::remove_dir_all(root.join("root/.kube"))?;
        Ok(fs::write(etc.join("pki/ca.crt"), ca)?)
    })?;
    left_unrepaired(&disk, "certificates", &["worker", "control plane"])?;
    // A worker's kubelet flags stay as they are: without the flag it could never bootstrap again.
    let before = disk.sha256()?;
    let ran = rescue(["repair", "--yes", "--now", NOW, text(&disk.path)])?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    ensure!(
        disk.sha256()? == before,
        "the worker was changed: {}",
        ran.transcript()
    );
    Ok(())
}

#[test]
fn a_clock_behind_the_disk_is_refused_without_now() -> Result<()> {
    let folder = folder()?;
    // As if the rescued machine's RTC had lost its battery: everything on the disk is newer than
    // this machine's clock.
    let disk = broken_control_plane(folder.path(), "disk.img", |root| {
        Cmd::new("find")
            .arg(root)
            .args([
                "-xdev",
                "-exec",
                "touch",
                "-h",
                "-d",
                "2037-01-01",
                "{}",
                "+",
            ])
            .ok()?;
        Ok(())
    })?;
    refused_and_unchanged(
        &disk.path,
        ["inspect", text(&disk.path)],
        &["clock", "--now"],
    )?;
    let ran = rescue(["inspect", "--now", "2037-01-02T00:00:00Z", text(&disk.path)])?;
    ensure!(
        ran.code == 1,
        "--now overrules the clock: {}",
        ran.transcript()
    );
    Ok(())
}

#[test]
fn two_copies_of_one_disk_are_not_both_repaired() -> Result<()> {
    let folder = folder()?;
    let disk = control_plane(&folder.path().join("disk.img"), SIZE)?;
    let copy = disk.copy_to(&folder.path().join("copy.img"))?;
    let command = [
        "repair",
        "--yes",
        "--now",
        NOW,
        text(&disk.path),
        text(&copy.path),
    ];
    refused_and_unchanged(
        &disk.path,
        command,
        &["copies of one system", "copy.img", "--node"],
    )?;
    refused_and_unchanged(&copy.path, command, &["copies of one system"])?;
    let ran = rescue([
        "repair",
        "--yes",
        "--now",
        NOW,
        "--node",
        text(&copy.path),
        text(&disk.path),
        text(&copy.path),
    ])?;
    ensure!(
        ran.code == 0,
        "named, it is clear which is meant: {}",
        ran.transcript()
    );
    Ok(())
}

#[test]
fn two_roots_are_not_repaired_unattended() -> Result<()> {
    let folder = folder()?;
    let root = |uuid: &str| Partition::new(FileSystem::Ext4, "/").size(SIZE).uuid(uuid);
    let disk = DiskBuilder::new(2 * SIZE + 64 * MIB)
        .partition(root(tests::fixtures::ROOT_UUID))
        .partition(Partition::new(FileSystem::Ext4, "/mnt/second").size(SIZE))
        .build(&folder.path().join("disk.img"))?;
    disk.mounted(|root| {
        tests::fixtures::unpack_control_plane(&root.join("mnt/second"))?;
        tests::fixtures::unpack_control_plane(root)
    })?;
    refused_and_unchanged(
        &disk.path,
        ["repair", "--yes", "--now", NOW, text(&disk.path)],
        &["--node"],
    )
}
