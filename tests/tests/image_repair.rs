//! Image files written to: qcow2 through QEMU's own storage daemon, flat VMDK as it is. After every
//! repair, also one that was killed, the image passes `qemu-img check`, and what is below it keeps
//! every byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::programs::{faulty_binary, rescue_faulty};

const NOW: &str = "2026-11-23T08:00:00Z";

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn repair(image: &Path, code: i32) -> Result<Ran> {
    let ran = rescue(&["repair", "--yes", "--now", NOW, text(image)])?;
    ensure!(ran.code == code, "{}", ran.transcript());
    Ok(ran)
}

fn sha256(path: &Path) -> Result<String> {
    Ok(Cmd::new("sha256sum")
        .arg(path)
        .ok()?
        .stdout
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned())
}

type Files = BTreeMap<PathBuf, (u32, u32, u32, i64, Vec<u8>)>;

/// All files under /etc and of the kubelet: bytes, owner, mode, time.
fn snapshot(root: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut todo = vec![
        root.join("etc"),
        root.join("var/lib/kubelet"),
        root.join("root"),
    ];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata()?;
        let bytes = if meta.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else if meta.is_dir() {
            todo.extend(
                fs::read_dir(&path)?
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<Vec<_>>>()?,
            );
            continue;
        } else {
            fs::read(&path)?
        };
        let state = (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), bytes);
        files.insert(path.strip_prefix(root)?.to_owned(), state);
    }
    Ok(files)
}

/// An expired control plane, as raw image, and what is in it.
struct Node {
    folder: tempfile::TempDir,
    raw: Disk,
    before: Files,
}

