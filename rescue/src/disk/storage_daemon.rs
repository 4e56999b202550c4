//! qcow2 images written to by QEMU itself: its storage daemon shows the disk in one as a plain
//! file, by FUSE, and the repair writes there as to a raw image.
//!
//! Two processes of a session of their own hold it: the daemon, and a shell that waits for the end
//! of this program. If that comes early (`kill -9`), the kernel unmounts the guest's file systems
//! first, the daemon still answers, and only when nobody has the file open any more does it end,
//! and close the image properly. Both live in a mount namespace of their own: nothing is left
//! mounted.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::base::refusal::Refusal;
use crate::disk::image::Format;
use crate::disk::image::qcow2::Layout;

const PROGRAM: &str = "qemu-storage-daemon";
/// So long may the daemon take to open an image or to close it on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// `$1`: the folder with the file to show the disk as; then the daemon's own words. The read ends
/// with this program, however that ends. The last `umount` is for a daemon that was killed: its
/// mount stays, dead, and would keep the folder.
const HOLD: &str = r#"
folder=$1
shift
"$@" >"$folder/log" 2>&1 &
daemon=$!
read -r _
while kill -0 $daemon 2>/dev/null && ! umount "$folder/disk" 2>/dev/null; do sleep 0.05; done
kill $daemon 2>/dev/null
wait $daemon
status=$?
umount -l "$folder/disk" 2>/dev/null
rm -rf "$folder"
exit $status
"#;

/// An image that the daemon holds. Dropping it ends the daemon.
#[derive(Debug)]
pub struct StorageDaemon {
    image: PathBuf,
    child: Child,
    /// Closing it tells the shell that we are done.
    alive: Option<ChildStdin>,
}

impl StorageDaemon {
    /// Has the daemon open `image` for writing, and what is below it for reading; gives the disk of
    /// `length` bytes as an open file. Whoever holds that file must drop it before this.
    ///
    /// # Errors
    /// A [`Refusal`] when there is no daemon, or it cannot open the image.
    pub fn start(image: &Path, layout: &Layout, length: u64) -> Result<(Self, File)> {
        let node = node(image, &layout.backing)?;
        let folder = nix::unistd::mkdtemp(&std::env::temp_dir().join("rescue-image-XXXXXX"))
            .context("making a folder")?;
        let disk = folder.join("disk");
        File::create(&disk).context("making the file to show the disk as")?;
        let export = serde_json::json!({
            "type": "fuse", "id": "disk", "node-name": "disk", "mountpoint": disk.to_str(),
            "writable": true,
        });
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                HOLD,
                "sh",
            ])
            .arg(&folder);
        command.args([
            PROGRAM,
            "--blockdev",
            &node,
            "--export",
            &export.to_string(),
        ]);
        // Away from the terminal's Ctrl-C, which is ours to answer.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("starting unshare (util-linux)")?;
        let alive = child.stdin.take();
        let mut daemon = Self {
            image: image.to_path_buf(),
            child,
            alive,
        };
        let shown = PathBuf::from(format!(
            "/proc/{}/root{}",
            daemon.child.id(),
            disk.display()
        ));
        let file = daemon.wait_for(&shown, &folder.join("log"), length)?;
        Ok((daemon, file))
    }

    /// The file has no length until the daemon shows the disk in its place.
    fn wait_for(&mut self, shown: &Path, log: &Path, length: u64) -> Result<File> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if std::fs::metadata(shown).is_ok_and(|metadata| metadata.len() == length) {
                return File::options()
                    .read(true)
                    .write(true)
                    .open(shown)
                    .context("opening the disk in the image");
            }
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let said = said.trim();
            if !said.is_empty() || Instant::now() > deadline {
                return Err(self.refuse(said).into());
            }
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(self
                    .refuse("unshare or sh is missing or did not start")
                    .into());
            }
            std::thread::sleep(POLL);
        }
    }

    fn refuse(&self, said: &str) -> Refusal {
        let image = self.image.display();
        let said = said
            .strip_prefix("qemu-storage-daemon: ")
            .unwrap_or(said)
            .replace(|c: char| c.is_control(), " ");
        if said.contains("lock") {
            return Refusal::new(
                format!("QEMU says that {image}, or a file below it, is in use ({said})"),
                "writing to the disk of a running machine destroys it",
                "power that machine off, then run this again",
            );
        }
        Refusal::new(
            format!("QEMU's storage daemon cannot show the disk in {image}: {said}"),
            "nothing was changed",
            by_converting(&self.image),
        )
    }

    /// Ends the daemon and waits until it has closed the image.
    ///
    /// # Errors
    /// When it did not end well: the image must be checked.
    pub fn stop(mut self) -> Result<()> {
        let status = self.end().context("waiting for QEMU's storage daemon")?;
        let image = crate::base::shell::quoted(&self.image);
        anyhow::ensure!(
            status.is_some_and(|status| status.success()),
            "QEMU's storage daemon did not close {image} ({}); check it with `qemu-img check \
             {image}`",
            status.map_or_else(|| "it still runs".to_owned(), |status| status.to_string())
        );
        Ok(())
    }

    /// `None`: it has not ended.
    fn end(&mut self) -> std::io::Result<Option<ExitStatus>> {
        drop(self.alive.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if Instant::now() > deadline => return Ok(None),
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        if self.alive.is_some() {
            let _ = self.end();
        }
    }
}

/// What the daemon is to open, spelt out file by file: it must not follow the header's own words to
/// other files, nor guess formats.
fn node(image: &Path, backing: &[(PathBuf, Format)]) -> Result<String> {
    let mut below = serde_json::Value::Null;
    for (path, format) in backing.iter().rev() {
        below = layer(path, *format, below)?;
    }
    let mut top = layer(image, Format::Qcow2, below)?;
    if let Some(top) = top.as_object_mut() {
        top.insert("node-name".into(), "disk".into());
        top.insert("read-only".into(), false.into());
    }
    Ok(top.to_string())
}

fn layer(path: &Path, format: Format, below: serde_json::Value) -> Result<serde_json::Value> {
    let path = path
        .to_str()
        .with_context(|| format!("{} is no text", path.display()))?;
    let file = serde_json::json!({ "driver": "file", "filename": path });
    Ok(match format {
        Format::Qcow2 => {
            serde_json::json!({
                "driver": "qcow2", "read-only": true, "file": file, "backing": below
            })
        }
        _ => serde_json::json!({ "driver": "raw", "read-only": true, "file": file }),
    })
}

/// Refuses when there is no daemon on this machine.
pub fn require(image: &Path) -> Result<()> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&folders).any(|folder| folder.join(PROGRAM).is_file()) {
        return Ok(());
    }
    let next = format!(
        "apt-get install qemu-system-common (it has it on Debian and Ubuntu) and run this again, \
         or {}",
        by_converting(image)
    );
    Err(Refusal::new(
        format!(
            "{} is a qcow2 image, and there is no {PROGRAM} on this machine",
            image.display()
        ),
        "rescue reads qcow2 by itself, but leaves writing to QEMU; nothing was changed",
        next,
    )
    .into())
}

fn by_converting(image: &Path) -> String {
    let image = crate::base::shell::quoted(image);
    format!(
        "qemu-img convert -O raw {image} {image}.raw, then rescue repair {image}.raw, then \
         qemu-img convert -O qcow2 {image}.raw {image}.repaired"
    )
}
