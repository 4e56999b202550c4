//! Block devices that may be written to are read-only until the user has agreed, and as they were
//! afterwards, however the program ends.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::command::Cmd;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition};
use tests::fixtures::unpack_small_control_plane;
use tests::mounts::{Mounted, WholeDisk, in_private_namespace};
use tests::programs::{faulty_binary, rescue_faulty};

const REPAIR: [&str; 5] = ["repair", "--skip", "etcd", "--now", "2026-11-23T08:00:00Z"];

/// An expired control plane on a partition of a disk.
struct Node {
    disk: WholeDisk,
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("rescue-agreed-")
            .tempdir()?;
        let image = folder.path().join("node.img");
        let root = Partition::new(FileSystem::Ext4, "/").label("root");
        let built = DiskBuilder::new(64 * MIB).partition(root).build(&image)?;
        built.mounted(|root| {
            unpack_small_control_plane(root)?;
            Ok(fs::write(
                root.join("etc/fstab"),
                "LABEL=root / auto defaults 0 1\n",
            )?)
        })?;
        Ok(Self {
            disk: WholeDisk::attach(&image, false)?,
            folder,
        })
    }

    fn is_read_only(&self) -> Result<(bool, bool)> {
        Ok((
            is_read_only(self.disk.device())?,
            is_read_only(&self.disk.partition(1))?,
        ))
    }

    /// Until both are writable again.
    fn wait_until_writable(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_read_only()? != (false, false) {
            ensure!(Instant::now() < deadline, "it stays read-only");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn repair(&self) -> Result<tests::command::Ran> {
        rescue_faulty(0, REPAIR)
            .arg("--yes")
            .arg(self.disk.device())
            .run()
    }
}

fn is_read_only(device: &Path) -> Result<bool> {
    Ok(Cmd::new("blockdev")
        .arg("--getro")
        .arg(device)
        .ok()?
        .stdout
        .trim()
        == "1")
}

/// A repair that waits for its answer.
struct Asking {
    child: Child,
    answer: ChildStdin,
    said: ChildStdout,
}

impl Asking {
    fn start(device: &Path) -> Result<Self> {
        let mut command = Command::new(faulty_binary());
        command.env("RESCUE_ABORT_AT", "0").args(REPAIR).arg(device);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (answer, mut said) = (
            child.stdin.take().context("stdin")?,
            child.stdout.take().context("stdout")?,
        );
        let mut text = Vec::new();
        while !text.ends_with(b"Type yes to go on: ") {
            let mut byte = [0];
            ensure!(
                said.read(&mut byte)? == 1,
                "it ended: {}",
                String::from_utf8_lossy(&text)
            );
            text.push(byte[0]);
        }
        Ok(Self {
            child,
            answer,
            said,
        })
    }

    fn answer(mut self, word: &str) -> Result<i32> {
        writeln!(self.answer, "{word}")?;
        self.said.read_to_end(&mut Vec::new())?;
        self.child.wait()?.code().context("killed")
    }

    fn keeper(&self) -> Result<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id()))?;
        let is_keeper = |pid: &&str| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"rescue-keeper\0"))
        };
        Ok(children
            .split_whitespace()
            .find(is_keeper)
            .context("no keeper")?
            .parse()?)
    }

    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

#[test]
fn until_the_answer_is_yes() -> Result<()> {
    let node = Node::new()?;
    let asking = Asking::start(node.disk.device())?;
    ensure!(node.is_read_only()? == (true, true));
    // Nobody writes to it, nobody mounts it for writing.
    for device in [node.disk.device().to_owned(), node.disk.partition(1)] {
        let written = Cmd::new("dd").args(["if=/dev/zero", "bs=512", "count=1", "oflag=direct"]);
        let written = written.arg(format!("of={}", device.display())).run()?;
        ensure!(written.code != 0, "{} was written to", device.display());
    }
    let point = node.folder.path().join("point");
    fs::create_dir(&point)?;
    let mounted =
        in_private_namespace(|| Ok(Mounted::mount(&node.disk.partition(1), &point, "rw").is_ok()))?;
    ensure!(!mounted, "it was mounted");

    ensure!(asking.answer("no")? == 3);
    ensure!(node.is_read_only()? == (false, false), "at once");
    ensure!(Asking::start(node.disk.device())?.answer("yes")? == 0);
    ensure!(node.is_read_only()? == (false, false));
    ensure!(
        rescue_faulty(0, ["inspect", "--skip", "etcd"])
            .arg(node.disk.device())
            .run()?
            .code
            == 0
    );
    Ok(())
}