impl Node {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("rescue-image-repair-")
            .tempdir()?;
        let raw = control_plane(&folder.path().join("node.raw"), 700 * MIB)?;
        let before = raw.mounted_read_only(snapshot)?;
        Ok(Self {
            folder,
            raw,
            before,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn qemu_img(&self, line: &str) -> Result<Ran> {
        Cmd::new("qemu-img")
            .args(line.split(' '))
            .dir(self.folder.path())
            .ok()
    }

    /// What QEMU itself sees in an image: a clean file system, and these files.
    fn files(&self, image: &str) -> Result<Files> {
        self.qemu_img(&format!("check -q {image}"))?;
        self.qemu_img(&format!("convert -O raw {image} seen.raw"))?;
        let seen = Disk {
            path: self.at("seen.raw"),
            ..self.raw.clone()
        };
        seen.assert_clean()?;
        seen.mounted_read_only(snapshot)
    }

    fn is_as_before(&self, image: &str) -> Result<()> {
        let files = self.files(image)?;
        for (path, state) in &self.before {
            ensure!(
                files.get(path) == Some(state),
                "{} is not as it was",
                path.display()
            );
        }
        ensure!(
            files.len() == self.before.len(),
            "something was left behind"
        );
        Ok(())
    }
}

/// The processes that belong to the daemon of an image: itself and what holds it, by the first word
/// of their command lines.
fn daemons(image: &Path) -> Result<Vec<(i32, String)>> {
    let name = image.canonicalize()?.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("qemu-storage-daemon") && line.contains(&name) {
            found.push((pid, line.split('\0').next().unwrap_or_default().to_owned()));
        }
    }
    Ok(found)
}

/// Waits until no daemon has the image open any more; then nothing of it is left.
fn nobody_has(image: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !daemons(image)?.is_empty() {
        ensure!(
            Instant::now() < deadline,
            "a daemon still holds {}",
            image.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_qcow2_over_another_is_repaired_and_the_repair_taken_back() -> Result<()> {
    let node = Node::new()?;
    node.qemu_img("convert -O qcow2 -c node.raw base.qcow2")?;
    node.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2")?;
    node.qemu_img("snapshot -c before disk.qcow2")?;
    let (disk, base) = (node.at("disk.qcow2"), sha256(&node.at("base.qcow2"))?);
    let hash = sha256(&disk)?;

    let seen = rescue(&["inspect", "--now", NOW, text(&disk)])?;
    ensure!(
        seen.code == 1 && seen.stdout.contains("apiserver expired"),
        "{}",
        seen.transcript()
    );
    ensure!(sha256(&disk)? == hash, "looking changed the image");

    repair(&disk, 0)?;
    nobody_has(&disk)?;
    ensure!(
        node.files("disk.qcow2")? != node.before,
        "nothing was repaired"
    );
    let again = rescue(&["inspect", "--now", NOW, text(&disk)])?;
    ensure!(again.code == 0, "{}", again.transcript());

    let undone = rescue(&["undo", "--yes", "--now", NOW, text(&disk)])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    node.is_as_before("disk.qcow2")?;
    ensure!(
        sha256(&node.at("base.qcow2"))? == base,
        "the file below was changed"
    );
    // The snapshot is the disk as it was, byte for byte.
    node.qemu_img("convert -O raw -l before disk.qcow2 snapshot.raw")?;
    ensure!(
        sha256(&node.at("snapshot.raw"))? == sha256(&node.raw.path)?,
        "the snapshot was changed"
    );
    Ok(())
}

/// `kill -9` at several points of a repair: the daemon outlives it, closes the image, and the next
/// run completes what was begun.
#[test]
fn a_repair_of_a_qcow2_that_was_killed_is_completed_by_the_next() -> Result<()> {
    let node = Node::new()?;
    node.qemu_img("convert -O qcow2 node.raw fresh.qcow2")?;
    for at in [2, 30, 60] {
        fs::copy(node.at("fresh.qcow2"), node.at("disk.qcow2"))?;
        let disk = node.at("disk.qcow2");
        let ran = rescue_faulty(at, ["repair", "--yes", "--now", NOW, text(&disk)]).run()?;
        ensure!(
            ran.code == -1,
            "it was not killed at {at}: {}",
            ran.transcript()
        );
        // At once: the daemon of the killed run is waited for.
        repair(&disk, 0).with_context(|| format!("after a kill at {at}"))?;
        let undone = rescue(&["undo", "--yes", "--now", NOW, text(&disk)])?;
        ensure!(undone.code == 0, "{}", undone.transcript());
        node.is_as_before("disk.qcow2")?;
    }
    Ok(())
}

/// `kill -9` of the daemon itself, as when memory runs out: a power cut to the guest, and nothing
/// is left behind on this machine.
#[test]
fn a_daemon_that_is_killed_leaves_nothing_behind() -> Result<()> {
    let node = Node::new()?;
    node.qemu_img("convert -O qcow2 node.raw disk.qcow2")?;
    let disk = node.at("disk.qcow2");
    let scratch = node.at("scratch");
    fs::create_dir(&scratch)?;
    let mut command = Command::new(faulty_binary());
    command
        .env("RESCUE_ABORT_AT", "0")
        .env("TMPDIR", &scratch)
        .args(["repair", "--yes", "--now", NOW, text(&disk)]);
    let mut repairing = Running(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let deadline = Instant::now() + Duration::from_secs(60);
    let daemon = loop {
        let there = daemons(&disk)?
            .into_iter()
            .find(|(_, program)| program.ends_with("qemu-storage-daemon"));
        if let Some((pid, _)) = there {
            break pid;
        }
        ensure!(
            Instant::now() < deadline && repairing.0.try_wait()?.is_none(),
            "no daemon was started"
        );
    };
    std::thread::sleep(Duration::from_millis(300));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(daemon),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    let ended = repairing.0.wait()?;
    ensure!(!ended.success(), "the repair did not notice");
    nobody_has(&disk)?;
    let left: Vec<_> = fs::read_dir(&scratch)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    ensure!(left.is_empty(), "{left:?} stayed");

    node.qemu_img("check -q -r all disk.qcow2")?;
    repair(&disk, 0)?;
    let undone = rescue(&["undo", "--yes", "--now", NOW, text(&disk)])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    node.is_as_before("disk.qcow2")
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_must_not_be_written_to_is_refused_and_stays_as_it_is() -> Result<()> {
    let node = Node::new()?;
    node.qemu_img("convert -O qcow2 node.raw disk.qcow2")?;
    let disk = node.at("disk.qcow2");
    let refused = |image: &Path, words: &[&str]| -> Result<()> {
        let before = sha256(image)?;
        let ran = repair(image, 3)?;
        ensure!(
            words.iter().all(|word| ran.stderr.contains(word)),
            "{words:?} in {}",
            ran.stderr
        );
        ensure!(sha256(image)? == before, "{} was changed", image.display());
        Ok(())
    };
    for (bit, words) in [(1_u8, "was not closed by QEMU"), (2, "marked as corrupt")] {
        File::options()
            .write(true)
            .open(&disk)?
            .write_all_at(&[bit], 79)?;
        refused(&disk, &[words, "qemu-img check -r all"])?;
    }
    // The line to type does what it says.
    node.qemu_img("check -q -r all disk.qcow2")?;

    let node_words = format!(
        "driver=qcow2,node-name=d,file.driver=file,file.filename={}",
        disk.display()
    );
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={}",
        node.at("socket").display()
    );
    let daemon = Command::new("qemu-storage-daemon")
        .args(["--blockdev", &node_words, "--export", &export])
        .stdout(Stdio::null())
        .spawn()?;
    let daemon = Running(daemon);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !node.at("socket").exists() {
        ensure!(Instant::now() < deadline, "the daemon did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    refused(&disk, &["locked the way QEMU locks"])?;
    drop(daemon);

    let path = node.at("empty");
    fs::create_dir(&path)?;
    let words = ["repair", "--yes", "--now", NOW, text(&disk)];
    let ran = Cmd::new(faulty_binary())
        .env("PATH", &path)
        .args(words)
        .run()?;
    ensure!(
        ran.code == 3
            && ran.stderr.contains("no qemu-storage-daemon")
            && ran.stderr.contains("qemu-img convert"),
        "{}",
        ran.transcript()
    );

    for form in ["monolithicSparse", "streamOptimized"] {
        node.qemu_img(&format!(
            "convert -O vmdk -o subformat={form} node.raw disk.vmdk"
        ))?;
        let seen = rescue(&["inspect", "--now", NOW, text(&node.at("disk.vmdk"))])?;
        ensure!(
            seen.code == 1 && seen.stdout.contains("apiserver expired"),
            "{}",
            seen.transcript()
        );
        refused(
            &node.at("disk.vmdk"),
            &[form, "qemu-img convert -f vmdk -O raw"],
        )?;
    }
    Ok(())
}

#[test]
fn a_flat_vmdk_is_repaired_and_the_repair_taken_back() -> Result<()> {
    let node = Node::new()?;
    node.qemu_img("convert -O vmdk -o subformat=monolithicFlat node.raw disk.vmdk")?;
    let disk = node.at("disk.vmdk");
    let descriptor = fs::read(&disk)?;
    repair(&disk, 0)?;
    let undone = rescue(&["undo", "--yes", "--now", NOW, text(&disk)])?;
    ensure!(undone.code == 0, "{}", undone.transcript());
    node.is_as_before("disk.vmdk")?;
    ensure!(fs::read(&disk)? == descriptor, "the descriptor was changed");
    Ok(())
}