#[test]
fn a_kill_leaves_nothing_behind() -> Result<()> {
    let node = Node::new()?;
    let asking = Asking::start(node.disk.device())?;
    ensure!(node.is_read_only()? == (true, true));
    asking.kill()?;
    node.wait_until_writable()?;

    // The keeper was killed as well: the next run knows whose flag it is.
    let asking = Asking::start(node.disk.device())?;
    let keeper = nix::unistd::Pid::from_raw(asking.keeper()?.try_into()?);
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL)?;
    asking.kill()?;
    ensure!(node.is_read_only()? == (true, true));
    let repaired = node.repair()?;
    ensure!(repaired.code == 0, "{}", repaired.transcript());
    ensure!(node.is_read_only()? == (false, false));
    Ok(())
}

/// The keeper dies while the question stands, and the answer is yes.
#[test]
fn a_lost_keeper_does_not_stop_a_repair() -> Result<()> {
    let node = Node::new()?;
    let asking = Asking::start(&node.disk.partition(1))?;
    ensure!(
        node.is_read_only()? == (false, true),
        "only the partition was named"
    );
    let keeper = nix::unistd::Pid::from_raw(asking.keeper()?.try_into()?);
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL)?;
    ensure!(asking.answer("yes")? == 0);
    ensure!(node.is_read_only()? == (false, false));
    Ok(())
}

#[test]
fn what_was_read_only_before_stays_so() -> Result<()> {
    let node = Node::new()?;
    Cmd::new("blockdev")
        .arg("--setro")
        .arg(node.disk.device())
        .ok()?;
    let refused = node.repair();
    let seen = node.is_read_only();
    // A loop device keeps the flag for the next file.
    Cmd::new("blockdev")
        .arg("--setrw")
        .arg(node.disk.device())
        .ok()?;
    let refused = refused?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("is read-only"),
        "{}",
        refused.transcript()
    );
    ensure!(
        refused.stderr.contains("blockdev --setrw"),
        "{}",
        refused.transcript()
    );
    ensure!(seen? == (true, true));
    Ok(())
}

#[test]
fn what_this_machine_uses_is_not_touched() -> Result<()> {
    let node = Node::new()?;
    let point = node.folder.path().join("point");
    fs::create_dir(&point)?;
    in_private_namespace(|| {
        let mount = Mounted::mount(&node.disk.partition(1), &point, "rw")?;
        let asking = Asking::start(node.disk.device())?;
        ensure!(
            node.is_read_only()? == (false, false),
            "a mounted disk was set read-only"
        );
        fs::write(point.join("written"), "meanwhile")?;
        ensure!(asking.answer("yes")? == 3);
        mount.unmount()
    })?;
    // Open for writing, as a running machine has it.
    let writer = fs::OpenOptions::new()
        .write(true)
        .open(node.disk.device())?;
    let mut holder = Command::new("sleep")
        .arg("60")
        .stdout(Stdio::from(writer))
        .spawn()?;
    let asking = Asking::start(node.disk.device())?;
    let seen = node.is_read_only();
    holder.kill()?;
    holder.wait()?;
    ensure!(
        seen? == (false, false),
        "a disk that somebody writes to was set read-only"
    );
    ensure!(asking.answer("no")? == 3);
    Ok(())
}

/// Looking does not set the flag: many may look at once.
#[test]
fn two_at_once() -> Result<()> {
    let node = Node::new()?;
    let first = Asking::start(node.disk.device())?;
    ensure!(
        rescue_faulty(0, ["inspect", "--skip", "etcd"])
            .arg(node.disk.device())
            .run()?
            .code
            == 1
    );
    let second = Asking::start(node.disk.device())?;
    ensure!(first.answer("no")? == 3);
    node.wait_until_writable()?;
    ensure!(second.answer("yes")? == 0);
    let path: PathBuf = node.disk.device().to_owned();
    ensure!(!is_read_only(&path)?);
    Ok(())
}
